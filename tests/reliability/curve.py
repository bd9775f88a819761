"""Measures and draws the curve of docs/operations.md: `python -m tests.reliability.curve docs/overload.svg`.

The device takes 5 ms for every request, as in the scenarios, so that a generator in Python can offer ten times the
peak. Beside the service stands the same one without a bound on its queue, which is what most servers are.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.reliability.load import offer, saturate
from tests.reliability.replicas import GOLDEN_BODY, serving
from tests.reliability.test_overload import MAX_QUEUE_S

MULTIPLES: Final = (0.25, 0.5, 0.9, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)
UNBOUNDED: Final = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
"""Beyond, it answers nobody in time, and memory is all that grows."""
SECONDS: Final = 4.0
TRIES: Final = 2
LATE_S: Final = 2.0
"""An answer later than that is worth nothing to its caller."""
_BOUNDED, _UNBOUNDED, _INK, _GRID = "#1f5fa8", "#c2570c", "#333333", "#d8d8d8"
_FONTS: Final = ["DejaVu Sans", "Verdana", "Arial"]


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    """What became of an offered load; rates are multiples of the peak."""

    offered: float
    goodput: float
    p99_s: float
    refused: float
    late: float


def measure(multiples: Sequence[float], **settings: Any) -> list[Point]:
    """Measures one curve: of two tries of each point, that in which the generator was less late."""
    points = []
    for times in multiples:
        tries = []
        for _ in range(TRIES):
            with serving("fixed_device", is_unharmed=False, max_batch_requests=1, **settings) as replica:
                peak = saturate(replica.port, GOLDEN_BODY, connections=16, seconds=1.5).requests_per_s
                load: dict[str, Any] = {"rate": times * peak, "seconds": SECONDS, "useful_s": LATE_S, "grace_s": 10.0}
                tries.append((peak, offer(replica.port, GOLDEN_BODY, **load)))
        peak, found = min(tries, key=lambda one: one[1].lag_p99_s)
        refused, late = found.answered("5") / found.sent, (found.late + found.unanswered) / found.sent
        points.append(Point(times, found.goodput_per_s / peak, found.p99_s, refused, late))
        sys.stderr.write(f"{settings} {points[-1]} of a peak of {peak:.0f}/s\n")
    return points


def draw(bounded: Sequence[Point], unbounded: Sequence[Point]) -> Figure:
    """Draws goodput and p99 against the offered load."""
    figure = Figure(figsize=(9.2, 3.4), facecolor="white")
    left, right = figure.subplots(1, 2)
    for axes, title in ((left, "answers in time, in multiples of the peak"), (right, "p99 of answers, seconds")):
        axes.set_title(title, fontsize=9, fontweight="bold")
        axes.set_xscale("log")
        axes.set_xticks([0.25, 0.5, 1, 2, 5, 10], ["¼", "½", "1", "2", "5", "10"])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("offered load, in multiples of the peak")
        axes.grid(color=_GRID, zorder=0)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    for points, color, name in ((bounded, _BOUNDED, "the service"), (unbounded, _UNBOUNDED, "no bound on its queue")):
        offered = [point.offered for point in points]
        _line(left, offered, [point.goodput for point in points], color, name)
        _line(right, offered, [point.p99_s for point in points], color, name)
    left.set_ylim(0, 1.25)
    right.set_yscale("log")
    right.set_yticks([0.01, 0.1, 1, 10], ["0.01", "0.1", "1", "10"])
    right.axhline(MAX_QUEUE_S, color=_INK, linewidth=1, linestyle=":", zorder=2)
    right.annotate("MAX_QUEUE_MS", (0.25, MAX_QUEUE_S), xytext=(0, 3), textcoords="offset points", color=_INK)
    left.legend(frameon=False, loc="lower left")
    figure.tight_layout()
    return figure


def _line(axes: Axes, x: Sequence[float], y: Sequence[float], color: str, name: str) -> None:
    axes.plot(x, y, color=color, marker="o", markersize=3.5, linewidth=2, label=name, zorder=3)


def main() -> None:
    """Measures and draws; beside the picture, a file of the same name holds the numbers, and is read if it is there."""
    picture = Path(sys.argv[1])
    numbers = picture.with_suffix(".json")
    if not numbers.exists():
        found = {
            "bounded": measure(MULTIPLES),
            "unbounded": measure(UNBOUNDED, max_queue_ms=3_600_000),
        }
        text = json.dumps(
            {name: [dataclasses.asdict(one) for one in points] for name, points in found.items()}, indent=1
        )
        numbers.write_text(text + "\n", encoding="utf-8")
    points = {name: [Point(**one) for one in found] for name, found in json.loads(numbers.read_bytes()).items()}
    with mpl.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "losseval", "font.size": 8, "font.sans-serif": _FONTS}
    ):
        draw(points["bounded"], points["unbounded"]).savefig(picture, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
