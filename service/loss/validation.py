"""Every check of shapes, dtypes and values, on the host, before anything reaches a device.

A label outside the classes is a device-side assertion on CUDA that takes the process with it, so labels are compared
in their own dtype, in full width, here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..dtypes import FLOATS, WEIGHTS, Array, name_of
from ..errors import (
    MAX_FINDINGS,
    FieldError,
    Finding,
    InvalidValue,
    LabelOutOfRange,
    LimitExceeded,
    MissingField,
    NumberOutOfRange,
    ShapeMismatch,
    UnsupportedDtype,
)
from .evaluation import Evaluation, Warning_, sample_shape, to_rows
from .options import DEFAULT_IGNORE_INDEX, MAX_RANK, Formula, LossOptions

PROBABILITY_TOLERANCE = 1e-3
"""How far a row of probabilities given as the model's answer may be from summing to 1."""
LABEL_TOLERANCE = {2: 1e-2, 4: 1e-5, 8: 1e-5}
"""The same for probability labels, by the size of their dtype in bytes; beyond it there is a warning."""


@dataclass(frozen=True, slots=True)
class SizeLimits:
    """The largest request that is taken, in classes and in rows times classes."""

    max_classes: int = 1 << 20
    max_elements: int = 1 << 27


def validate(arrays: Mapping[str, Array], options: LossOptions, limits: SizeLimits) -> Evaluation:
    """Checks a request and brings it into rows.

    Args:
        arrays: `logits` and `labels`, optionally `weight`, `sample_weight` and `grad_output`, as they were sent.
        options: The scalar options.
        limits: The largest sizes accepted.

    Raises:
        FieldError: One of its kinds, naming the offending places.
        LimitExceeded: More classes or elements than `limits` allow.
    """
    logits, labels = _required(arrays, "logits"), _required(arrays, "labels")
    _check_logits(logits, options, limits)
    shape = sample_shape(logits.shape, options.class_axis)
    has_indices = _has_index_labels(logits, labels, shape, options)
    rows = to_rows(logits, options.class_axis)
    if options.input == "probabilities":
        _check_probabilities(rows, shape)
    class_weight = _class_weight(arrays.get("weight"), rows.shape[1])
    sample_weight = _sample_weight(arrays.get("sample_weight"), shape)
    warnings: list[Warning_] = []
    ignored: Array | None = None
    if has_indices:
        flat, ignored = _check_indices(labels, rows.shape[1], shape, options)
    else:
        flat = _probability_labels(to_rows(labels, options.class_axis), logits.dtype, options)
        warnings += _normalization_warnings(flat)
    if options.input == "logits" and _look_like_probabilities(rows):
        warnings.append(_softmax_twice(rows.shape[0]))

    formula = _formula(options, class_weight, has_indices=has_indices)
    normalizer, row_weight = _weigh(flat, ignored, sample_weight, class_weight, options)
    scale = _gradient_scale(arrays.get("grad_output"), shape, row_weight, normalizer, options)
    _check_range(rows.dtype, formula, class_weight, row_weight, scale)
    return Evaluation(options, formula, logits.shape, rows, flat, ignored, row_weight, scale, normalizer, tuple(warnings))


def _required(arrays: Mapping[str, Array], name: str) -> Array:
    if name not in arrays:
        raise MissingField.at(f"#/{name}", f"{name} is required")
    return arrays[name]


def _check_logits(logits: Array, options: LossOptions, limits: SizeLimits) -> None:
    if name_of(logits) not in FLOATS:
        raise UnsupportedDtype.at("#/logits", f"logits are {name_of(logits)}; send one of {', '.join(FLOATS)}")
    if not 1 <= logits.ndim <= MAX_RANK:
        raise ShapeMismatch.at("#/logits", f"logits have rank {logits.ndim}; ranks 1 to {MAX_RANK} are supported")
    classes = logits.shape[-1 if options.class_axis == -1 or logits.ndim == 1 else 1]
    if classes == 0:
        raise ShapeMismatch.at("#/logits", f"logits of shape {_text(logits.shape)} have no classes")
    if classes > limits.max_classes:
        raise LimitExceeded("MAX_CLASSES", limits.max_classes, classes, "Send fewer classes.")
    if logits.size > limits.max_elements:
        raise LimitExceeded("MAX_ELEMENTS", limits.max_elements, logits.size, "Split the batch and merge the sums.")
    if options.input != "logits" and "gradients" in options.include:
        detail = f"gradients exist for input=logits only, not for input={options.input}"
        raise InvalidValue.at("#/include", detail)


def _has_index_labels(logits: Array, labels: Array, shape: tuple[int, ...], options: LossOptions) -> bool:
    """Decides by rank alone what the labels are, and checks that their shape fits."""
    if labels.ndim == logits.ndim and labels.shape == logits.shape:
        return False
    if labels.ndim == logits.ndim - 1 and labels.shape == shape:
        if name_of(labels) in FLOATS:
            detail = (
                f"labels of shape {_text(shape)} are class indices, which are integers, not {name_of(labels)}; "
                "cast them (labels.astype('int64') in numpy, labels.long() in torch)"
            )
            raise UnsupportedDtype.at("#/labels", detail)
        return True
    detail = (
        f"labels have shape {_text(labels.shape)}; logits of shape {_text(logits.shape)} go with class indices "
        f"of shape {_text(shape)} or probabilities of shape {_text(logits.shape)}"
    )
    for other in (1, -1):
        if logits.ndim > 2 and other != options.class_axis and labels.shape == sample_shape(logits.shape, other):  # noqa: PLR2004 - below rank 3 both axes are the same
            detail += f" (did you mean class_axis={other}?)"
    raise ShapeMismatch.at("#/labels", detail)


def _check_probabilities(rows: Array, shape: tuple[int, ...]) -> None:
    wide = rows.astype(np.float64)
    inside = ((wide >= 0) & (wide <= 1)).all(axis=1)
    good = inside & (np.abs(wide.sum(axis=1) - 1) <= PROBABILITY_TOLERANCE)
    if not good.all():
        detail = "the row is not in [0, 1] or does not sum to 1 within 1e-3; is it input=logits?"
        raise _at_rows(InvalidValue, "logits", "rows are not probabilities", ~good, shape, lambda _: detail)


def _check_indices(
    labels: Array, classes: int, shape: tuple[int, ...], options: LossOptions
) -> tuple[Array, Array | None]:
    """Returns class indices as (R,) int64 with 0 in ignored rows, and the ignored rows."""
    ignore_index = DEFAULT_IGNORE_INDEX if options.ignore_index is None else options.ignore_index
    flat = labels.reshape(-1)
    if flat.size == 0:
        return flat.astype(np.int64), None
    # The common case costs two reductions: every label in range, and ignore_index out of it.
    inside = int(flat.min()) >= 0 and int(flat.max()) < classes
    if inside and not 0 <= ignore_index < classes:
        return np.ascontiguousarray(flat, dtype=np.int64), None
    ignored = flat == ignore_index
    bad = ~ignored & ((flat < 0) | (flat >= classes))
    if bad.any():
        raise _label_error(flat, bad, shape, classes, ignore_index)
    return np.where(ignored, 0, flat).astype(np.int64), ignored if ignored.any() else None


def _label_error(flat: Array, bad: Array, shape: tuple[int, ...], classes: int, ignore_index: int) -> FieldError:
    rule = f"in [0, {classes - 1}] and not ignore_index ({ignore_index})"
    only = "1 label is" if bad.sum() == 1 else f"{bad.sum()} labels are"
    summary = f"{only} not {rule}"
    if ignore_index != DEFAULT_IGNORE_INDEX and (flat[bad] == DEFAULT_IGNORE_INDEX).any():
        summary += f"; did you mean ignore_index={DEFAULT_IGNORE_INDEX}?"
    return _at_rows(
        LabelOutOfRange, "labels", summary, bad, shape, lambda row: f"{flat[row]} is not in [0, {classes - 1}]", count=False
    )


def _probability_labels(rows: Array, logits_dtype: np.dtype[np.generic], options: LossOptions) -> Array:
    if options.ignore_index is not None:
        raise InvalidValue.at("#/ignore_index", "ignore_index goes with class indices; these labels are probabilities")
    if name_of(rows) in FLOATS:
        return rows
    wide = options.precision == "high" or logits_dtype == np.float64
    return rows.astype(np.float64 if wide else np.float32)


def _normalization_warnings(labels: Array) -> list[Warning_]:
    sums = labels.sum(axis=1, dtype=np.float64)
    off = ~(np.abs(sums - 1) <= LABEL_TOLERANCE[labels.dtype.itemsize]) | (labels < 0).any(axis=1)
    detail = "Rows of the labels do not sum to 1 or hold negative entries; they were used as given."
    return [Warning_.of("labels_not_normalized", detail, off)] if off.any() else []


def _look_like_probabilities(rows: Array) -> bool:
    """Whether every row lies in [0, 1] and sums to 1, looking at as little as decides it."""
    if rows.shape[0] == 0 or not 0 <= rows[0, 0] <= 1:
        return False
    for part in (rows[:1], rows):
        wide = part.astype(np.float64)
        if wide.min() < 0 or not bool((np.abs(wide.sum(axis=1) - 1) <= PROBABILITY_TOLERANCE).all()):
            return False
    return True


def _softmax_twice(count: int) -> Warning_:
    detail = (
        "Every row of the logits lies in [0, 1] and sums to 1: softmax was probably applied twice. "
        "Send the logits themselves, or say input=probabilities."
    )
    return Warning_("logits_look_like_probabilities", detail, count, tuple(range(min(count, 10))))


def _class_weight(weight: Array | None, classes: int) -> Array | None:
    if weight is None:
        return None
    if weight.shape != (classes,):
        detail = f"weight has shape {_text(weight.shape)}; {classes} classes need ({classes},)"
        raise ShapeMismatch.at("#/weight", detail)
    return _non_negative("weight", weight, (classes,))


def _sample_weight(weight: Array | None, shape: tuple[int, ...]) -> Array | None:
    if weight is None:
        return None
    if weight.shape != shape:
        detail = f"sample_weight has shape {_text(weight.shape)}; class indices have {_text(shape)}"
        raise ShapeMismatch.at("#/sample_weight", detail)
    return _non_negative("sample_weight", weight, shape)


def _non_negative(name: str, weight: Array, shape: tuple[int, ...]) -> Array:
    flat = _wide(name, weight)
    good = np.isfinite(flat) & (flat >= 0)
    if not good.all():
        detail = "not finite or negative"
        raise _at_rows(InvalidValue, name, f"values are {detail}", ~good, shape, lambda row: f"{flat[row]} is {detail}")
    return flat


def _wide(name: str, array: Array) -> Array:
    if name_of(array) not in WEIGHTS:
        raise UnsupportedDtype.at(f"#/{name}", f"{name} is {name_of(array)}; send one of {', '.join(WEIGHTS)}")
    return array.reshape(-1).astype(np.float64)


def _formula(options: LossOptions, class_weight: Array | None, *, has_indices: bool) -> Formula:
    outputs = {"losses", "maximum"} | ({*options.include} - {"loss", "summary"})
    if "summary" in options.include:
        outputs |= {"nll", "predictions", "rank", "confidence"}
        outputs |= set() if has_indices else {"target", "label_entropy"}
    return Formula(
        input=options.input,
        label_smoothing=options.label_smoothing,
        temperature=options.temperature,
        z_loss=options.z_loss,
        precision=options.precision,
        gradient_dtype=options.gradient_dtype if "gradients" in outputs else None,
        outputs=frozenset(outputs),
        class_weight=None if class_weight is None else class_weight.tobytes(),
    )


def _weigh(
    labels: Array,
    ignored: Array | None,
    sample_weight: Array | None,
    class_weight: Array | None,
    options: LossOptions,
) -> tuple[float, Array | None]:
    """Returns the normalizer D and the factor of each row's loss, None for all ones.

    D follows PyTorch: sum of v s w_y for indices, also with smoothing; sum of s for probabilities, never weighted.
    """
    count = labels.shape[0]
    if ignored is None and sample_weight is None and (class_weight is None or labels.ndim > 1):
        return float(count), None
    factor = np.ones(count) if sample_weight is None else sample_weight
    if ignored is not None:
        factor = np.where(ignored, 0.0, factor)
    if labels.ndim > 1 or class_weight is None:
        return float(factor.sum()), factor
    of_label = class_weight[labels]
    normalizer = float((factor * of_label).sum())
    if not options.z_loss and not (options.label_smoothing and class_weight.any()):
        # Rows whose every coefficient is 0 contribute exact zeros even where their loss is infinite.
        factor = np.where(of_label == 0, 0.0, factor)
    return normalizer, factor


def _gradient_scale(
    grad_output: Array | None,
    shape: tuple[int, ...],
    row_weight: Array | None,
    normalizer: float,
    options: LossOptions,
) -> Array | None:
    """Returns what multiplies each row's gradient with respect to logits / temperature."""
    upstream = _upstream(grad_output, shape, options)
    if "gradients" not in options.include:
        return None
    scale = upstream / options.temperature
    if options.reduction == "mean":
        scale = scale / normalizer if normalizer else 0.0 * scale
    rows = math.prod(shape)
    return np.broadcast_to(scale, (rows,)) if row_weight is None else row_weight * scale


def _upstream(grad_output: Array | None, shape: tuple[int, ...], options: LossOptions) -> Array:
    if grad_output is None:
        return np.ones(1)
    if grad_output.shape != () and not (options.reduction == "none" and grad_output.shape == shape):
        fits = f"a number or {_text(shape)}" if options.reduction == "none" else "a number"
        detail = f"grad_output has shape {_text(grad_output.shape)}; reduction={options.reduction} takes {fits}"
        raise ShapeMismatch.at("#/grad_output", detail)
    flat = _wide("grad_output", grad_output)
    finite = np.isfinite(flat)
    if not finite.all():
        raise _at_rows(
            InvalidValue, "grad_output", "values are not finite", ~finite, grad_output.shape, lambda row: f"{flat[row]} is not finite"
        )
    return flat


def _check_range(
    dtype: np.dtype[np.generic], formula: Formula, class_weight: Array | None, row_weight: Array | None, scale: Array | None
) -> None:
    """Refuses numbers that float32 arithmetic would turn into zero or infinity."""
    if dtype == np.float64 or formula.precision == "high":
        return
    largest, smallest = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)
    advice = "does not fit float32 arithmetic; precision=high computes in float64"
    if not smallest <= formula.temperature <= largest:
        raise NumberOutOfRange.at("#/temperature", f"{formula.temperature} {advice}")
    if formula.z_loss > largest:
        raise NumberOutOfRange.at("#/z_loss", f"{formula.z_loss} {advice}")
    named = (("weight", class_weight), ("sample_weight", row_weight), ("grad_output", scale))
    for name, array in named:
        if array is not None and array.size and float(np.abs(array).max()) > largest:
            detail = f"{name} (with the normalizer and temperature it is divided by) {advice}"
            raise NumberOutOfRange.at(f"#/{name}", detail)


def _at_rows(  # noqa: PLR0913 - one place builds every error that names elements
    kind: type[FieldError], name: str, summary: str, bad: Array, shape: tuple[int, ...], detail: object, *, count: bool = True
) -> FieldError:
    """Builds an error that points to the first offending elements of an array of the given shape."""
    rows = np.flatnonzero(bad)
    findings = []
    for row in rows[:MAX_FINDINGS].tolist():
        place = "".join(f"/{index}" for index in np.unravel_index(row, shape)) if shape else ""
        findings.append(Finding(f"#/{name}{place}", detail(row)))  # type: ignore[operator]
    total = int(len(rows))
    text = f"{total} {summary}." if count else f"{summary}."
    return kind(text, errors=findings, errors_omitted=total - len(findings))


def _text(shape: tuple[int, ...]) -> str:
    """Writes a shape the way numpy and torch print it."""
    return f"({shape[0]},)" if len(shape) == 1 else str(tuple(shape))
