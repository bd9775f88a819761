"""Two results beside each other: sample by sample where they are of the same samples, else mean against mean."""

import dataclasses
import math
from typing import Literal

import numpy as np

from .arrays import Array
from .results import CrossEntropyResult


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How much larger the losses of b are than those of a; samples ignored in either are left out."""

    kind: Literal["paired", "gap"]  # of the same samples, or of two data sets, e.g. training and validation
    count: int  # pairs, or samples of both
    difference: float  # mean of b minus mean of a; below 0, b is better
    standard_error: float  # of the difference
    win_rate: float = math.nan  # share of the pairs in which b is better, ties as halves
    regressions: dict[str, Array] = dataclasses.field(default_factory=dict)  # ten worst pairs: columns id, a, b

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the difference (normal)."""
        return self.difference - 1.96 * self.standard_error, self.difference + 1.96 * self.standard_error


def compare(a: CrossEntropyResult, b: CrossEntropyResult) -> Comparison:
    """Compares the `nll` of two results, or `losses` where not both have it.

    Samples are paired by id if both results have ids, else by position if their lengths match; where nothing pairs, the
    result is the gap between the means.

    Raises:
        ValueError: The results have no losses in common, or ids that occur twice.
    """
    name = next((name for name in ("nll", "losses") if name in a.outputs and name in b.outputs), None)
    if name is None:
        raise ValueError("the results have neither nll nor losses in common")
    losses_a, losses_b = (np.ravel(one.outputs[name]).astype(np.float64) for one in (a, b))
    rows_a, rows_b = a.kept(), b.kept()
    if a.ids is not None and b.ids is not None:
        keys_a, keys_b = np.asarray(a.ids)[rows_a], np.asarray(b.ids)[rows_b]
    else:
        keys_a, keys_b = rows_a, rows_b if losses_a.size == losses_b.size else rows_b[:0]
    if any(np.unique(keys).size != keys.size for keys in (keys_a, keys_b)):
        raise ValueError("ids occur twice: samples can't be told apart")
    ids, in_a, in_b = np.intersect1d(keys_a, keys_b, return_indices=True)
    if not ids.size:
        losses_a, losses_b = losses_a[rows_a], losses_b[rows_b]
        error = math.hypot(_standard_error(losses_a), _standard_error(losses_b))
        return Comparison("gap", losses_a.size + losses_b.size, float(losses_b.mean() - losses_a.mean()), error)
    losses_a, losses_b = losses_a[rows_a[in_a]], losses_b[rows_b[in_b]]
    with np.errstate(invalid="ignore"):  # infinities that are equal do not differ
        change = np.where(losses_a == losses_b, 0.0, losses_b - losses_a)
    worst = np.argsort(-change, kind="stable")[:10]
    names = ids[worst]
    if (a.ids is None) != (b.ids is None):  # paired by position, and one side knows what is there
        names = np.asarray(b.ids if a.ids is None else a.ids)[names]
    regressions = {"id": names, "a": losses_a[worst], "b": losses_b[worst]}
    win_rate = float(np.mean(change < 0) + np.mean(change == 0) / 2)
    return Comparison("paired", ids.size, float(change.mean()), _standard_error(change), win_rate, regressions)


def _standard_error(values: Array) -> float:
    return float(values.std(ddof=1) / math.sqrt(values.size)) if values.size > 1 else math.nan
