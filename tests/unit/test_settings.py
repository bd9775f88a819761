"""Flags, environment variables, and what the machine allows."""

from pathlib import Path

import pytest

from service.__main__ import COMMANDS
from service.host import cpu_quota, memory_limit_bytes
from service.settings import Settings, ignored_variables, load


def test_flags_come_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSSEVAL_PORT", "9001")
    monkeypatch.setenv("LOSSEVAL_MAX_CLASSES", "7")
    settings = load(["--port", "9002"])
    assert (settings.port, settings.max_classes) == (9002, 7)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--prot", "1"], id="unknown flag"),
        pytest.param(["--port", "70000"], id="out of range"),
        pytest.param(["--device", "gpu"], id="not a device"),
        pytest.param(["--keys-file", "none"], id="no such file"),
        pytest.param(["--ssl-keyfile", __file__], id="key without its certificate"),
        pytest.param(["--forwarded-allow-ips", "10.0.0.0/8,proxy"], id="not a network"),
    ],
)
def test_a_wrong_flag_ends_the_process(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        load(arguments)
    assert end.value.code == 2
    assert arguments[0].lstrip("-") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False), ("lab", False)],
)
def test_loopback_is_what_nobody_else_reaches(host: str, is_loopback: bool) -> None:
    assert load(["--host", host]).is_loopback == is_loopback


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load(["--help"])
    printed = capsys.readouterr().out
    assert COMMANDS
    assert all(f"python -m service {name}" in printed for name in COMMANDS)


def test_what_kubernetes_injects_is_ignored_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    injected = {"LOSSEVAL_PORT": "tcp://10.0.0.1:8000", "LOSSEVAL_SERVICE_HOST": "10.0.0.1"}
    for name, value in injected.items():
        monkeypatch.setenv(name, value)
    assert load([]).port == 8000
    assert ignored_variables(injected | {"LOSSEVAL_THREADS": "2", "PATH": "/bin"}) == sorted(injected)


def test_an_empty_variable_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSSEVAL_MAX_QUEUE_MS", "")
    assert load([]).max_queue_ms == 1000


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]


@pytest.mark.parametrize(("line", "expected"), [("200000 100000", 2), ("50000 100000", 1), ("max 100000", 64)])
def test_the_cpu_quota_caps_the_affinity(
    line: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)))
    (tmp_path / "cpu.max").write_text(f"{line}\n")
    assert cpu_quota(tmp_path) == expected


def test_the_memory_limit_caps_the_machine(tmp_path: Path) -> None:
    machine = memory_limit_bytes(tmp_path)
    (tmp_path / "memory.max").write_text("1048576\n")
    assert memory_limit_bytes(tmp_path) == 1048576 < machine
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_limit_bytes(tmp_path) == machine
