"""The summary of a request: plain figures (no weights, no smoothing) over the rows that are not ignored.

Sums stand beside ratios, so that the summaries of parts can be merged.
"""

import math
from collections.abc import Mapping

import numpy as np

from ..dtypes import Array
from .evaluation import Evaluation
from .samples import CALIBRATION_BINS, Samples, calibration_bins

TOP = 5
MAX_CLASSES_LISTED = 1000


def summarize(evaluation: Evaluation, rows: Mapping[str, Array]) -> dict[str, object]:
    """Computes accuracy, mean nll and its error, baselines, skill and calibration.

    Expected calibration error: Guo et al. 2017, ten right-closed bins. What does not apply is absent; what is
    undefined (no rows, a single class) is NaN.
    """
    kept = slice(None) if evaluation.ignored is None else ~evaluation.ignored
    samples = Samples.of([evaluation], rows)[kept]
    nll, target, correct = samples.nll, samples.target, samples.is_correct
    uniform = math.log(evaluation.classes)
    mean = _mean(nll)
    summary: dict[str, object] = {"accuracy": _mean(correct)}
    if evaluation.classes > TOP:
        summary["top5_accuracy"] = _mean((rows["rank"][kept] < TOP) & np.isfinite(rows["maximum"][kept]))
    summary |= {
        "mean_nll": mean,
        "standard_error": float(nll.std(ddof=1) / math.sqrt(nll.size)) if nll.size > 1 else math.nan,
        "perplexity": float(np.exp(mean)),
        "baseline_uniform": uniform,
        "baseline_prior": _entropy(_label_frequencies(evaluation, target, kept)),
        "skill": 1 - mean / uniform if uniform else math.nan,
    }
    summary |= _calibration(samples.confidence, correct)
    if evaluation.classes <= MAX_CLASSES_LISTED:
        summary["per_class"] = {
            "count": _tally(target, None, evaluation.classes),
            "nll_sum": _tally(target, nll, evaluation.classes),
            "correct": _tally(target, correct, evaluation.classes),
        }
    if not evaluation.has_index_labels:
        label_entropy = rows["label_entropy"].astype(np.float64)
        summary["label_entropy"] = _mean(label_entropy)
        summary["kl_divergence"] = _mean(nll - label_entropy)
    return summary


def _calibration(confidence: Array, correct: Array) -> dict[str, object]:
    known = np.isfinite(confidence)
    bins = calibration_bins(confidence[known])
    count = _tally(bins, None, CALIBRATION_BINS)
    confidence_sum = _tally(bins, confidence[known], CALIBRATION_BINS)
    hits = _tally(bins, correct[known], CALIBRATION_BINS)
    total = int(count.sum())
    error = float(np.abs(confidence_sum - hits).sum() / total) if total else math.nan
    return {
        "expected_calibration_error": error,
        "calibration": {"count": count, "confidence_sum": confidence_sum, "correct": hits},
    }


def _label_frequencies(evaluation: Evaluation, target: Array, kept: Array | slice) -> Array:
    if evaluation.has_index_labels:
        return np.bincount(target, minlength=evaluation.classes) / max(target.size, 1)
    total: Array = evaluation.labels[kept].sum(axis=0, dtype=np.float64)
    return total / max(evaluation.rows, 1)


def _entropy(frequencies: Array) -> float:
    if not frequencies.sum():
        return math.nan
    present = frequencies[frequencies != 0]
    return float(-(present * np.log(present)).sum()) + 0.0


def _tally(target: Array, weights: Array | None, classes: int) -> Array:
    tallied = np.bincount(target, weights=weights, minlength=classes)
    # Of nothing, bincount makes integers whatever the weights are.
    return tallied.astype(np.int64 if weights is None or weights.dtype == bool else np.float64)


def _mean(values: Array) -> float:
    return float(values.mean(dtype=np.float64)) if values.size else math.nan
