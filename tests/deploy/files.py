"""What is in deploy/, read, and the tools that check it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from tests.server import ROOT

DEPLOY = ROOT / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
RULE_FILES = sorted((PROMETHEUS / "rules").glob("*.yml"))
RULE_TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
COMPOSE_FILES = sorted(ROOT.glob("docker-compose*.yml"))

# A value for each of Grafana's variables, so that what it sends to Prometheus can be parsed.
VARIABLES = {"$__rate_interval": "1m", "$model": "digits", "$version": ".*", "$window": "30h"}


def load(path: Path) -> Any:  # noqa: ANN401 - whatever YAML holds; JSON is YAML
    """Content of a YAML or JSON file."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def groups() -> list[dict[str, Any]]:
    """All groups of rules."""
    return [group for path in RULE_FILES for group in load(path)["groups"]]


def rules(kind: str) -> list[dict[str, Any]]:
    """All rules of a kind: `record` or `alert`."""
    return [rule for group in groups() for rule in group["rules"] if kind in rule]


@dataclass(frozen=True, slots=True)
class Selector:
    """Series that an expression asks for."""

    name: str
    matchers: tuple[promql_parser.Matcher, ...] = field(default=())


def selectors(expression: str) -> list[Selector]:
    """Every selector in a PromQL expression; Grafana's variables are filled in.

    Raises:
        ValueError: It is not PromQL.
    """
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    found: list[Selector] = []

    def visit(node: promql_parser.Expr) -> bool:
        if isinstance(node, promql_parser.MatrixSelector):
            node = node.vector_selector
        if isinstance(node, promql_parser.VectorSelector):
            assert node.name is not None, expression
            found.append(Selector(node.name, tuple(node.matchers.matchers)))
        return True

    promql_parser.walk(promql_parser.parse(expression), visit)
    return found


def queries(dashboard: dict[str, Any]) -> Iterator[str]:
    """The PromQL of a dashboard: of its panels, and the selectors of its variables."""
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"].removeprefix("label_values(").rpartition(",")[0]


def tool(name: str, package: str) -> str:
    """Path of a program; without it the test is skipped, or fails where REQUIRE_TOOLCHAINS is set, as in `.ci/run`."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        reason = f"{name} is not installed (package {package})"
        (pytest.fail if os.environ.get("REQUIRE_TOOLCHAINS") else pytest.skip)(reason)
    return found


def run(program: str, *arguments: str | Path, text: bytes | None = None) -> None:
    """Run a checker; what it says is why the test fails."""
    finished = subprocess.run(
        [program, *arguments], check=False, cwd=ROOT, input=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert finished.returncode == 0, finished.stdout.decode()
