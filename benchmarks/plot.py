"""Draws every bar of a run: how far its ratio is from the bar, the better the further to the right."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.report import Bar, number
from benchmarks.results import Results

_HELD, _MISSED, _INK, _GRID = "#1f5fa8", "#c2570c", "#333333", "#d8d8d8"
_WIDTH: Final = 9.2  # inches, as are the next three
_LINE: Final = 0.235
_ABOVE: Final = 0.4
_BELOW: Final = 0.7
_TICKS: Final = (0.1, 0.2, 0.5, 1, 2, 5, 10)
_FONTS: Final = ["DejaVu Sans", "Verdana", "Arial"]


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """A ratio and its bar."""

    what: str
    ratio: float
    bar: Bar
    holds: bool

    @property
    def advantage(self) -> float:
        """How many times better than the bar; below 1 is short of it."""
        return self.ratio / self.bar.limit if self.bar.is_floor else self.bar.limit / self.ratio

    @property
    def is_drawable(self) -> bool:
        """Whether it has a place on a logarithmic axis."""
        return math.isfinite(self.ratio) and self.ratio > 0


def entries(results: Results, section: str) -> Iterator[Entry]:
    """Yields what has a bar on a ratio; the table of accuracy has none."""
    for table in results.sections[section]:
        for line in table.rows:
            if "ratio" in line and line["bar"]:
                yield Entry(str(line["what"]), float(line["ratio"]), Bar.parse(str(line["bar"])), bool(line["holds"]))


def lines(results: Results) -> list[str | Entry]:
    """Returns the lines of the picture: the name of each section, and its entries below it."""
    found: list[str | Entry] = []
    for section in results.sections:
        below = [entry for entry in entries(results, section) if entry.is_drawable]
        found += [section, *below] if below else []
    return found


def draw(results: Results) -> Figure:
    """Draws the picture."""
    content = lines(results)
    height = _ABOVE + _LINE * len(content) + _BELOW
    figure = Figure(figsize=(_WIDTH, height), facecolor="white")  # readable on a dark page, too
    axes = figure.add_axes((0.48, _BELOW / height, 0.38, _LINE * len(content) / height))
    for position, line in enumerate(content):
        if isinstance(line, Entry):
            _draw_entry(axes, position, line)
    _label(axes, content)
    _scale(axes, [line.advantage for line in content if isinstance(line, Entry)])
    axes.set_ylim(len(content) - 0.5, -0.5)
    title = "Every figure against its bar: right of the line it is reached, left of it it falls short"
    figure.text(0.5, 1 - _ABOVE / 2 / height, title, ha="center", va="center", fontsize=10, fontweight="bold")
    figure.text(0.5, 0.1 / height, results.about, ha="center", fontsize=6.5)
    return figure


def save(results: Results, file: Path) -> None:
    """Writes the picture as SVG, the same bytes for the same results."""
    # Text stays text; ids are the same every time.
    # Text stays text, and ids are the same every time.
    with mpl.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "losseval", "font.size": 8, "font.sans-serif": _FONTS}
    ):
        draw(results).savefig(file, format="svg", metadata={"Date": None})


def _draw_entry(axes: Axes, position: int, entry: Entry) -> None:
    color = _HELD if entry.holds else _MISSED
    axes.barh(position, entry.advantage - 1, left=1, height=0.55, color=color, zorder=2)
    axes.annotate(
        f"{number(entry.ratio)}×, bar {entry.bar}",
        (max(1, entry.advantage), position),
        xytext=(4, 0),
        textcoords="offset points",
        va="center_baseline",
        color=color,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},  # no grid line through the text
    )


def _label(axes: Axes, content: Sequence[str | Entry]) -> None:
    texts = [line.what.replace(", against ", " vs ") if isinstance(line, Entry) else line for line in content]
    axes.set_yticks(range(len(content)), texts)
    for line, label in zip(content, axes.get_yticklabels(), strict=True):
        if isinstance(line, str):
            label.set_fontweight("bold")


def _scale(axes: Axes, advantages: Sequence[float]) -> None:
    axes.set_xscale("log")
    low, high = min((0.5, *advantages)) / 1.15, max((2, *advantages)) * 1.15
    ticks = [tick for tick in _TICKS if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(low, high)
    axes.set_xlabel("times as good as the bar asks (logarithmic)")
    axes.grid(axis="x", color=_GRID, zorder=0)
    axes.axvline(1, color=_INK, linewidth=1.2, zorder=3)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
