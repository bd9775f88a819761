"""Draws what happened, as Prometheus remembers it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.pipeline.rules import RULES, quickened
from examples.pipeline.stack import Prometheus, Stack
from examples.pipeline.traffic import MODEL, VERSION

COLORS: Final = ("#1f5fa8", "#c2570c", "#2b8a4b", "#8a4fa0", "#b8860b", "#5a6672")
INK, GRID, FAULT, BASELINE = "#333333", "#d8d8d8", "#fbeae0", "#5a6672"
FONTS: Final = ["DejaVu Sans", "Verdana", "Arial"]
PAIR: Final = f'{{model="{MODEL}",version="{VERSION}"}}'
_STATES: Final = {"pending": "#f0c3a4", "firing": COLORS[1]}
_MARKERS: Final = {"firing": "v", "resolved": "^"}
_DRIFT_BOUND = re.compile(r"abs\(losseval:drift:z\) > (\d+)")


@dataclass(frozen=True, slots=True)
class Timeline:
    """When what happened, in seconds since the epoch."""

    started: float
    fault_at: float
    repaired_at: float
    ended: float

    def since(self, at: float) -> float:
        """Returns seconds since the start."""
        return at - self.started

    def set_up(self, axes: Axes) -> None:
        """Gives axes the time of the story, and the fault its shade."""
        axes.axvspan(self.since(self.fault_at), self.since(self.repaired_at), color=FAULT, zorder=0)
        axes.set_xlim(0, self.since(self.ended) + 1)
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)


Points = tuple[list[float], list[float]]


@dataclass(frozen=True, slots=True)
class History:
    """What Prometheus knows about the time of the story."""

    prometheus: Prometheus
    timeline: Timeline

    def series(self, expression: str) -> list[tuple[dict[str, str], Points]]:
        """Returns labels, seconds since the start, and values of each series; points without a number are left out."""
        found = self.prometheus.query_range(expression, self.timeline.started, self.timeline.ended)
        return [
            (labels, ([self.timeline.since(at) for at, one in points], [one for _, one in points]))
            for labels, points in found
        ]


def draw(running: Stack, timeline: Timeline, speed: int) -> Figure:
    """Draws loss, accuracy, drift and alerts, one below the other."""
    history = History(running.prometheus, timeline)
    figure = Figure(figsize=(8.6, 8.8), facecolor="white")  # readable on a dark page, too
    panels: Sequence[Axes] = figure.subplots(4, 1, sharex=True, height_ratios=[3, 2, 2, 2])
    figure.subplots_adjust(left=0.1, right=0.97, top=0.93, bottom=0.07, hspace=0.28)
    figure.suptitle("A mobile app crops its photos wrongly, and somebody is told", fontsize=11, fontweight="bold")
    for axes in panels:
        timeline.set_up(axes)
    _draw_loss(panels[0], history, speed)
    _draw_accuracy(panels[1], history)
    _draw_drift(panels[2], history)
    _draw_alerts(panels[3], history, running)
    panels[3].set_xlabel(f"seconds; the rules run {speed} times faster than in earnest")
    for axes in panels[:2]:
        axes.legend(loc="upper left" if axes is panels[0] else "lower left", fontsize=8, frameon=False)
    panels[0].text(
        timeline.since(timeline.fault_at) + 1, 0.9, "fault", transform=panels[0].get_xaxis_transform(), color=COLORS[1]
    )
    return figure


def save(figure: Figure, file: Path) -> None:
    """Writes a picture as SVG; its text stays text."""
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "losseval", "font.sans-serif": FONTS}):
        figure.savefig(file, format="svg", metadata={"Date": None})


def _draw_loss(axes: Axes, history: History, speed: int) -> None:
    axes.set_title("Mean loss of the window (nats)", fontsize=9, loc="left")
    by_segment = quickened(
        f'sum by (segment) (increase(losseval_segment_loss_nats_total{{model="{MODEL}"}}[15m]))'
        f' / (sum by (segment) (increase(losseval_segment_samples_total{{model="{MODEL}"}}[15m])) > 0)',
        speed,
    )
    _draw_line(axes, history, f"losseval:nll_mean:window{PAIR}", name="all samples", color=COLORS[0])
    for color, (labels, points) in zip(COLORS[1:], history.series(by_segment), strict=False):
        if points[0]:
            axes.plot(*points, color=color, linewidth=1, label=f"segment {labels['segment']}")
    _draw_line(axes, history, f"losseval:baseline_mean:nats{PAIR}", name="baseline", color=BASELINE, style="--")
    axes.set_ylim(bottom=0)


def _draw_accuracy(axes: Axes, history: History) -> None:
    axes.set_title("Accuracy of the window", fontsize=9, loc="left")
    _draw_line(axes, history, f"losseval:accuracy:window{PAIR}", name="all samples", color=COLORS[0])
    _draw_line(axes, history, f"losseval:baseline_accuracy:ratio{PAIR}", name="baseline", color=BASELINE, style="--")
    axes.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1, decimals=0))


def _draw_drift(axes: Axes, history: History) -> None:
    found = _DRIFT_BOUND.search((RULES / "models.yml").read_text(encoding="utf-8"))
    axes.set_title(
        "Drift: standard errors from the baseline (grey: what the rule takes for chance)", fontsize=9, loc="left"
    )
    if found:
        axes.axhspan(-float(found[1]), float(found[1]), color=GRID, zorder=0)
    _draw_line(axes, history, f"losseval:drift:z{PAIR}", name="", color=COLORS[0])


def _draw_line(  # noqa: PLR0913 - options by name
    axes: Axes, history: History, expression: str, *, name: str, color: str, style: str = "-"
) -> None:
    for _, points in history.series(expression):
        axes.plot(*points, color=color, linestyle=style, linewidth=1.8 if style == "-" else 1.2, label=name)


def _draw_alerts(axes: Axes, history: History, running: Stack) -> None:
    axes.set_title("Alerts in Prometheus, and what the receiver got from Alertmanager", fontsize=9, loc="left")
    found = history.series(f'ALERTS{{model="{MODEL}"}}')
    firing = {labels["alertname"] for labels, _ in found if labels["alertstate"] == "firing"}
    names = sorted(firing | {one.name for one in running.receiver.alerts}, reverse=True)
    axes.set_ylim(-0.7, len(names) - 0.3)
    axes.set_yticks([])
    axes.grid(visible=False)
    for labels, (times, _) in found:
        if labels["alertname"] in names:
            color = _STATES[labels["alertstate"]]
            axes.broken_barh(list(_spans(times)), (names.index(labels["alertname"]) - 0.3, 0.6), color=color)
    for status, marker in _MARKERS.items():
        received = [one for one in running.receiver.alerts if one.status == status]
        across = [history.timeline.since(one.received_at) for one in received]
        axes.plot(across, [names.index(one.name) for one in received], marker, color=INK, label=f"received: {status}")
    for state, color in _STATES.items():
        axes.bar([0], [0], color=color, label=state)
    axes.legend(loc="center left", bbox_to_anchor=(0.15, 0.5), fontsize=8, frameon=False)
    for height, name in enumerate(names):
        axes.text(0.5, height, name.removeprefix("Losseval"), va="center", fontsize=8, color=INK)


def _spans(times: Sequence[float], step: float = 1.0) -> Iterator[tuple[float, float]]:
    """Yields start and length of each stretch without a gap."""
    start = 0
    for index in range(1, len(times) + 1):
        if index == len(times) or times[index] - times[index - 1] > 1.5 * step:
            yield times[start], times[index - 1] - times[start] + step
            start = index
