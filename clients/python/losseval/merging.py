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
    parts: Sequence[CrossEntropyResult], *, reduction: str | None = None, out: Mapping[str, Array] | None = None
) -> CrossEntropyResult:
    """Merges the results of consecutive rows, at least one.

    Args:
        parts: In order. Their request ids are taken to differ behind a full stop.
        reduction: Of the whole; the mean by default.
        out: Outputs that are not in the parts because they are together already.
    """
    is_mean, first = reduction in {None, "mean"}, parts[0]
    loss_sum, normalizer = (math.fsum(getattr(part, name) for part in parts) for name in ("loss_sum", "normalizer"))
    count, ignored = sum(part.count for part in parts), sum(part.ignored for part in parts)
    arrays = [name for name, value in first.outputs.items() if isinstance(value, np.ndarray)]
    outputs: dict[str, Any] = {name: np.concatenate([part.outputs[name] for part in parts]) for name in arrays}
    outputs |= out or {}
    if is_mean and normalizer and "gradients" in outputs:
        np.divide(outputs["gradients"], normalizer, out=outputs["gradients"])
    if "loss" in first.outputs:
        mean = loss_sum / normalizer if normalizer else math.nan
        outputs["loss"] = mean if is_mean else loss_sum
    if "summary" in first.outputs:
        outputs["summary"] = _merge_summaries([part for part in parts if part.count] or [first])
    warnings = _merge_warnings(parts)
    if is_mean and not normalizer:
        detail = "No sample counts: the mean is NaN and the gradients are 0."
        warnings.append(EvaluationWarning("all_ignored", detail, count + ignored, [*range(min(count + ignored, _LISTED))]))
    request_id = first.meta.request_id.partition(".")[0]
    meta = first.meta._replace(request_id=request_id, server_timing="", attempts=sum(part.meta.attempts for part in parts))
    labels = [part.labels for part in parts if part.labels is not None]
    return CrossEntropyResult(
        outputs, loss_sum, normalizer, count, ignored, tuple(warnings), meta,
        labels=np.concatenate(labels) if labels else None, ignore_index=first.ignore_index,
    )


def _merge_warnings(parts: Sequence[CrossEntropyResult]) -> list[EvaluationWarning]:
    merged: dict[str, EvaluationWarning] = {}
    start = 0
    for part in parts:
        for code, detail, count, first in part.warnings:
            before = merged.get(code, EvaluationWarning(code, detail, 0, ()))
            places = [*before.first, *(start + index for index in first)][:_LISTED]
            merged[code] = before._replace(count=before.count + count, first=places)
        start += part.count + part.ignored
    # One of them speaks of every row.
    return [one for code, one in merged.items() if code != "logits_look_like_probabilities" or one.count == start]


def _merge_summaries(parts: Sequence[CrossEntropyResult]) -> dict[str, Any]:
    keys = parts[0].summary
    counts = np.array([part.count for part in parts], dtype=np.float64)
    total = counts.sum()
    with np.errstate(all="ignore"):  # NaN is an answer here
        merged: dict[str, Any] = {}
        for name in keys:
            column = [part.summary[name] for part in parts]
            if name in _MEANS:
                merged[name] = float(counts @ np.array(column) / total)
            elif isinstance(keys[name], dict):
                merged[name] = {key: sum(one[key] for one in column) for key in keys[name]}
            else:
                merged[name] = column[0]
        mean, uniform = merged["mean_nll"], merged["baseline_uniform"]
        # Variance within the parts, of which one row has none, and between them.
        within = [part.count * (part.count - 1) * part.summary["standard_error"] ** 2 for part in parts if part.count > 1]
        between = counts @ (np.array([part.summary["mean_nll"] for part in parts]) - mean) ** 2
        merged["standard_error"] = float(np.sqrt((sum(within) + between) / (total * (total - 1))))
        merged["perplexity"] = float(np.exp(mean))
        merged["skill"] = 1 - mean / uniform if uniform else math.nan
        frequencies = sum(part.label_counts for part in parts) / total
        present = frequencies[frequencies != 0]
        merged["baseline_prior"] = float(-(present * np.log(present)).sum())
        tally = merged["calibration"]
        error = np.abs(tally["confidence_sum"] - tally["correct"]).sum() / tally["count"].sum()
        merged["expected_calibration_error"] = float(error)
    return merged
