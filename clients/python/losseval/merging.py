"""Answers of parts, evaluated under `sum` or `none`, made into the answer of the whole. Pure."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .arrays import Array
from .results import CrossEntropyResult, EvaluationWarning

_MEANS = ("accuracy", "top5_accuracy", "mean_nll", "label_entropy", "kl_divergence")
_LISTED = 10


def merge(
    parts: Sequence[CrossEntropyResult], *, reduction: str = "mean", out: Mapping[str, Array] | None = None
) -> CrossEntropyResult:
    """Merges the results of consecutive rows, at least one; their request ids differ behind a full stop.

    Args:
        parts: In order.
        reduction: Of the whole.
        out: Outputs that are not in the parts because they are together already.
    """
    first, is_mean = parts[0], reduction == "mean"
    loss_sum, normalizer = (math.fsum(getattr(part, name) for part in parts) for name in ("loss_sum", "normalizer"))
    count, ignored = (sum(getattr(part, name) for part in parts) for name in ("count", "ignored"))
    arrays = [name for name, value in first.outputs.items() if isinstance(value, np.ndarray)]
    outputs: dict[str, Any] = {name: np.concatenate([part.outputs[name] for part in parts]) for name in arrays}
    outputs |= out or {}
    if is_mean and normalizer and "gradients" in outputs:
        np.divide(outputs["gradients"], normalizer, out=outputs["gradients"])
    if "loss" in first.outputs:
        outputs["loss"] = (loss_sum / normalizer if normalizer else math.nan) if is_mean else loss_sum
    if "summary" in first.outputs:
        outputs["summary"] = _merge_summaries([part for part in parts if part.count] or [first])
    warnings = _merge_warnings(parts)
    if is_mean and not normalizer:
        detail, rows = "No sample counts: the mean is NaN and the gradients are 0.", range(count + ignored)
        warnings.append(EvaluationWarning("all_ignored", detail, len(rows), rows[:_LISTED]))
    request_id, attempts = first.meta.request_id.rpartition(".")[0], sum(part.meta.attempts for part in parts)
    meta = first.meta._replace(request_id=request_id, server_timing="", attempts=attempts)
    found = [part.labels for part in parts if part.labels is not None]
    labels = np.concatenate(found) if found else None
    sums = (loss_sum, normalizer, count, ignored)
    return CrossEntropyResult(outputs, *sums, tuple(warnings), meta, labels, ignore_index=first.ignore_index)


def _merge_warnings(parts: Sequence[CrossEntropyResult]) -> list[EvaluationWarning]:
    merged: dict[str, EvaluationWarning] = {}
    start = 0
    for part in parts:
        for new in part.warnings:
            old = merged.get(new.code, EvaluationWarning(new.code, new.detail, 0, ()))
            places = [*old.first, *(start + index for index in new.first)][:_LISTED]
            merged[new.code] = EvaluationWarning(new.code, new.detail, old.count + new.count, places)
        start += part.count + part.ignored
    # One of them speaks of every row.
    return [one for code, one in merged.items() if code != "logits_look_like_probabilities" or one.count == start]


def _merge_summaries(parts: Sequence[CrossEntropyResult]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    counts = np.array([part.count for part in parts], dtype=np.float64)
    total = counts.sum()
    with np.errstate(all="ignore"):  # NaN is an answer here
        for name, value in parts[0].summary.items():
            column = [part.summary[name] for part in parts]
            if name in _MEANS:
                merged[name] = float(counts @ np.array(column) / total)
            else:  # tallies add up; the other figures are made anew below
                is_tally = isinstance(value, dict)
                merged[name] = {key: sum(one[key] for one in column) for key in value} if is_tally else value
        mean, uniform, tally = merged["mean_nll"], merged["baseline_uniform"], merged["calibration"]
        # Squared distances from the mean: within the parts, where a single row has none, and between them.
        errors, means = (np.array([part.summary[name] for part in parts]) for name in ("standard_error", "mean_nll"))
        within = np.where(counts > 1, errors**2 * counts * (counts - 1), 0).sum()
        spread = within + counts @ (means - mean) ** 2
        frequencies = sum(part.label_counts for part in parts if part.label_counts is not None) / total
        present = frequencies[frequencies != 0]
        misses = np.abs(tally["confidence_sum"] - tally["correct"]).sum()
        return merged | {
            "standard_error": float(np.sqrt(spread / (total * (total - 1)))),
            "perplexity": float(np.exp(mean)),
            "baseline_prior": float(-(present * np.log(present)).sum()) + 0.0,
            "skill": 1 - mean / uniform if uniform else math.nan,
            "expected_calibration_error": float(misses / tally["count"].sum()),
        }
