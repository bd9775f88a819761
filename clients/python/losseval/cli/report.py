"""What is shown: rich tables on a terminal, tabs in a pipe, or JSON; messages and progress on standard error."""

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from shutil import get_terminal_size
from typing import Any

import numpy as np

from ..arrays import Array
from ..results import CrossEntropyResult


_SUMMARY = ("mean_nll", "standard_error", "perplexity", "accuracy", "top5_accuracy", "expected_calibration_error")
_SUMMARY += ("skill", "baseline_uniform", "baseline_prior", "label_entropy", "kl_divergence")


def to_plain(value: Any) -> Any:  # noqa: ANN401 - whatever results hold
    """Makes JSON's values of arrays, and the service's strings of the numbers that JSON doesn't have."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {name: to_plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def show_result(result: CrossEntropyResult, worst: Mapping[str, Sequence[object]], *, has_classes: bool) -> None:
    """Prints the numbers, the worst samples if there are any, and the classes if they are wanted and known."""
    summary = result.summary
    known = {name: summary[name] for name in _SUMMARY if name in summary}
    show_table({"": ["loss", "samples", "ignored", *known], " ": [result.loss, result.count, result.ignored, *known.values()]})
    if worst:
        show_table(worst, "Largest nll")
    if has_classes and "per_class" in summary:
        count, nll_sum, correct = (summary["per_class"][name] for name in ("count", "nll_sum", "correct"))
        with np.errstate(all="ignore"):
            means = {"nll": nll_sum / count, "accuracy": correct / count}
        show_table({"class": range(len(count)), "samples": count, **means}, "Classes")


def show_json(document: Mapping[str, Any]) -> None:
    """Prints a JSON document."""
    print(json.dumps(to_plain(document), default=str, ensure_ascii=False))


def show_pairs(pairs: Mapping[str, object]) -> None:
    """Prints names and values."""
    show_table({"": [*pairs], " ": [*pairs.values()]})


def show_table(columns: Mapping[str, Sequence[object]], title: str = "") -> None:
    """Prints columns of equal lengths, with a header if there is a title."""
    rows = [[f"{cell:.6g}" if isinstance(cell, float | np.floating) else str(cell) for cell in row] for row in zip(*columns.values())]
    if not sys.stdout.isatty():
        lines = [["\n" + [*columns][0], *[*columns][1:]], *rows] if title else rows
        print("\n".join("\t".join(line) for line in lines))
        return
    from rich import box  # noqa: PLC0415 - slow
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(*columns, title=title, title_justify="left", show_header=bool(title), box=box.SIMPLE if title else None)
    for number, column in enumerate(table.columns):
        column.justify, column.style = ("right", "") if number else ("left", "cyan")
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)


def count_losses(nll: Array) -> tuple[Array, Array]:
    """Returns the edges of at most twenty logarithmic bins, and how many losses are in each; below 1e-6 counts as that."""
    decades = np.log10(nll[np.isfinite(nll)].clip(1e-6))
    low, high = decades.min(initial=0), decades.max(initial=0)
    width = next(width for width in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1) if high - low <= 18 * width)
    edges = 10 ** (width * np.arange(np.floor(low / width), np.floor(high / width) + 2))
    return edges, np.histogram(10**decades, edges)[0]


def show_histogram(nll: Array) -> None:
    """Prints a bar a bin, beside its lower edge and its count."""
    edges, counts = count_losses(nll)
    print("\n  nll from      samples")
    for edge, count in zip(edges, counts, strict=False):
        whole, eighths = divmod(math.ceil(8 * (get_terminal_size().columns - 24) * count / max(1, counts.max())), 8)
        print(f"{edge:10.3g} {count:12,} {'█' * whole}{' ▏▎▍▌▋▊▉'[eighths]}".rstrip())


def draw_histogram(nll: Array, path: str) -> None:
    """Writes a picture."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow, and an extra

    edges, counts = count_losses(nll)
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.stairs(counts, edges, fill=True)
    axes.set(xscale="log", xlabel="nll", ylabel="samples")
    figure.savefig(path, dpi=150)


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[float | None, int, float], None]]:
    """Shows the share, samples a second, the time left and the mean; nothing unless standard error is a terminal."""
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console  # noqa: PLC0415 - slow
    from rich.progress import Progress  # noqa: PLC0415

    with Progress(console=Console(stderr=True)) as progress:
        task, start = progress.add_task("", total=None), time.monotonic()

        def show(share: float | None, samples: int, mean: float) -> None:
            text = f"{samples:,} samples, {samples / (time.monotonic() - start):,.0f}/s, mean {mean:.4f}"
            progress.update(task, completed=share, total=share and 1, description=text)

        yield show
