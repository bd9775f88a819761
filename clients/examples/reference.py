"""Cross-entropy as it is defined, in float64 with numpy alone: what the conformance vectors expect.

No code of the service is in here, and nothing is made for speed: whoever doubts a vector can read what it was computed
from. docs/loss.md says where the formulas come from.
"""  # noqa: INP001 - a module of a script, not of a package

import base64
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Fields = dict[str, Any]

DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "<u1",
}  # fmt: skip
NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
TOP = 5


def to_bytes(values: Array, dtype: str) -> bytes:
    """Little-endian elements in C order; BF16 is the upper half of a float32, here only of values that fit."""
    if dtype == "BF16":
        values = values.astype("<f4").view("<u4") >> 16
    return values.astype(DTYPES[dtype]).tobytes()


def tensor_object(values: Any, dtype: str) -> Fields:  # noqa: ANN401 - anything numpy takes
    """Array as JSON carries it."""
    array = np.asarray(values)
    return {
        "dtype": dtype,
        "shape": list(array.shape),
        "data": base64.b64encode(to_bytes(array, dtype)).decode(),
    }


def read(value: Any) -> Array:  # noqa: ANN401 - what a request may hold
    """Array of nested numbers or of a tensor object."""
    if isinstance(value, dict):
        array = np.frombuffer(base64.b64decode(value["data"]), DTYPES[value["dtype"]])
        if value["dtype"] == "BF16":
            array = (array.astype("<u4") << 16).view("<f4")
        return array.reshape(value["shape"])
    flat = np.array(value, object).ravel()
    return np.array([NON_FINITE.get(number, number) for number in flat]).reshape(np.shape(value))


def read_logits(request: Fields) -> Array:
    """Nested logits are float32, whatever was written."""
    logits = read(request["logits"])
    return logits if isinstance(request["logits"], dict) else logits.astype(np.float32)


def to_rows(values: Array, axis: int) -> Array:
    """(N, C, d1…dk) to (R, C)."""
    return np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis]).astype(np.float64)


@dataclass(frozen=True, slots=True)
class Batch:
    """A request as R rows of C classes."""

    shape: tuple[int, ...]
    axis: int
    u: Array  # logits / temperature, (R, C)
    t: Array  # probabilities of the classes, one-hot for indices, (R, C)
    label: Array  # (R,)
    counts: Array  # False in ignored rows, (R,)
    has_indices: bool
    class_weight: Array  # (C,)
    row_weight: Array  # 0 in ignored rows, (R,)

    @classmethod
    def of(cls, request: Fields) -> "Batch":
        """Reads a request."""
        logits, labels = read_logits(request), read(request["labels"])
        axis = 0 if logits.ndim == 1 else request.get("class_axis", 1) % logits.ndim
        x = to_rows(logits, axis)
        u = (np.log(x) if request.get("input") == "probabilities" else x) / request.get("temperature", 1.0)
        has_indices = labels.ndim < logits.ndim
        if has_indices:
            flat = labels.reshape(-1).astype(np.int64)
            counts = flat != request.get("ignore_index", -100)
            label = np.where(counts, flat, 0)
            t = np.eye(u.shape[1])[label]
        else:
            if not isinstance(request["labels"], dict):
                labels = labels.astype(logits.dtype)
            t = to_rows(labels, axis)
            label, counts = t.argmax(axis=1), np.ones(len(t), bool)
        class_weight = np.broadcast_to(read(request.get("weight", 1.0)), u.shape[1])
        row_weight = counts * np.broadcast_to(read(request.get("sample_weight", 1.0)).reshape(-1), len(u))
        return cls(logits.shape, axis, u, t, label, counts, has_indices, class_weight, row_weight)

    def per_row(self, values: Array) -> Array:
        """Brings one value a row into the shape of class indices."""
        return values.reshape(self.shape[: self.axis] + self.shape[self.axis + 1 :])

    def per_logit(self, rows: Array) -> Array:
        """Brings one value a class into the shape of the logits."""
        last = (*self.shape[: self.axis], *self.shape[self.axis + 1 :], self.shape[self.axis])
        return np.moveaxis(rows.reshape(last), -1, self.axis)


def surprisal(u: Array) -> Array:
    """-ln softmax(u) = ln(1 + sum over the other classes of exp(u_j - u_c)), which cancels nowhere."""
    gap = u[:, None, :] - u[:, :, None]
    gap = np.where(np.isneginf(u)[:, None, :], -math.inf, gap)  # a masked class adds nothing
    gap[:, range(u.shape[1]), range(u.shape[1])] = -math.inf  # nor does the class itself
    is_finite = np.isfinite(u.max(axis=1, initial=-math.inf))[:, None]
    return np.where(is_finite, np.log1p(np.exp(gap).sum(axis=2)), math.nan)


def dot(coefficients: Array, values: Array) -> Array:
    """Sum over the classes; a coefficient of 0 counts nothing, not even an infinite value."""
    return np.asarray(np.where(coefficients == 0, 0.0, coefficients * values).sum(axis=-1))


@np.errstate(all="ignore")
def evaluate(request: Fields) -> Fields:
    """Everything that an answer can hold; None for what is absent."""
    given = {name: value for name, value in request.items() if value is not None}
    batch = Batch.of(given)
    s = surprisal(batch.u)
    q = np.exp(-s)
    rows = np.arange(len(s))
    log_sum = batch.u.max(axis=1) + s[rows, batch.u.argmax(axis=1)]
    nll = np.where(batch.counts, dot(batch.t, s), 0.0)
    others = np.where(np.arange(s.shape[1]) == batch.label[:, None], -math.inf, batch.u)
    margin = batch.u[rows, batch.label] - others.max(axis=1)
    margin = np.where(np.isfinite(log_sum), margin, math.nan)  # a row without a softmax has none
    off = np.where(batch.t == 1, np.expm1(-s), q - batch.t)
    return {
        **weighted(batch, s, log_sum, given),
        "nll": batch.per_row(nll),
        "probabilities": batch.per_logit(q),
        "logsumexp": batch.per_row(log_sum),
        "entropy": batch.per_row(dot(q, s)),
        "predictions": batch.per_row(batch.u.argmax(axis=1)),
        "margin": batch.per_row(np.where(batch.counts, margin, 0.0)),
        "gradient_norm": batch.per_row(np.where(batch.counts, np.sqrt((off**2).sum(axis=1)), 0.0)),
        "summary": summarize(batch, q, nll),
    }


def weighted(batch: Batch, s: Array, log_sum: Array, request: Fields) -> Fields:
    """The loss and its gradients, with weights, smoothing and z_loss."""
    smoothing, z_loss = request.get("label_smoothing", 0.0), request.get("z_loss", 0.0)
    reduction = request.get("reduction", "mean")
    a = batch.class_weight * ((1 - smoothing) * batch.t + smoothing / s.shape[1])
    is_silent = (batch.row_weight == 0) | (~a.any(axis=1) & (z_loss == 0))
    losses = dot(a, s) + (z_loss * log_sum**2 if z_loss else 0.0)
    losses = np.where(is_silent, 0.0, batch.row_weight * losses)

    # PyTorch's rule: the weights of the labels for indices, and none for probabilities.
    of_label = batch.class_weight[batch.label] if batch.has_indices else 1.0
    normalizer = float((batch.row_weight * of_label).sum())
    divisor = normalizer if reduction == "mean" else 1.0
    loss_sum = float(losses.sum())

    # S q - a, where S - a is the sum over the other classes.
    q = np.exp(-s)
    slope = a * np.expm1(-s) + q * (a.sum(axis=1, keepdims=True) - a)
    slope += (2 * z_loss * log_sum)[:, None] * q if z_loss else 0.0
    upstream = read(request.get("grad_output", 1.0)).reshape(-1)
    scale = upstream * batch.row_weight / request.get("temperature", 1.0) / (divisor or math.inf)
    gradients = np.where((is_silent | (scale == 0))[:, None], 0.0, scale[:, None] * slope)
    return {
        "loss": None if reduction == "none" else loss_sum / divisor if divisor else math.nan,
        "loss_sum": loss_sum,
        "normalizer": normalizer,
        "count": int(batch.counts.sum()),
        "ignored": int((~batch.counts).sum()),
        "losses": batch.per_row(losses),
        "gradients": batch.per_logit(gradients + 0.0),  # no negative zeros
    }


def summarize(batch: Batch, q: Array, nll: Array) -> Fields:
    """Plain figures over the rows that count."""
    u, q, t, label, nll = (values[batch.counts] for values in (batch.u, q, batch.t, batch.label, nll))
    rows, classes = u.shape
    if not rows:
        return {}
    is_right = u.argmax(axis=1) == label
    of_class = label == np.arange(classes)[:, None]
    greater = (u > u[np.arange(rows), label][:, None]).sum(axis=1)
    calibration = calibrate(q.max(axis=1), is_right)
    mean_nll, label_entropy = float(nll.mean()), float(dot(t, -np.log(t)).mean())
    return {
        "accuracy": float(is_right.mean()),
        "top5_accuracy": float((greater < TOP).mean()) if classes > TOP else None,
        "mean_nll": mean_nll,
        "standard_error": float(nll.std(ddof=1) / math.sqrt(rows)) if rows > 1 else math.nan,
        "perplexity": math.exp(mean_nll),
        "baseline_uniform": math.log(classes),
        "baseline_prior": float(dot(t.mean(axis=0), -np.log(t.mean(axis=0)))),
        "skill": 1 - mean_nll / math.log(classes) if classes > 1 else math.nan,
        "expected_calibration_error": float(
            np.abs(calibration["correct"] - calibration["confidence_sum"]).sum() / rows
        ),
        "calibration": calibration,
        "per_class": {
            "count": of_class.sum(axis=1),
            "nll_sum": (of_class * nll).sum(axis=1),
            "correct": (of_class & is_right).sum(axis=1),
        },
        "label_entropy": None if batch.has_indices else label_entropy,
        "kl_divergence": None if batch.has_indices else mean_nll - label_entropy,
    }


def calibrate(confidence: Array, is_right: Array) -> Fields:
    """Ten bins of the largest probability, closed on the right."""
    bins = [(confidence > low) & (confidence <= high) for low, high in pairwise(np.arange(11) / 10)]
    return {
        "count": np.array([chosen.sum() for chosen in bins]),
        "confidence_sum": np.array([confidence[chosen].sum() for chosen in bins]),
        "correct": np.array([is_right[chosen].sum() for chosen in bins]),
    }
