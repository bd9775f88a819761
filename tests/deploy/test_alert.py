"""For real: Prometheus scrapes the running service, the rules load, and Alertmanager tells somebody.

The rules run faster (examples/pipeline/rules.py); what they are about is a model that gets worse on purpose.
"""

import contextlib
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from losseval import Client
from matplotlib.axes import Axes

from examples.pipeline import dashboard, picture, rules, stack
from examples.pipeline.picture import Timeline
from examples.pipeline.stack import Prometheus, Stack, Tools
from examples.pipeline.traffic import MODEL, VERSION, Pipeline
from tests.deploy.files import RULE_FILES, tool

pytestmark = pytest.mark.timeout(240)

RANGE = re.compile(r"\[(\d+)(ms|[smhdw])\]")
SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
PATIENCE_S = 60
SPEED = 120
PAIR = f'{{model="{MODEL}",version="{VERSION}"}}'


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Tools:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return Tools(tool("prometheus", "prometheus"), tool("prometheus-alertmanager", "prometheus-alertmanager"))


def wait_until(is_so: Callable[[], bool], *, meanwhile: Callable[[], object]) -> None:
    """Do something again and again until a condition holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline, f"not so after {PATIENCE_S} s"
        meanwhile()


@pytest.mark.slow
def test_model_that_gets_worse_reaches_the_receiver_and_one_that_recovers_too(tools: Tools, tmp_path: Path) -> None:
    pipeline, models_file = Pipeline(samples=400), tmp_path / "models.yaml"
    models_file.write_text(pipeline.declaration(tmp_path, label_interval="1m"), encoding="utf-8")
    with stack.running(tmp_path, models_file, speed=SPEED) as running, Client(running.services[0]) as client:
        started = time.time()

        def turn(faulty: float) -> None:
            known = len(running.receiver.alerts)
            pipeline.turn(client, faulty=faulty)
            running.receiver.wait(lambda alerts: len(alerts) > known, 1)

        def is_judged() -> bool:
            return (running.prometheus.value(f"losseval:nll_count:window{PAIR}") or 0) >= 500

        wait_until(is_judged, meanwhile=lambda: turn(0))
        for _ in range(4):  # twice what an alert has to hold
            turn(0)
        assert running.receiver.alerts == []
        assert abs(running.prometheus.value(f"losseval:drift:z{PAIR}") or np.inf) < 4

        faulty = time.time()
        wait_until(lambda: is_firing(running, "LossevalLossAboveBaseline"), meanwhile=lambda: turn(1))
        repaired = time.time()
        drifted = running.prometheus.query('ALERTS{alertname="LossevalDrift",alertstate="firing"}')
        assert [(labels["model"], labels["version"]) for labels, _ in drifted] == [(MODEL, VERSION)]
        alert = next(one for one in running.receiver.alerts if one.name == "LossevalLossAboveBaseline")
        assert dict(alert.labels) == {
            "alertname": "LossevalLossAboveBaseline",
            "model": MODEL,
            "severity": "critical",
            "version": VERSION,
        }
        assert alert.annotations["runbook_url"].endswith("docs/monitoring.md#lossevallossabovebaseline")
        baseline = yaml.safe_load(models_file.read_text(encoding="utf-8"))["models"][0]["baseline"]["mean"]
        assert f"{baseline:.3g}" in alert.annotations["description"]

        wait_until(lambda: not is_firing(running, "LossevalLossAboveBaseline"), meanwhile=lambda: turn(0))
        timeline = Timeline(started, faulty, repaired, time.time())
        for draw in (picture.draw, dashboard.draw):
            figure = draw(running, timeline, SPEED)
            assert len(figure.axes) >= 4
            assert [axes.get_title(loc="left") for axes in figure.axes if not has_data(axes)] == []


def has_data(axes: Axes) -> bool:
    """Whether something is drawn besides the shade of the fault and thresholds."""
    sizes = [len(line.get_xdata()) for line in axes.lines]  # type: ignore[arg-type]  # ours are lists
    return max(sizes, default=0) > 2 or len(axes.patches) > 1


def is_firing(running: Stack, name: str) -> bool:
    """Whether the last that was heard of an alert is that it fires."""
    heard = [one.status for one in running.receiver.alerts if one.name == name]
    return heard[-1:] == ["firing"]


@pytest.mark.slow
def test_two_replicas_and_a_restart_add_up(tools: Tools, tmp_path: Path) -> None:
    models_file = tmp_path / "models.yaml"
    models_file.write_text(yaml.safe_dump({"models": [{"model": MODEL, "versions": [VERSION]}]}), encoding="utf-8")
    counted = f"losseval_samples_total{PAIR}"
    with contextlib.ExitStack() as kept:
        first_life = contextlib.ExitStack()
        kept.callback(first_life.close)
        restarted = stack.started_service(first_life, tmp_path, models_file)
        other = stack.started_service(kept, tmp_path, models_file)
        prometheus = stack.started_prometheus(kept, tools, tmp_path, [restarted, other], speed=1)
        wait_until_counted(prometheus, f"count({counted})", 6)  # three outcomes of each

        send(restarted, 700)
        send(other, 300)
        wait_until_counted(prometheus, f"sum by (model, version) ({counted})", 1000)

        first_life.close()
        assert stack.started_service(kept, tmp_path, models_file, port=int(restarted.rpartition(":")[2])) == restarted
        send(restarted, 500)
        wait_until_counted(prometheus, f"sum by (model, version) ({counted})", 300 + 500)
        # Up to a second more is extrapolated. Without the other replica, or without the first life, a fifth would lack.
        increase = prometheus.value(f"sum by (model, version) (increase({counted}[5m]))")
        assert increase == pytest.approx(700 + 300 + 500, rel=0.15)
        found = prometheus.query(f"sum by (instance) (increase({counted}[5m]))")
        by_replica = {labels["instance"]: value for labels, value in found}
        assert increase == pytest.approx(sum(by_replica.values()), rel=0.05)
        assert by_replica.keys() == {url.removeprefix("http://") for url in (restarted, other)}


def wait_until_counted(prometheus: Prometheus, expression: str, count: float) -> None:
    wait_until(lambda: prometheus.value(expression) == count, meanwhile=lambda: time.sleep(0.1))


def send(url: str, samples: int) -> None:
    with Client(url) as client:
        client.cross_entropy(np.eye(samples, 4), np.zeros(samples, int), model=MODEL, version=VERSION)


def seconds(count: str, unit: str) -> float:
    return int(count) * SECONDS[unit]


@pytest.mark.parametrize("path", RULE_FILES, ids=lambda path: path.stem)
def test_quick_rules_differ_from_the_real_ones_in_durations_only(path: Path) -> None:
    written = path.read_text(encoding="utf-8")
    real, quick = (
        [(group, rule) for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]
        for text in (written, rules.quickened(written, 60))
    )
    assert len(real) == len(quick) > 0
    for (real_group, real_rule), (quick_group, quick_rule) in zip(real, quick, strict=True):
        for expected, found in ((real_group, quick_group), (real_rule, quick_rule)):
            assert durations(found) == pytest.approx([one / 60 for one in durations(expected)], abs=1e-3)
            assert timeless(found) == timeless(expected)


def durations(item: dict[str, Any]) -> list[float]:
    """Every duration of a rule or group, in seconds."""
    named = [f"[{item[name]}]" for name in ("for", "interval") if name in item]
    return [seconds(*found) for text in (item.get("expr", ""), *named) for found in RANGE.findall(text)]


def timeless(item: dict[str, Any]) -> dict[str, Any]:
    """A rule or group without its durations."""
    kept = {name: value for name, value in item.items() if name not in {"for", "interval", "rules"}}
    return kept | {"expr": RANGE.sub("[]", kept.get("expr", ""))}
