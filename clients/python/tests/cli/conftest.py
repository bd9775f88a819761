"""The commands, in this process or in their own, on a real service."""

import json
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from tests.server import ROOT

from losseval.cli import main

from .data import DataSet, make_data


class Answer(NamedTuple):
    """What a command leaves."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """Standard output as JSON, strictly."""
        document: dict[str, Any] = json.loads(self.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        return document

    @property
    def sections(self) -> list[list[list[str]]]:
        """Standard output in a pipe: tables, lines, cells."""
        return [[line.split("\t") for line in part.splitlines()] for part in self.out.split("\n\n")]


Command = Callable[..., Answer]


@pytest.fixture(scope="session")
def data() -> DataSet:
    return make_data(400, 5)


@pytest.fixture
def losseval(url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command in this process."""
    monkeypatch.setenv("LOSSEVAL_URL", url)

    def run(*arguments: object) -> Answer:
        capsys.readouterr()
        code = main([*map(str, arguments)])
        return Answer(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def environment(url: str) -> dict[str, str]:
    """For a command in a process of its own."""
    kept = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "FORCE_COLOR", "COLUMNS"}}
    path = os.pathsep.join([str(ROOT / "clients" / "python"), str(ROOT)])
    return {**kept, "LOSSEVAL_URL": url, "PYTHONPATH": path, "TERM": "xterm-256color"}
