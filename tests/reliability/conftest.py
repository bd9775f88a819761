"""A table of figures at the end of every run."""

from collections.abc import Callable

import pytest

Figures = Callable[..., None]
_rows: list[tuple[str, str]] = []


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Figures:
    """Notes what a scenario reached, e.g. `figures(p99="812 ms", bar="1300 ms")`; numbers get three digits."""

    def note(scenario: str = "", **reached: object) -> None:
        texts = (f"{name}={one:.3g}" if isinstance(one, float) else f"{name}={one}" for name, one in reached.items())
        _rows.append((f"{request.node.name} {scenario}".rstrip(), ", ".join(texts)))

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the table."""
    if not _rows:
        return
    terminalreporter.section("reliability: figures")
    for name, reached in _rows:
        terminalreporter.write_line(f"{name}: {reached}")
