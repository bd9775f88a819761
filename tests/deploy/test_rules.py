"""The rules of Prometheus; what they say about numbers is tested in deploy/prometheus/tests."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.files import RULE_FILES, RULE_TESTS, groups, load, rules, run, tool
from tests.server import ROOT

ALERTS = {rule["alert"]: rule for rule in rules("alert")}
WINDOWS = {group["name"].removeprefix("losseval-window-"): group for group in groups() if "-window-" in group["name"]}
WINDOW = re.compile(r"\[(\w+)\]|window=\"(\w+)\"")


def test_rules_have_no_lint() -> None:
    run(tool("promtool", "prometheus"), "check", "rules", "--lint-fatal", *RULE_FILES)


@pytest.mark.parametrize("path", RULE_TESTS, ids=lambda path: path.stem)
def test_rules_say_what_they_should(path: Path) -> None:
    run(tool("promtool", "prometheus"), "test", "rules", path)


def cases(alert: str) -> list[list[Any]]:
    """What is expected of an alert, wherever it is tested."""
    return [
        case.get("exp_alerts", [])
        for path in RULE_TESTS
        for test in load(path)["tests"]
        for case in test.get("alert_rule_test", ())
        if case["alertname"] == alert
    ]


@pytest.mark.parametrize("alert", ALERTS)
def test_alert_is_seen_to_fire_and_not_to(alert: str) -> None:
    assert {bool(expected) for expected in cases(alert)} == {True, False}


@pytest.mark.parametrize("alert", ALERTS)
def test_alert_says_what_to_do(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    document, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert anchor == alert.lower()
    headings = re.findall(r"^#+ (.+)$", (ROOT / document).read_text(encoding="utf-8"), re.MULTILINE)
    assert alert in headings


def test_windows_differ_in_nothing_but_their_length() -> None:
    def without_length(window: str) -> list[dict[str, Any]]:
        text = [{**rule, "expr": WINDOW.sub("W", rule["expr"])} for rule in WINDOWS[window]["rules"]]
        return [{**rule, "labels": {"window": rule["labels"]["window"] == window}} for rule in text]

    first = without_length("15m")
    assert all(without_length(window) == first for window in WINDOWS)
    for window, group in WINDOWS.items():
        lengths = {one or other for rule in group["rules"] for one, other in WINDOW.findall(rule["expr"])}
        assert lengths == {window}


def test_every_interval_has_a_window() -> None:
    chosen = [
        rule["labels"]["window"] for rule in rules("record") if rule["record"] == "losseval:label_interval:seconds"
    ]
    assert chosen == list(WINDOWS)
