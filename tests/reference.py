"""Cross-entropy as a textbook writes it: the oracle of the conformance tests.

Numpy in extended precision, one formula for index and probability labels, no code shared with
the service. Every term that is summed is non-negative (for non-negative labels), so that nothing
cancels and confident rows keep all their digits.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Wide = np.longdouble
Array = NDArray[Any]

_QUIET = np.errstate(divide="ignore", over="ignore", under="ignore", invalid="ignore")


@dataclass(frozen=True, slots=True)
class Softmax:
    """Distribution of each row; shapes (R, C) and, for the log of the normalizer, (R, 1)."""

    scaled: Array  # u = x / T
    probability: Array
    complement: Array  # 1 - probability, never formed by subtracting from 1
    surprisal: Array  # -ln probability
    logsumexp: Array


@dataclass(frozen=True, slots=True)
class Targets:
    """Labels of R rows in one form for both kinds."""

    probability: Array  # (R, C); one-hot for index labels, zeros in ignored rows
    label: NDArray[np.int64]  # (R,); the likeliest class for probability labels
    valid: NDArray[np.bool_]  # (R,)
    is_index: bool


@dataclass(frozen=True, slots=True)
class Result:
    """Everything the contract can return, in extended precision."""

    loss: Any
    loss_sum: Any
    normalizer: Any
    count: int
    ignored: int
    losses: Array
    gradients: Array
    nll: Array
    probabilities: Array
    logsumexp: Array
    entropy: Array
    margin: Array
    gradient_norm: Array
    predictions: Array
    coefficient: Array  # S of each row, what the gradient bar is measured in
    scale: Array  # factor between the gradient of a row and the gradient returned
    summary: dict[str, Any]


def as_rows(values: ArrayLike, class_axis: int = 1) -> Array:
    """Move (C), (N, C, d1…dk) or (N, d1…dk, C) to (R, C)."""
    wide = np.asarray(values, dtype=Wide)
    if wide.ndim == 1:
        return wide[None, :]
    moved = np.moveaxis(wide, class_axis, -1)
    return np.asarray(moved.reshape(-1, moved.shape[-1]))


def from_rows(rows: Array, shape: tuple[int, ...], class_axis: int = 1) -> Array:
    """Undo `as_rows`."""
    if len(shape) == 1:
        return np.asarray(rows[0])
    moved_shape = np.moveaxis(np.empty(shape, np.int8), class_axis, -1).shape
    values: Array = np.moveaxis(rows.reshape(moved_shape), -1, class_axis)
    return values


def sum_of_others(values: Array) -> Array:
    """Sum each row without the element itself; the largest is left out, not subtracted."""
    rows = np.arange(len(values))
    largest = values.argmax(axis=1)
    remaining = values.copy()
    remaining[rows, largest] = 0
    others = values.sum(axis=1, keepdims=True) - values
    others[rows, largest] = remaining.sum(axis=1)
    return np.asarray(others)


@_QUIET
def softmax(logits: Array, temperature: float) -> Softmax:
    """Softmax of (R, C) rows; rows whose maximum is not finite are NaN throughout."""
    top = logits.max(axis=1, keepdims=True)
    distance = (logits - top) / Wide(temperature)
    exponential = np.where(np.isfinite(top), np.exp(distance), np.nan)
    others = sum_of_others(exponential)
    tail = np.take_along_axis(others, exponential.argmax(axis=1)[:, None], axis=1)
    log_total = np.log1p(tail)
    return Softmax(
        scaled=logits / Wide(temperature),
        probability=exponential / (1 + tail),
        complement=others / (1 + tail),
        surprisal=log_total - distance,
        logsumexp=top / Wide(temperature) + log_total,
    )


def read_labels(labels: ArrayLike, shape: tuple[int, ...], class_axis: int, ignore_index: int) -> Targets:
    """Index labels become one-hot rows; labels of the logits' rank are probabilities."""
    given = np.asarray(labels)
    if given.ndim == len(shape):
        probability = as_rows(given, class_axis)
        everything = np.ones(len(probability), np.bool_)
        return Targets(probability, probability.argmax(axis=1), everything, is_index=False)
    label = given.reshape(-1).astype(np.int64)
    valid = label != ignore_index
    classes = shape[0] if len(shape) == 1 else shape[class_axis]
    probability = np.zeros((len(label), classes), Wide)
    probability[valid, label[valid]] = 1
    return Targets(probability, np.where(valid, label, 0), valid, is_index=True)


def weighted_sum(coefficient: Array, values: Array) -> Array:
    """Σ coefficient · values over the classes; a coefficient of 0 beats any value."""
    total: Array = np.where(coefficient == 0, 0, coefficient * values).sum(axis=1)
    return total


@_QUIET
def losses_and_gradients(distribution: Softmax, coefficient: Array, z_loss: float) -> tuple[Array, Array]:
    """Loss and ∂loss/∂u of each row: Σ a (L - u) + ζ L², and S q - a + 2 ζ L q."""
    loss = weighted_sum(coefficient, distribution.surprisal)
    gradient = distribution.probability * sum_of_others(coefficient) - coefficient * distribution.complement
    if z_loss:
        loss = loss + Wide(z_loss) * distribution.logsumexp[:, 0] ** 2
        gradient = gradient + 2 * Wide(z_loss) * distribution.logsumexp * distribution.probability
    defined = np.isfinite(distribution.logsumexp)
    return np.where(defined[:, 0], loss, np.nan), np.where(defined, gradient, np.nan)


def margin_of(scaled: Array, label: Array) -> Array:
    """Logit of the label minus the best of the others; +inf for a single class."""
    rows = np.arange(len(scaled))
    rivals = scaled.copy()
    rivals[rows, label] = -np.inf
    if scaled.shape[1] == 1:
        return np.full(len(scaled), np.inf, Wide)
    margin: Array = scaled[rows, label] - rivals.max(axis=1)
    return margin


@_QUIET
def cross_entropy(  # noqa: PLR0913  the options of the operation
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
    grad_output: ArrayLike = 1.0,
    class_axis: int = 1,
) -> Result:
    """Evaluate the contract's operation on finite or non-finite logits of any shape."""
    shape = np.shape(logits)
    rows = as_rows(logits, class_axis)
    targets = read_labels(labels, shape, class_axis, ignore_index)
    classes = rows.shape[1]
    class_weight = np.ones(classes, Wide) if weight is None else np.asarray(weight, Wide)
    row_weight = np.broadcast_to(
        Wide(1) if sample_weight is None else np.asarray(sample_weight, Wide).reshape(-1),
        len(rows),
    )
    smoothing = Wide(label_smoothing)
    smoothed = (1 - smoothing) * targets.probability + smoothing / classes
    coefficient = class_weight * smoothed

    distribution = softmax(rows, temperature)
    loss, gradient = losses_and_gradients(distribution, coefficient, z_loss)
    factor = targets.valid * row_weight
    dead = (factor == 0) | (~coefficient.any(axis=1) & (z_loss == 0))
    losses = np.where(dead, 0, factor * loss)

    own_weight = class_weight[targets.label] if targets.is_index else Wide(1)
    normalizer = (factor * own_weight).sum(dtype=Wide)
    divisor = normalizer if reduction == "mean" else Wide(1)
    upstream = np.broadcast_to(np.asarray(grad_output, Wide).reshape(-1), len(rows))
    scale = upstream * factor / Wide(temperature) / divisor
    silent = dead | (divisor == 0)
    gradients = np.where(silent[:, None], 0, scale[:, None] * gradient)

    def shaped(values: Array) -> Array:
        kept = tuple(np.delete(np.array(shape), class_axis if len(shape) > 1 else 0))
        return values.reshape(kept)

    def if_valid(values: Array) -> Array:
        return shaped(np.where(targets.valid, values, 0))

    nll = weighted_sum(targets.probability, distribution.surprisal)
    nll = np.where(np.isfinite(distribution.logsumexp[:, 0]), nll, np.nan)
    distance = distribution.probability - targets.probability
    loss_sum = losses.sum(dtype=Wide)
    return Result(
        loss=None if reduction == "none" else loss_sum / divisor,
        loss_sum=loss_sum,
        normalizer=normalizer,
        count=int(targets.valid.sum()),
        ignored=int((~targets.valid).sum()),
        losses=shaped(losses),
        gradients=from_rows(gradients, shape, class_axis),
        nll=if_valid(nll),
        probabilities=from_rows(distribution.probability, shape, class_axis),
        logsumexp=shaped(distribution.logsumexp[:, 0]),
        entropy=shaped(weighted_sum(distribution.probability, distribution.surprisal)),
        margin=if_valid(margin_of(distribution.scaled, targets.label)),
        gradient_norm=if_valid(np.sqrt((distance**2).sum(axis=1))),
        predictions=shaped(rows.argmax(axis=1)),
        coefficient=coefficient.sum(axis=1),
        scale=np.where(silent, 0, scale),
        summary=summarize(distribution, targets, nll),
    )


def bin_calibration(confidence: Array, correct: Array) -> dict[str, Array]:
    """Ten right-closed bins (0, 0.1], (0.1, 0.2] … (0.9, 1]."""
    edges = np.arange(11) / Wide(10)
    member = [(confidence > low) & (confidence <= high) for low, high in pairwise(edges)]
    return {
        "count": np.array([inside.sum() for inside in member]),
        "confidence_sum": np.array([confidence[inside].sum() for inside in member]),
        "correct": np.array([correct[inside].sum() for inside in member]),
    }


def sum_per_class(label: Array, values: ArrayLike, classes: int) -> Array:
    """Sum of one value a row over the rows of each class."""
    totals = np.zeros(classes, Wide)
    np.add.at(totals, label, values)
    return totals


@_QUIET
def summarize(distribution: Softmax, targets: Targets, nll: Array) -> dict[str, Any]:
    """Plain statistics over the rows that are not ignored."""
    scaled, label = distribution.scaled[targets.valid], targets.label[targets.valid]
    nll = nll[targets.valid]
    if len(nll) == 0:
        return {}
    rows, classes = scaled.shape
    correct = scaled.argmax(axis=1) == label
    own = scaled[np.arange(rows), label]
    frequency = np.bincount(label, minlength=classes) / Wide(rows)
    calibration = bin_calibration(distribution.probability[targets.valid].max(axis=1), correct)
    gap = np.abs(calibration["correct"] - calibration["confidence_sum"])
    summary = {
        "accuracy": correct.mean(dtype=Wide),
        "mean_nll": nll.mean(),
        "standard_error": nll.std(ddof=1) / np.sqrt(Wide(rows)) if rows > 1 else Wide("nan"),
        "perplexity": np.exp(nll.mean()),
        "baseline_uniform": np.log(Wide(classes)),
        "skill": 1 - nll.mean() / np.log(Wide(classes)) if classes > 1 else Wide("nan"),
        "expected_calibration_error": gap.sum() / rows,
        "calibration": calibration,
    }
    if classes > 5:
        summary["top5_accuracy"] = ((scaled > own[:, None]).sum(axis=1) < 5).mean(dtype=Wide)
    if classes <= 1000:
        summary["per_class"] = {
            "count": sum_per_class(label, 1, classes),
            "nll_sum": sum_per_class(label, nll, classes),
            "correct": sum_per_class(label, correct, classes),
        }
    if targets.is_index:
        summary["baseline_prior"] = -weighted_sum(frequency[None], np.log(frequency)[None])[0]
    else:
        truth = targets.probability
        summary["label_entropy"] = -weighted_sum(truth, np.log(truth)).mean()
        summary["kl_divergence"] = nll.mean() - summary["label_entropy"]
    return summary
