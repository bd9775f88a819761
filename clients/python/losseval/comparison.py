"""Two results beside each other: sample by sample where they are of the same samples, else mean against mean."""

import dataclasses
import math
from typing import Literal

import numpy as np

from .arrays import Array
from .results import CrossEntropyResult


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How much larger the losses of b are than those of a; samples ignored in either are left out.

    Attributes:
        kind: `paired`, of the same samples; `gap`, of two data sets, e.g. training and validation.
        difference: Mean of b minus mean of a; below 0, b is better.
        standard_error: Of the difference; NaN for a single sample.
        interval: The 95 % interval of the difference (normal).
        count: Pairs, or samples of both.
        win_rate: Share of the pairs in which b is better, ties as halves; NaN for a gap.
        regressions: The ten pairs that grew most, in columns `id`, `a`, `b`; empty for a gap.
    """

    kind: Literal["paired", "gap"]
    difference: float
    standard_error: float
    interval: tuple[float, float]
    count: int
    win_rate: float
    regressions: dict[str, Array]


def compare(a: CrossEntropyResult, b: CrossEntropyResult) -> Comparison:
    """Compares the `nll` of two results, `losses` where not both have it.

    Samples are paired by id if both results have ids, else by position if their lengths match; where nothing pairs, the
    result is the gap between the means.
    """
    column = "nll" if "nll" in a.outputs and "nll" in b.outputs else "losses"
    rows_a, rows_b = a.kept(), b.kept()
    losses_a, losses_b = (np.ravel(one.outputs[column]).astype(np.float64) for one in (a, b))
    if a.ids is not None and b.ids is not None:
        ids, in_a, in_b = np.intersect1d(np.asarray(a.ids)[rows_a], np.asarray(b.ids)[rows_b], return_indices=True)
        rows_a, rows_b = (rows_a[in_a], rows_b[in_b]) if ids.size else (rows_a, rows_b)
    else:
        ids = np.intersect1d(rows_a, rows_b) if losses_a.size == losses_b.size else np.arange(0)
        rows_a, rows_b = (ids, ids) if ids.size else (rows_a, rows_b)
    losses_a, losses_b = losses_a[rows_a], losses_b[rows_b]
    if not ids.size:
        error = math.hypot(_standard_error(losses_a), _standard_error(losses_b))
        difference = float(losses_b.mean() - losses_a.mean())
        return _comparison("gap", difference, error, losses_a.size + losses_b.size)
    change = losses_b - losses_a
    worst = np.argsort(-change, kind="stable")[:10]
    wins = float(np.mean(change < 0) + np.mean(change == 0) / 2)
    regressions = {"id": ids[worst], "a": losses_a[worst], "b": losses_b[worst]}
    return _comparison("paired", float(change.mean()), _standard_error(change), ids.size, wins, regressions)


def _comparison(
    kind: Literal["paired", "gap"],
    difference: float,
    error: float,
    count: int,
    win_rate: float = math.nan,
    regressions: dict[str, Array] | None = None,
) -> Comparison:
    interval = (difference - 1.96 * error, difference + 1.96 * error)
    return Comparison(kind, difference, error, interval, count, win_rate, regressions or {})


def _standard_error(values: Array) -> float:
    return float(values.std(ddof=1) / math.sqrt(values.size)) if values.size > 1 else math.nan
