"""Draws the panels of the models dashboard: the same expressions, read out of the dashboard that Grafana shows."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.pipeline.picture import COLORS, GRID, History, Timeline
from examples.pipeline.rules import quickened
from examples.pipeline.stack import Stack
from examples.pipeline.traffic import MODEL, ROOT, VERSION

DASHBOARD: Final = ROOT / "deploy" / "grafana" / "dashboards" / "models.json"
_DRAWN = {"timeseries", "barchart", "bargauge"}
_LEFT_OUT = {"Undeclared names", "Not counted"}
"""Of everything that is wrong here, these know nothing."""
_COLUMNS: Final = 2
# Four scrapes, as Grafana chooses it.
_VARIABLES = {"$model": MODEL, "$version": VERSION, "$window": "15m", "$__rate_interval": "4s"}
_LABEL = re.compile(r"\{\{(\w+)\}\}")


def panels() -> list[dict[str, Any]]:
    """Returns the panels to draw, in the dashboard's order."""
    every: list[dict[str, Any]] = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    every += [inner for row in every for inner in row.get("panels", [])]
    return [one for one in every if one["type"] in _DRAWN and one["title"] not in _LEFT_OUT]


def filled(expression: str, speed: int) -> str:
    """Returns an expression with the variables' values, as quick as the rules."""
    rate = _VARIABLES["$__rate_interval"]
    for variable in ("$model", "$version", "$window"):
        expression = expression.replace(variable, _VARIABLES[variable])
    return quickened(expression, speed).replace("$__rate_interval", rate)


def draw(running: Stack, timeline: Timeline, speed: int) -> Figure:
    """Draws them; bars show the end of the fault."""
    history, drawn = History(running.prometheus, timeline), panels()
    rows = -(-len(drawn) // _COLUMNS)
    figure = Figure(figsize=(11, 2.5 * rows + 0.6), facecolor="white", layout="constrained")
    figure.suptitle(
        "The dashboard of models during the demonstration; seconds across, bars at the end of the fault",
        fontsize=11,
        fontweight="bold",
    )
    for panel, axes in zip(drawn, figure.subplots(rows, _COLUMNS, squeeze=False).flat, strict=False):
        _draw_panel(axes, panel, history, speed)
    for axes in figure.axes[len(drawn) :]:
        axes.set_visible(False)
    return figure


def _draw_panel(axes: Axes, panel: Mapping[str, Any], history: History, speed: int) -> None:
    axes.set_title(panel["title"], fontsize=9, loc="left", fontweight="bold")
    queries = [(filled(one["expr"], speed), one.get("legendFormat", "")) for one in panel["targets"]]
    if panel["type"] == "timeseries":
        history.timeline.set_up(axes)
        _draw_lines(axes, history, queries)
    else:
        _draw_bars(axes, history, queries)
    if panel["fieldConfig"]["defaults"].get("unit") == "percentunit":
        axes.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1, decimals=0))
    axes.tick_params(labelsize=7.5, length=0)
    axes.spines[:].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=7, frameon=False, ncols=6, loc="upper center", bbox_to_anchor=(0.5, -0.1))


def _draw_lines(axes: Axes, history: History, queries: list[tuple[str, str]]) -> None:
    for expression, legend in queries:
        for labels, points in history.series(expression):
            color = COLORS[len(axes.lines) % len(COLORS)]
            axes.plot(*points, linewidth=1.3, color=color, label=_LABEL.sub(lambda found: labels[found[1]], legend))  # noqa: B023 - used at once
    low, high = axes.get_ylim()
    axes.set_ylim(min(0.0, low), high + 0.05 * (high - low))


def _draw_bars(axes: Axes, history: History, queries: list[tuple[str, str]]) -> None:
    at, width = history.timeline.repaired_at, 0.8 / len(queries)
    for place, (expression, legend) in enumerate(queries):
        found = history.prometheus.query_range(expression, at, at)
        # Of one series a bar, all labels but one are the same: that one is its name.
        bars = sorted((next(iter(labels.values())), points[0][1]) for labels, points in found if points)
        across = [index + (place - (len(queries) - 1) / 2) * width for index in range(len(bars))]
        name = "" if _LABEL.search(legend) else legend
        axes.bar(across, [value for _, value in bars], width, color=COLORS[place], label=name or "_")
        axes.set_xticks(range(len(bars)), [label for label, _ in bars])
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
