"""The dashboards, as far as Grafana's JSON model can be checked without Grafana."""

import itertools
import re
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.files import DASHBOARDS, DEPLOY, load, queries, selectors

pytestmark = pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)

PANELS = {"bargauge", "barchart", "row", "stat", "table", "timeseries"}
COLUMNS = 24
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def test_dashboard_has_an_address_of_its_own(path: Path) -> None:
    dashboard = load(path)
    assert dashboard["uid"] == f"losseval-{path.stem}"
    assert dashboard["title"] == f"losseval: {path.stem}"
    assert "id" not in dashboard, "an id is one database's"
    assert all(link["url"] in {f"/d/losseval-{other.stem}" for other in DASHBOARDS} for link in dashboard["links"])


def test_data_source_is_a_variable(path: Path) -> None:
    dashboard = load(path)
    assert "${DS_" not in path.read_text(encoding="utf-8"), "file provisioning doesn't fill it in"
    variable = dashboard["templating"]["list"][0]
    assert (variable["name"], variable["type"], variable["query"]) == ("datasource", "datasource", "prometheus")
    for part in [*dashboard["panels"], *dashboard["templating"]["list"][1:]]:
        assert part["type"] == "row" or part["datasource"] == DATASOURCE
        assert all(target["datasource"] == DATASOURCE for target in part.get("targets", ()))
    assert load(DEPLOY / "grafana" / "datasources" / "prometheus.yaml")["datasources"][0]["type"] == "prometheus"


def test_variables_are_declared(path: Path) -> None:
    dashboard = load(path)
    declared = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$(\w+)", " ".join(queries(dashboard))))
    assert used - {"__rate_interval"} <= declared


def test_panels_are_whole_and_lie_side_by_side(path: Path) -> None:
    panels: list[dict[str, Any]] = load(path)["panels"]
    ids = [panel["id"] for panel in panels]
    assert len(set(ids)) == len(ids)
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["type"] in PANELS
        assert panel["title"]
        place = panel["gridPos"]
        mine = set(
            itertools.product(range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"]))
        )
        assert place["x"] + place["w"] <= COLUMNS
        assert not cells & mine, panel["title"]
        cells |= mine
        if panel["type"] == "row":
            continue
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references) > 0
        for override in panel["fieldConfig"]["overrides"]:
            matcher = override["matcher"]
            names = references if matcher["id"] == "byFrameRefID" else [one["legendFormat"] for one in panel["targets"]]
            assert matcher["options"] in names


def test_every_query_is_promql(path: Path) -> None:
    found = [selectors(query) for query in queries(load(path))]
    assert len(found) > 20
    assert all(found)
