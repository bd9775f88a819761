"""Draws the panels of the models dashboard: the same expressions, read out of the dashboard that Grafana shows."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Target:
    """A query of a panel."""

    name: str
    expression: str
    legend: str

    def named(self, labels: Mapping[str, str]) -> str:
        """Returns what stands for a series in the legend."""
        return _LABEL.sub(lambda found: labels[found[1]], self.legend)


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
    figure = Figure(figsize=(11.5, 2.5 * rows + 0.6), facecolor="white", layout="constrained")
    figure.suptitle(
        "The dashboard of models during the demonstration; seconds across; bars: the end of the fault",
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
    targets = [
        Target(one["refId"], filled(one["expr"], speed), one.get("legendFormat", "")) for one in panel["targets"]
    ]
    if panel["type"] == "timeseries":
        history.timeline.set_up(axes)
        _draw_lines(axes, history, targets, _dashed(panel))
    else:
        _draw_bars(axes, history, targets)
    _draw_scale(axes, panel["fieldConfig"]["defaults"])
    axes.tick_params(labelsize=7.5, length=0)
    axes.spines[:].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        legend = axes.legend(
            fontsize=7,
            frameon=False,
            ncols=6,
            columnspacing=1,
            handlelength=1.2,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.1),
        )
        for line in legend.get_lines():
            line.set_linewidth(2)


def _draw_scale(axes: Axes, defaults: Mapping[str, Any]) -> None:
    if defaults.get("unit") == "percentunit":
        axes.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1, decimals=0))
    for step in defaults.get("thresholds", {}).get("steps", []):
        if step["value"] is not None:
            axes.axhline(step["value"], color="#c03030", linewidth=0.8, linestyle=":")
    low, high = axes.get_ylim()
    margin = 0.05 * (high - low)
    axes.set_ylim(defaults.get("min", low), defaults.get("max", high) + margin)


def _dashed(panel: Mapping[str, Any]) -> set[str]:
    """Returns the targets that Grafana draws dashed."""
    return {one["matcher"]["options"] for one in panel["fieldConfig"]["overrides"] if "lineStyle" in json.dumps(one)}


def _draw_lines(axes: Axes, history: History, targets: list[Target], dashed: set[str]) -> None:
    for target in targets:
        for labels, points in history.series(target.expression):
            color, style = COLORS[len(axes.lines) % len(COLORS)], "--" if target.name in dashed else "-"
            axes.plot(*points, linewidth=1.3, linestyle=style, color=color, label=target.named(labels))


def _draw_bars(axes: Axes, history: History, targets: list[Target]) -> None:
    at, width = history.timeline.repaired_at, 0.8 / len(targets)
    for place, target in enumerate(targets):
        found = history.prometheus.query_range(target.expression, at, at)
        # Of one series a bar, all labels but one are the same: that one is its name.
        bars = sorted((next(iter(labels.values())), points[0][1]) for labels, points in found if points)
        across = [index + (place - (len(targets) - 1) / 2) * width for index in range(len(bars))]
        name = "_" if _LABEL.search(target.legend) else target.legend
        axes.bar(across, [value for _, value in bars], width, color=COLORS[place], label=name)
        axes.set_xticks(range(len(bars)), [label for label, _ in bars])
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
