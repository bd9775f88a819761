"""Keys: their file, their holders, the command that makes them, and who is let through."""

import asyncio
import hashlib
import hmac
import re
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send
from structlog.testing import capture_logs

from service import keys
from service.api.middleware.authentication import Authentication
from service.errors import AuthenticationRequired
from service.keys import KeyRing, parse
from service.telemetry.record import RequestRecord
from tests.unit.fakes import receiving


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def line(name: str, key: str) -> str:
    return f"{name}:{digest(key)}\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """File with the keys of two."""
    file = tmp_path / "keys"
    file.write_text(line("alice", "a-key") + line("bob", "b-key"))
    return file


@pytest.fixture(autouse=True)
def files_are_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """However new they are."""
    monkeypatch.setattr("service.followed_file._SETTLED_S", -1.0)


def test_a_key_has_a_holder_and_nothing_else_has(path: Path) -> None:
    ring = KeyRing(path)
    assert [ring.holder_of(key) for key in (b"a-key", b"b-key")] == ["alice", "bob"]
    for wrong in (b"", b"a-key ", b"A-KEY", b"a-ke", b"alice", digest("a-key").encode(), b"\xff\x00"):
        assert ring.holder_of(wrong) is None


def test_every_key_is_compared_in_constant_time_whichever_fits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compare, compared = hmac.compare_digest, []

    def counted(one: bytes, other: bytes) -> bool:
        compared.append(other)
        return compare(one, other)

    ring = KeyRing(path)
    monkeypatch.setattr(hmac, "compare_digest", counted)
    for key in (b"a-key", b"b-key", b"none"):
        compared.clear()
        ring.holder_of(key)
        assert [one.hex() for one in compared] == [digest("a-key"), digest("b-key")]


def test_comments_empty_lines_and_capitals_are_allowed() -> None:
    text = f"# who\n\n  \n  # indented\nalice:{digest('a').upper()}  \r\nbob-2.x_y:{digest('b')}"
    assert parse(text) == {"alice": digest("a"), "bob-2.x_y": digest("b")}


BAD = [
    pytest.param(b"alice", id="no-digest"),
    pytest.param(b"alice:" + b"0" * 63, id="cut-short"),
    pytest.param(b"alice:" + b"0" * 65, id="too-long"),
    pytest.param(b"a b:" + b"0" * 64, id="blank-in-the-name"),
    pytest.param(b"a" * 65 + b":" + b"0" * 64, id="long-name"),
    pytest.param(line("a", "1").encode() + line("a", "2").encode(), id="name-twice"),
    pytest.param(line("a", "1").encode() + line("b", "1").encode(), id="key-twice"),
    pytest.param(b"\xff\xfe", id="not-utf-8"),
    pytest.param(None, id="gone"),
]


@pytest.mark.parametrize("content", BAD)
def test_while_the_file_is_bad_the_last_good_keys_hold_and_it_is_said_once(content: bytes | None, path: Path) -> None:
    ring = KeyRing(path)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with capture_logs() as logs:
        for _ in range(3):
            ring.refresh()
    assert [(log["log_level"], str(path) in log["problem"]) for log in logs] == [("warning", True)]
    assert ring.holder_of(b"a-key") == "alice"
    path.write_text(line("carol", "c-key"))
    ring.refresh()
    assert [ring.holder_of(key) for key in (b"a-key", b"c-key")] == [None, "carol"]


@pytest.mark.parametrize("content", BAD)
def test_a_service_does_not_start_with_a_bad_file(content: bytes | None, path: Path) -> None:
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"keys file {re.escape(str(path))}: "):
        KeyRing(path)


def test_a_file_without_keys_lets_nobody_in(path: Path) -> None:
    ring = KeyRing(path)
    path.write_text("# all revoked\n")
    ring.refresh()
    assert ring.holder_of(b"a-key") is None


def test_a_bad_line_is_named_and_not_shown() -> None:
    """It may be a key that somebody put there instead of its digest."""
    with pytest.raises(ValueError, match=r"^line 2 is not name:sha256$"):
        parse(line("a", "1") + "bob:losseval_SECRET\n")


def run(*arguments: object) -> None:
    keys.main([str(argument) for argument in arguments])


def test_create_shows_a_key_of_256_bits_once_and_keeps_its_digest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "keys"
    shown = []
    for name in ("alice", "bob"):
        run("create", name, "--keys-file", path)
        shown.append(capsys.readouterr().out)
    assert all(re.fullmatch(r"losseval_[A-Za-z0-9_-]{43}\n", key) for key in shown)
    assert path.read_text() == line("alice", shown[0].strip()) + line("bob", shown[1].strip())
    assert path.stat().st_mode & 0o777 == 0o600
    assert [found.name for found in tmp_path.iterdir()] == ["keys"]
    run("list", "--keys-file", path)
    assert capsys.readouterr().out == "alice\nbob\n"


def test_the_variable_names_the_file_too(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOSSEVAL_KEYS_FILE", str(path))
    run("list")
    assert capsys.readouterr().out == "alice\nbob\n"


def test_revoke_takes_one_key_and_leaves_the_rest_as_it_is(path: Path) -> None:
    path.write_text("# staff\n" + path.read_text() + "\n# alice:moved here\n" + line("alice-2", "c"))
    path.chmod(0o640)
    run("revoke", "alice", "--keys-file", path)
    assert path.read_text() == "# staff\n" + line("bob", "b-key") + "\n# alice:moved here\n" + line("alice-2", "c")
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_file_without_a_line_break_at_its_end_is_not_spoiled(path: Path) -> None:
    path.write_text(path.read_text().rstrip())
    run("create", "carol", "--keys-file", path)
    assert list(parse(path.read_text())) == ["alice", "bob", "carol"]


def test_a_link_stays_a_link(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(path)
    run("revoke", "bob", "--keys-file", link)
    assert link.is_symlink()
    assert path.read_text() == line("alice", "a-key")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["create", "alice"], "there is a key alice already", id="duplicate"),
        pytest.param(["create", "a:b"], "'a:b' is no name", id="bad-name"),
        pytest.param(["create"], "create and revoke take a name", id="no-name"),
        pytest.param(["revoke", "carol"], "there is no key carol", id="unknown"),
        pytest.param(["list", "alice"], "list takes none", id="name-too-many"),
        pytest.param(["drop", "alice"], "invalid choice", id="unknown-action"),
    ],
)
def test_what_cannot_be_done_is_said_and_changes_nothing(
    arguments: list[str], message: str, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = path.read_text()
    with pytest.raises(SystemExit) as end:
        run(*arguments, "--keys-file", path)
    printed = capsys.readouterr()
    assert end.value.code == 2
    assert message in printed.err
    assert "losseval_" not in printed.out
    assert path.read_text() == before
    assert [found.name for found in path.parent.iterdir()] == ["keys"]


def test_two_changes_at_once_do_not_lose_one(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = path.with_name("keys.new")
    other.write_text("half written by another")
    with pytest.raises(SystemExit):
        run("create", "carol", "--keys-file", path)
    assert str(other) in capsys.readouterr().err
    assert other.read_text() == "half written by another"


def test_without_a_file_the_command_says_which_flag_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("LOSSEVAL_KEYS_FILE", raising=False)
    with pytest.raises(SystemExit):
        run("list")
    assert "--keys-file" in capsys.readouterr().err


async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
    await Response("computed")(scope, receive, send)


ROUTES = [
    Route("/v1/x", endpoint, methods=["POST"]),
    Route("/open", endpoint, methods=["GET"]),
    Mount("/v2", routes=[Route("/models/{name}/infer", endpoint, methods=["POST"])]),
]


def ask(path: Path, method: str, target: str, *headers: tuple[bytes, bytes], root_path: str = "") -> RequestRecord:
    """Sends a request through the check; raises what it raises."""
    record = RequestRecord("", method, 0.0)
    scope: Scope = {"type": "http", "method": method, "path": target, "root_path": root_path, "client": ("10.0.0.1", 1)}
    scope["headers"], scope["state"] = list(headers), {"record": record}

    async def send(message: Any) -> None:  # noqa: ANN401 - ASGI's messages
        record.status = message.get("status", record.status)

    check = Authentication(endpoint, keys=KeyRing(path), routes=ROUTES)
    asyncio.run(check(scope, receiving(), send))
    return record


@pytest.mark.parametrize(
    ("target", "root_path"),
    [
        pytest.param("/v1/x", "", id="plain"),
        pytest.param("/v2/models/any/infer", "", id="mounted"),
        pytest.param("/api/v1/x", "/api", id="behind-a-prefix"),
    ],
)
def test_a_post_needs_a_key_wherever_its_route_is(target: str, root_path: str, path: Path) -> None:
    with pytest.raises(AuthenticationRequired):
        ask(path, "POST", target, root_path=root_path)
    assert ask(path, "POST", target, (b"x-api-key", b"b-key"), root_path=root_path).key == "bob"


@pytest.mark.parametrize(
    ("method", "target"), [("GET", "/open"), ("POST", "/open"), ("POST", "/none"), ("GET", "/v1/x")]
)
def test_what_does_not_compute_passes_without(method: str, target: str, path: Path) -> None:
    """404 and 405 are said further in."""
    assert ask(path, method, target).key is None


GOOD_HEADERS = [
    pytest.param([(b"authorization", b"Bearer a-key")], id="bearer"),
    pytest.param([(b"authorization", b"bEARER   a-key ")], id="any-case-and-blanks"),
    pytest.param([(b"x-api-key", b"a-key")], id="x-api-key"),
    pytest.param([(b"authorization", b"Basic YTpi"), (b"x-api-key", b"a-key")], id="beside-another-scheme"),
    pytest.param([(b"authorization", b"Bearer a-gateway's"), (b"x-api-key", b"a-key")], id="either-is-enough"),
]
BAD_HEADERS = [
    pytest.param([(b"authorization", b"a-key")], id="no-scheme"),
    pytest.param([(b"authorization", b"Bearera-key")], id="no-blank"),
    pytest.param([(b"authorization", b"Bearer")], id="no-key"),
    pytest.param([(b"authorization", b"Bearer ")], id="empty-bearer"),
    pytest.param([(b"authorization", b"Basic a-key")], id="basic"),
    pytest.param([(b"x-api-key", b"")], id="empty"),
    pytest.param([(b"x-api-key", b"Bearer a-key")], id="scheme-in-the-other-header"),
    pytest.param([(b"x-api-key", b"a-key, b-key")], id="two-in-one"),
    pytest.param([(b"cookie", b"a-key")], id="cookie"),
    pytest.param([(b"x-api-key", b"wrong")] * 1000, id="thousands"),
]


@pytest.mark.parametrize("headers", GOOD_HEADERS)
def test_either_header_brings_the_key(headers: list[tuple[bytes, bytes]], path: Path) -> None:
    record = ask(path, "POST", "/v1/x", *headers)
    assert (record.key, record.status) == ("alice", 200)


@pytest.mark.parametrize("headers", BAD_HEADERS)
def test_anything_else_does_not(headers: list[tuple[bytes, bytes]], path: Path) -> None:
    with pytest.raises(AuthenticationRequired):
        ask(path, "POST", "/v1/x", *headers)


def test_however_many_headers_there_are_two_keys_are_looked_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up = []
    monkeypatch.setattr(KeyRing, "holder_of", lambda _, key: looked_up.append(key))
    headers = [(b"x-api-key", b"%d" % number) for number in range(100)]
    headers += [(b"authorization", b"Bearer %d" % number) for number in range(100)]
    with pytest.raises(AuthenticationRequired):
        ask(path, "POST", "/v1/x", *headers)
    assert looked_up == [b"99", b"99"]
