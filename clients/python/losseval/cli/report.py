"""What is shown: rich tables on a terminal, tabs in a pipe, or JSON; messages and progress on standard error."""

import contextlib
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from shutil import get_terminal_size
from typing import IO, Any

import numpy as np

from ..arrays import Array
from ..results import CrossEntropyResult

_SUMMARY: tuple[str, ...] = ("mean_nll", "standard_error", "perplexity", "accuracy", "top5_accuracy", "skill")
_SUMMARY += ("expected_calibration_error", "baseline_uniform", "baseline_prior", "label_entropy", "kl_divergence")


def to_plain(value: Any) -> Any:  # noqa: ANN401 - whatever results hold
    """Makes JSON's values of arrays, and the service's strings of the numbers that JSON doesn't have."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {name: to_plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [to_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def show_json(document: Mapping[str, Any]) -> None:
    """Prints a JSON document."""
    print(json.dumps(to_plain(document), default=str, ensure_ascii=False))


def show_result(
    result: CrossEntropyResult, worst: Mapping[str, Array], *, has_classes: bool, as_json: bool, is_complete: bool
) -> None:
    """Prints the numbers, the worst samples, and the classes if they are wanted and known; warnings beside it."""
    numbers = {name: getattr(result, name) for name in ("loss", "loss_sum", "normalizer", "count", "ignored")}
    known = {name: result.summary[name] for name in _SUMMARY if name in result.summary}
    for warning in result.warnings:
        print(f"warning: {warning.detail}", file=sys.stderr)
    if not is_complete:
        print(f"stopped: this is of the first {result.count + result.ignored:,} samples", file=sys.stderr)
    if as_json:
        warnings = [dataclasses.asdict(warning) for warning in result.warnings]
        rest = {"summary": result.summary, "warnings": warnings, "top": worst, "is_complete": is_complete}
        show_json({**numbers, **rest})
        return
    show_pairs(numbers | known)
    if worst:
        show_table(worst, "Largest nll")
    if has_classes and (classes := result.summary.get("per_class")):
        with np.errstate(all="ignore"):
            means = {"nll": classes["nll_sum"] / classes["count"], "accuracy": classes["correct"] / classes["count"]}
        show_table({"class": range(len(means["nll"])), "samples": classes["count"], **means}, "Classes")


def show_pairs(pairs: Mapping[str, object]) -> None:
    """Prints names and values."""
    show_table({"": [*pairs], " ": [*pairs.values()]})


def show_table(columns: Mapping[str, Iterable[object]], title: str = "") -> None:
    """Prints columns of equal lengths, with a header if there is a title."""
    is_float = (float, np.floating)
    cells = [[f"{cell:.6g}" if isinstance(cell, is_float) else str(cell) for cell in one] for one in columns.values()]
    rows = [*zip(*cells, strict=True)]
    if not sys.stdout or not sys.stdout.isatty():  # None where it was closed
        print("\n".join(["\n" + "\t".join(columns)] * bool(title) + ["\t".join(row) for row in rows]))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    title, style = (f"\n{title}", box.SIMPLE) if title else ("", None)
    table = Table(title=title, title_justify="left", show_header=bool(title), box=style)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", style="" if number else "cyan")
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)


def count_losses(nll: Array) -> tuple[Array, Array]:
    """Returns the edges of at most twenty logarithmic bins, and how many losses are in each; less than 1e-6 is that."""
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


def draw_histogram(nll: Array, file: IO[bytes], kind: str) -> None:
    """Writes a picture."""
    from matplotlib.figure import Figure

    edges, counts = count_losses(nll)
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.stairs(counts, edges, fill=True)
    axes.set(xscale="log", xlabel="nll", ylabel="samples")
    figure.savefig(file, format=kind, dpi=150)


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[float | None, int, float], None]]:
    """Shows the share, samples a second, the time left and the mean; nothing unless standard error is a terminal."""
    if not sys.stderr or not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as progress:
        task, start = progress.add_task("", total=None), time.monotonic()

        def show(share: float | None, samples: int, mean: float) -> None:
            text = f"{samples:,} samples, {samples / (time.monotonic() - start):,.0f}/s, mean {mean:.4f}"
            progress.update(task, completed=share, total=share and 1, description=text)

        yield show
