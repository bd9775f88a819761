"""Rules, dashboards and documentation name the metrics that the service has, with the labels that they have there."""

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from promql_parser import MatchOp

from tests.conftest import StartServer
from tests.deploy.files import DASHBOARDS, RULE_FILES, Selector, load, queries, rules, run, selectors, tool
from tests.server import ROOT

MODELS = """
models:
  - model: digits
    versions: ["1", "2"]
    classes: 2
    segments: [web]
    baseline: {mean: 0.2, stddev: 0.4, accuracy: 0.9}
    label_interval: 1d
"""
REQUEST = {"logits": [[1, 2]], "labels": [0], "model": "digits", "version": "1", "predicted_at": "2026-01-01T00:00:00Z"}
# Prometheus' own, and what it adds to every series.
OWN = {"up", "ALERTS"}
ADDED = {"job": "losseval", "instance": ""}
DOCUMENTED = re.compile(r"<!-- metrics[^>]*-->(.*)<!-- /metrics -->", re.DOTALL)
ROW = re.compile(r"^\| `(\w+)` \| \w+ \| ([\w, ]*) \|", re.MULTILINE)
RECORDED = {rule["record"] for rule in rules("record")}

# Names of series, their labels, and the values that these have.
Series = Mapping[str, Mapping[str, set[str]]]


@pytest.fixture(scope="module")
def exposition(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """`/metrics` of a service that has answered a request about a declared model."""
    models = tmp_path_factory.mktemp("models") / "models.yaml"
    models.write_text(MODELS)
    with start_server(device="cpu", models_file=models) as server:
        httpx.post(f"{server.url}/v1/cross-entropy", json=REQUEST).raise_for_status()
        return httpx.get(f"{server.url}/metrics").content


@pytest.fixture(scope="module")
def documented() -> dict[str, set[str]]:
    """Labels of the metrics in the documentation."""
    table = DOCUMENTED.search((ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8"))
    assert table is not None
    return {f"losseval_{name}": set(filter(None, labels.split(", "))) for name, labels in ROW.findall(table[1])}


@pytest.fixture(scope="module")
def live(exposition: bytes) -> Series:
    series: dict[str, defaultdict[str, set[str]]] = {}
    for family in text_string_to_metric_families(exposition.decode()):
        for sample in family.samples:
            labels = series.setdefault(sample.name, defaultdict(set))
            for label, value in sample.labels.items():
                labels[label].add(value)
    return series


def test_metrics_have_no_lint(exposition: bytes) -> None:
    run(tool("promtool", "prometheus"), "check", "metrics", text=exposition)


def test_every_metric_is_documented(exposition: bytes, documented: dict[str, set[str]]) -> None:
    families = list(text_string_to_metric_families(exposition.decode()))
    names = {family.name + ("_total" if family.type == "counter" else "") for family in families}
    ours = {name for name in names if name.startswith("losseval_")}
    assert ours == {name for name in documented if "_device_" not in name}, "the others are CUDA's"


def check(selector: Selector, live: Series, documented: dict[str, set[str]]) -> None:
    """The series exists; so do the labels it is chosen by, and the values these must have."""
    if selector.name in OWN or selector.name in RECORDED:
        return
    if "_device_" in selector.name:
        assert selector.name in documented
        return
    assert selector.name in live
    for matcher in selector.matchers:
        values = live[selector.name].get(matcher.name)
        if matcher.name in ADDED:
            continue
        assert values is not None, f"{selector.name} has no label {matcher.name}"
        if matcher.op == MatchOp.Equal:
            assert matcher.value in values, f"{selector.name} has no {matcher}"


@pytest.mark.parametrize("path", RULE_FILES, ids=lambda path: path.stem)
def test_rules_ask_for_what_there_is(path: Path, live: Series, documented: dict[str, set[str]]) -> None:
    for group in load(path)["groups"]:
        for rule in group["rules"]:
            for selector in selectors(rule["expr"]):
                check(selector, live, documented)


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_ask_for_what_there_is(path: Path, live: Series, documented: dict[str, set[str]]) -> None:
    for query in queries(load(path)):
        for selector in selectors(query):
            check(selector, live, documented)


def test_alerts_and_dashboards_leave_nothing_recorded_in_vain() -> None:
    asked = [rule["expr"] for kind in ("record", "alert") for rule in rules(kind)]
    asked += [query for path in DASHBOARDS for query in queries(load(path))]
    assert {selector.name for query in asked for selector in selectors(query)} >= RECORDED
