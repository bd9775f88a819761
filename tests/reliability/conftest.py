"""Processes that many scenarios share, and a table of figures at the end of every run."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.reliability.replicas import Replica, serving

Figures = Callable[..., None]
ROOM: dict[str, Any] = {"max_batch_requests": 8, "max_inflight_bytes": 1200 << 20, "max_queue_ms": 20_000}
"""For clients who are there at once, and not for those who have gone as well."""
_rows: list[tuple[str, str]] = []


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Figures:
    """Notes what a scenario reached, e.g. `figures(p99="812 ms", bar="1300 ms")`; numbers get three digits."""

    def note(scenario: str = "", **reached: object) -> None:
        texts = (f"{name}={one:.3g}" if isinstance(one, float) else f"{name}={one}" for name, one in reached.items())
        _rows.append((f"{request.node.name} {scenario}".rstrip(), ", ".join(texts)))

    return note


@pytest.fixture(scope="session")
def plain_replica() -> Iterator[Replica]:
    """The service as it is, but patient, so that nobody is refused for load who is to be slow or many."""
    with serving(max_queue_ms=60_000) as running:
        yield running


@pytest.fixture
def plain(plain_replica: Replica) -> Iterator[Replica]:
    """The same, which has to be unharmed by the scenario."""
    yield plain_replica
    plain_replica.check_unharmed()


@pytest.fixture(scope="session")
def device_replica() -> Iterator[Replica]:
    """A device of 5 ms that fails for marked requests and has little memory for five classes."""
    with serving("fixed_device,failing_device,small_device", **ROOM) as running:
        yield running


@pytest.fixture
def device(device_replica: Replica) -> Iterator[Replica]:
    """The same, which has to be unharmed by the scenario."""
    yield device_replica
    device_replica.check_unharmed()


@pytest.fixture(scope="session")
def failing_together() -> Iterator[Replica]:
    """The same device, and a batch that fails does so for all of its members."""
    with serving("fixed_device,failing_device,small_device,everybody_fails", is_unharmed=False, **ROOM) as running:
        yield running


@pytest.fixture(scope="session")
def careless() -> Iterator[Replica]:
    """A service without some guarantees that have nothing to do with each other: a process for each would take long."""
    patience: dict[str, Any] = dict.fromkeys(("header_timeout", "body_grace", "send_timeout"), 3600)
    endless: dict[str, Any] = {"max_header_bytes": 1 << 30, "max_headers": 1 << 20, "max_json_bytes": 1 << 20}
    with serving("sloppy_parser,no_lingering,company_shows", is_unharmed=False, **patience, **endless) as running:
        yield running


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the table."""
    if not _rows:
        return
    terminalreporter.section("reliability: figures")
    for name, reached in _rows:
        terminalreporter.write_line(f"{name}: {reached}")
