"""From the kernel's rows to what one request asked for: sums, means, shapes and warnings."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..dtypes import Array
from .diagnostics import summarize
from .evaluation import Evaluation, Warning_, from_rows

PER_SAMPLE = ("losses", "nll", "logsumexp", "entropy", "margin", "gradient_norm")
_FEW = 64
"""So many numbers are added in Python before numpy has begun."""
_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
ZERO_WHERE_IGNORED = ("nll", "margin", "gradient_norm")


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one request: values by the names of the contract.

    `count` is the number of samples not ignored. `values` holds floats and integers, arrays, and for `summary` a
    mapping; `loss` is float64 and absent under `reduction=none`.
    """

    values: dict[str, object]
    count: int
    warnings: tuple[Warning_, ...]


def reduce(evaluation: Evaluation, rows: Mapping[str, Array]) -> Answer:
    """Assembles the answer from the rows the kernel computed for this request.

    Args:
        evaluation: The validated request.
        rows: The kernel's outputs of its rows alone.
    """
    options, ignored = evaluation.options, evaluation.ignored
    loss_sum = _total(rows["losses"])
    ignored_count = 0 if ignored is None else int(np.count_nonzero(ignored))
    values: dict[str, object] = {}
    if "loss" in options.include and options.reduction != "none":
        values["loss"] = loss_sum if options.reduction == "sum" else _ratio(loss_sum, evaluation.weighting.normalizer)
    values |= {
        "loss_sum": loss_sum,
        "normalizer": evaluation.weighting.normalizer,
        "count": evaluation.rows - ignored_count,
        "ignored": ignored_count,
    }
    for name in options.include:
        if name == "summary":
            with np.errstate(all="ignore"):  # NaN and infinity are answers here
                values[name] = summarize(evaluation, rows)
        elif name != "loss":
            values[name] = _shaped(name, rows[name], evaluation)
    return Answer(values, evaluation.rows - ignored_count, evaluation.warnings + _warnings(evaluation, rows, loss_sum))


def _total(losses: Array) -> float:
    """Returns the sum in float64, by a way that depends on the number of rows alone."""
    if losses.size <= _FEW:
        return float(sum(losses.tolist()))
    with np.errstate(all="ignore"):
        return float(losses.sum(dtype=np.float64))


def _ratio(loss_sum: float, normalizer: float) -> float:
    return loss_sum / normalizer if normalizer else float("nan")


def _shaped(name: str, rows: Array, evaluation: Evaluation) -> Array:
    if name in {"gradients", "probabilities"}:
        return from_rows(rows, evaluation.shape, evaluation.options.class_axis)
    if name in ZERO_WHERE_IGNORED and evaluation.ignored is not None:
        rows = np.where(evaluation.ignored, 0, rows)
    if name in PER_SAMPLE:
        rows = _narrowed(rows, evaluation)
    return rows if len(evaluation.shape) == 2 else rows.reshape(evaluation.sample_shape)  # noqa: PLR2004 - (N, C)


def _narrowed(rows: Array, evaluation: Evaluation) -> Array:
    """Returns an output of one number a sample in the dtype it has on the wire; what is too large becomes infinite."""
    dtype = np.float64 if evaluation.logits.dtype == np.float64 else np.float32
    if rows.dtype == dtype:
        return rows
    with np.errstate(over="ignore"):
        return rows.astype(dtype)


def _warnings(evaluation: Evaluation, rows: Mapping[str, Array], loss_sum: float) -> tuple[Warning_, ...]:
    found = []
    # A finite sum has finite terms, and only those come from finite logits; beyond float32 they may become infinite.
    if not abs(loss_sum) < _LARGEST_FLOAT32:
        weight = evaluation.weighting.row_weight
        bad_logits = ~np.isfinite(rows["maximum"]) & (True if weight is None else weight != 0)
        bad_losses = ~np.isfinite(_narrowed(rows["losses"], evaluation))
        if bad_logits.any():
            detail = "Rows hold NaN, +Infinity or nothing but -Infinity; their losses and gradients are NaN."
            found.append(Warning_.of("nonfinite_logits", detail, bad_logits))
        if bad_losses.any():
            found.append(Warning_.of("nonfinite_loss", "Losses are NaN or infinite.", bad_losses))
    if evaluation.weighting.normalizer == 0 and evaluation.options.reduction == "mean":
        detail = "No sample counts (all ignored, or all weights are 0): the mean is NaN and the gradients are 0."
        found.append(Warning_.of("all_ignored", detail, np.ones(evaluation.rows, dtype=bool)))
    return tuple(found)
