"""Who may compute, over real connections: keys, TLS, proxies, origins, and what the log says of them."""

import json
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import trustme
from losseval import Client, errors

from tests import server as processes
from tests.calls import BINARY, EXAMPLE, JSON, PATH, assert_golden, check_problem, evaluate, post, send_tensors
from tests.conftest import StartServer
from tests.server import ROOT, Server
from tests.wire import as_arrays, encode, encode_tensors

ORIGIN = "https://lab.example"


def keys_command(*arguments: str, file: Path) -> str:
    """Run `python -m service keys` as an operator does."""
    command = [sys.executable, "-m", "service", "keys", *arguments]
    environment = {**os.environ, "LOSSEVAL_KEYS_FILE": str(file)}
    finished = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    return finished.stdout.strip()


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys"


@pytest.fixture(scope="module")
def key(keys_file: Path) -> str:
    return keys_command("create", "alice", file=keys_file)


@pytest.fixture(scope="module")
def guarded(key: str, keys_file: Path, start_server: StartServer) -> Iterator[Server]:
    with start_server(device="cpu", keys_file=keys_file, cors_origins=f"https://other.example, {ORIGIN}") as running:
        yield running


@pytest.fixture
def stranger(guarded: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=guarded.url, timeout=30) as client:
        yield client


@pytest.fixture
def friend(guarded: Server, key: str) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=guarded.url, timeout=30, headers=headers) as client:
        yield client


def test_computing_needs_a_key_in_either_form(stranger: httpx.Client, friend: httpx.Client, key: str) -> None:
    refused = post(stranger, EXAMPLE)
    problem = check_problem(refused, 401, "authentication_required")
    assert refused.headers["www-authenticate"] == "Bearer"
    assert "Authorization: Bearer" in problem["detail"]
    assert_golden(post(friend, EXAMPLE))
    assert_golden(post(stranger, EXAMPLE, x_api_key=key))
    assert_golden(send_tensors(friend, encode_tensors(as_arrays(EXAMPLE))))
    check_problem(send_tensors(stranger, encode_tensors(as_arrays(EXAMPLE))), 401, "authentication_required")
    check_problem(post(stranger, EXAMPLE, x_api_key=key[:-1]), 401, "authentication_required")
    check_problem(post(stranger, EXAMPLE, authorization=f"Basic {key}"), 401, "authentication_required")


def test_everything_else_is_open_and_every_operation_that_posts_is_not(stranger: httpx.Client) -> None:
    document = stranger.get("/openapi.json").json()
    posts = [path for path, methods in document["paths"].items() if "post" in methods]
    gets = [path for path, methods in document["paths"].items() if "get" in methods]
    assert PATH in posts
    for path in posts:
        check_problem(stranger.post(path), 401, "authentication_required")
        assert {"bearer": []} in document["paths"][path]["post"]["security"]
    assert {"/livez", "/readyz", "/metrics", "/v1/info"} <= set(gets)
    for path in [*gets, "/docs", "/docs/swagger-ui.css"]:
        assert stranger.get(path.format(slug="authentication-required")).status_code == 200, path
    assert stranger.options(PATH).status_code == 204


def test_the_page_of_the_problem_is_open(stranger: httpx.Client) -> None:
    problem = post(stranger, EXAMPLE).json()
    assert "authentication_required" in stranger.get(problem["type"]).text


REFUSED_BEFORE = [
    pytest.param(("POST", "/v1/nothing"), "", 404, "not_found", id="404"),
    pytest.param(("POST", PATH + "/"), "", 404, "not_found", id="slash"),
    pytest.param(("GET", PATH), "", 405, "method_not_allowed", id="405"),
    pytest.param(("POST", "/metrics"), "", 405, "method_not_allowed", id="405-of-an-open-path"),
    pytest.param(("POST", PATH), "x" * 70_000, 431, "headers_too_large", id="431"),
]
REFUSED_AFTER = [
    pytest.param({"Content-Type": "text/plain"}, 415, "unsupported_media_type", id="415"),
    pytest.param({"Content-Encoding": "gzip"}, 415, "unsupported_content_encoding", id="415-encoding"),
    pytest.param({"Accept": "text/html"}, 406, "not_acceptable", id="406"),
    pytest.param({}, 400, "malformed_json", id="body"),
]


@pytest.mark.parametrize(("target", "header", "status", "code"), REFUSED_BEFORE)
def test_what_is_wrong_before_the_key_is_said_without_one(
    target: tuple[str, str], header: str, status: int, code: str, stranger: httpx.Client
) -> None:
    check_problem(stranger.request(*target, headers={"X": header}), status, code)


@pytest.mark.parametrize(("headers", "status", "code"), REFUSED_AFTER)
def test_the_key_comes_before_what_else_is_wrong(
    headers: dict[str, str], status: int, code: str, stranger: httpx.Client, friend: httpx.Client
) -> None:
    for client, expected in ((stranger, (401, "authentication_required")), (friend, (status, code))):
        check_problem(client.post(PATH, content=b"{", headers={**JSON, **headers}), *expected)


def exchange(server: Server, request: bytes) -> bytes:
    """Send raw bytes and return all that comes until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


BODY = encode(EXAMPLE)
DETOURS = [
    pytest.param(PATH, "evil.example/livez?", id="path-in-the-host"),
    pytest.param(PATH, "127.0.0.1#/docs", id="fragment-in-the-host"),
    pytest.param(f"http://localhost/livez?{PATH}", "localhost", id="absolute-form-of-an-open-path"),
    pytest.param(f"http://localhost{PATH}", "localhost/docs", id="absolute-form"),
    pytest.param(f"/{PATH}", "localhost", id="two-slashes"),
    pytest.param(f"/livez/..{PATH}", "localhost", id="dots"),
    pytest.param("/v1/%63ross-entropy", "localhost", id="escaped-letter"),
    pytest.param("/v1%2Fcross-entropy", "localhost", id="escaped-slash"),
    pytest.param("/V1/Cross-Entropy", "localhost", id="capitals"),
    pytest.param(f"{PATH};x=/livez", "localhost", id="path-parameter"),
    pytest.param(f"{PATH}?/livez", "localhost", id="query"),
    pytest.param(f"{PATH}%00", "localhost", id="nul"),
]


@pytest.mark.parametrize(("target", "host"), DETOURS)
def test_no_spelling_of_the_address_leads_around_the_key(target: str, host: str, guarded: Server, key: str) -> None:
    lines = [f"POST {target} HTTP/1.1", f"Host: {host}", "Content-Type: application/json", "Connection: close"]
    lines += [f"Content-Length: {len(BODY)}", "X-Original-URL: /livez", "X-Forwarded-Prefix: /livez", "Cookie: " + key]
    answer = exchange(guarded, "\r\n".join([*lines, "", ""]).encode() + BODY)
    status = int(answer.split()[1])
    assert status in {400, 401, 404, 405}, answer
    assert b"loss" not in answer.split(b"\r\n\r\n", 1)[1].replace(b"losseval", b"")


def test_the_key_comes_before_the_length_of_the_body(guarded: Server, key: str) -> None:
    lines = [f"POST {PATH} HTTP/1.1", "Host: a", "Content-Type: application/json", f"Content-Length: {1 << 40}"]
    for line, status in (("X: y", b"401"), (f"X-API-Key: {key}", b"413")):
        answer = exchange(guarded, "\r\n".join([*lines, line, "Connection: close", "", ""]).encode())
        assert answer.split()[1] == status


def test_the_refusal_comes_instead_of_the_100(guarded: Server) -> None:
    head = f"POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n"
    answer = exchange(guarded, f"{head}Expect: 100-continue\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 401 ")


def test_keys_come_and_go_while_the_service_runs(stranger: httpx.Client, friend: httpx.Client, keys_file: Path) -> None:
    new = keys_command("create", "bob", file=keys_file)
    wait_until(lambda: post(stranger, EXAMPLE, x_api_key=new).status_code == 200, "the new key is not known")
    keys_command("revoke", "bob", file=keys_file)
    wait_until(lambda: post(stranger, EXAMPLE, x_api_key=new).status_code == 401, "the old key is still known")
    assert_golden(post(friend, EXAMPLE))


def test_the_python_client_brings_its_key_and_knows_its_absence(guarded: Server, key: str) -> None:
    logits, labels = EXAMPLE["logits"], EXAMPLE["labels"]
    with Client(guarded.url, api_key=f"{key}\n") as client:
        assert client.cross_entropy(logits, labels).loss == pytest.approx(1.2130, abs=5e-5)
        with pytest.raises(errors.AuthenticationError) as refusal:
            client.with_options(api_key="losseval_wrong").cross_entropy(logits, labels)
    assert refusal.value.status_code == 401
    assert refusal.value.code == "authentication_required"
    assert "losseval_wrong" not in repr(refusal.value) + str(refusal.value)


def test_pages_of_listed_origins_may_call_and_read_refusals(stranger: httpx.Client, friend: httpx.Client) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    preflight = stranger.options(PATH, headers={"Origin": ORIGIN, **asked})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == ORIGIN
    assert "Authorization" in preflight.headers["access-control-allow-headers"]
    for client, status in ((friend, 200), (stranger, 401)):
        answer = post(client, EXAMPLE, origin=ORIGIN)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, ORIGIN)
        assert "X-Request-Id" in answer.headers["access-control-expose-headers"]
    for other in ("https://evil.example", f"{ORIGIN}.evil.example", "null"):
        assert "access-control-allow-origin" not in post(friend, EXAMPLE, origin=other).headers
        assert stranger.options(PATH, headers={"Origin": other, **asked}).status_code == 400


def test_no_origin_is_listed_by_default(client: httpx.Client) -> None:
    answer = post(client, EXAMPLE, origin=ORIGIN)
    assert_golden(answer)
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_key_is_not_needed_by_default(client: httpx.Client) -> None:
    assert_golden(post(client, EXAMPLE))
    assert "\nlosseval_authentication_enabled 0.0\n" in client.get("/metrics").text
    assert "security" not in client.get("/openapi.json").json()["paths"][PATH]["post"]


def test_keys_are_nowhere_in_logs_and_metrics_and_every_line_is_json(
    start_server: StartServer, key: str, keys_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    secrets = [key, "losseval_WRONG"]
    settings: dict[str, object] = {"device": "cpu", "keys_file": keys_file, "forwarded_allow_ips": "127.0.0.0/8"}
    settings |= {"log_level": "debug", "log_format": "json"}
    forged = 'x"} {"key":"root\\n'
    with start_server(**settings) as server, httpx.Client(base_url=server.url) as client:
        for secret in secrets:
            post(client, EXAMPLE, authorization=f"Bearer {secret}")
            post(client, EXAMPLE, x_api_key=secret)
            post(client, EXAMPLE, x_forwarded_for=forged, cookie=secret, user_agent=secret)
            client.post(PATH, params={"api_key": secret, secret: "1"}, json=EXAMPLE, headers={"X-API-Key": key})
            client.post(PATH, params={secret: "1"}, content=b"x", headers={**BINARY, "X-API-Key": key})
            client.post(PATH, content=secret, headers={**JSON, "X-API-Key": key})
            client.post(PATH, content=b"{}", headers={"Content-Type": secret, "X-API-Key": key})
            client.get(f"/{secret}")
            client.get(f"http://{secret}:x@127.0.0.1:{server.port}/livez")
            exchange(server, f"GET /{secret} HTTP/1.1\r\nX-API-Key: {secret}\r\n{secret}\r\n\r\n".encode())
        metrics = client.get("/metrics").text
    assert "\nlosseval_authentication_enabled 1.0\n" in metrics
    printed = capfd.readouterr()
    for secret in secrets:
        assert secret not in printed.out + printed.err + metrics
    lines = [json.loads(line) for line in printed.out.splitlines()]
    answers = [line for line in lines if line["event"] == "request" and line["method"] == "POST"]
    assert {line.get("key") for line in answers if line["status"] == 200} == {"alice"}
    refused = [line for line in answers if line["status"] == 401]
    assert {line["client"] for line in refused} == {"127.0.0.1", forged}
    assert all(line["route"] == PATH and line["level"] == "info" and "key" not in line for line in refused)


@pytest.mark.parametrize(
    ("host", "warnings"), [pytest.param("0.0.0.0", 1, id="everywhere"), pytest.param("127.0.0.2", 0, id="loopback")]
)
def test_an_open_service_warns_once_where_others_reach_it(
    host: str, warnings: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server((host, 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "service", *processes.flags({"host": host, "port": port, "log_format": "json"})]
    server = Server(subprocess.Popen(command, cwd=ROOT), port)
    try:
        wait_until(lambda: is_ready(f"http://{host}:{port}"), "the service is not ready", 60)
    finally:
        assert server.stop() == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert sum(line["level"] == "warning" and "--keys-file" in line["event"] for line in lines) == warnings


def is_ready(url: str, verify: ssl.SSLContext | bool = True) -> bool:  # noqa: FBT002 - httpx's own
    try:
        return httpx.get(f"{url}/readyz", verify=verify, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def test_with_a_certificate_the_service_speaks_https(tmp_path: Path, key: str, keys_file: Path) -> None:
    """Large answers too, which leave in pieces through the same transport."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certfile, keyfile = tmp_path / "cert.pem", tmp_path / "key.pem"
    certificate.cert_chain_pems[0].write_to_path(certfile)
    certificate.private_key_pem.write_to_path(keyfile)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    port = processes.find_free_port()
    settings = {"port": port, "ssl_certfile": certfile, "ssl_keyfile": keyfile, "keys_file": keys_file}
    command = [sys.executable, "-m", "service", *processes.flags({**settings, "log_level": "warning"})]
    server = Server(subprocess.Popen(command, cwd=ROOT), port)
    url = f"https://127.0.0.1:{port}"
    try:
        wait_until(lambda: is_ready(url, trusting), "the service is not ready", 60)
        with httpx.Client(base_url=url, verify=trusting, timeout=30, headers={"X-API-Key": key}) as client:
            assert_golden(post(client, EXAMPLE))
            many = {"logits": [[float(row % 7), 1.0] for row in range(50_000)], "labels": [0] * 50_000}
            answer = evaluate(client, {**many, "include": ["losses", "gradients"]})
            assert len(answer["gradients"]) == 50_000
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{url}/livez")
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{port}/livez")
    finally:
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        pytest.param(["--keys-file", "README.md"], "keys file README.md: line", id="no-keys-file"),
        pytest.param(["--ssl-certfile", "README.md"], "--ssl-certfile, --ssl-keyfile: ", id="no-certificate"),
    ],
)
def test_what_cannot_guard_ends_the_start(flags: list[str], message: str) -> None:
    command = [sys.executable, "-m", "service", "--port", "0", *flags]
    ended = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=50)
    assert ended.returncode in {1, 2}
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
