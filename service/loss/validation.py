"""Every check of shapes, dtypes and values, on the host, before anything reaches a device.

A label outside the classes is a device-side assertion on CUDA that takes the process with it, so labels are compared
in their own dtype, in full width, here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from ..dtypes import FLOATS, Array, name_of
from ..errors import (
    Finding,
    InvalidValue,
    LabelOutOfRange,
    LimitExceeded,
    MissingField,
    ServiceError,
    ShapeMismatch,
    UnsupportedDtype,
)
from .evaluation import Evaluation, Warning_, sample_shape, to_rows
from .options import DEFAULT_IGNORE_INDEX, MAX_RANK, Formula, LossOptions
from .places import error_at, shape_text
from .weighting import class_weights, fits_float32, weigh

PROBABILITY_TOLERANCE = 1e-3
"""How far a row of probabilities given as the model's answer may be from summing to 1."""
LABEL_TOLERANCE = {2: 1e-2, 4: 1e-5, 8: 1e-5}
"""The same for probability labels, by the size of their dtype in bytes; beyond it there is a warning."""

_BLOCK_ELEMENTS = 1 << 18


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
        ServiceError: One of its kinds, naming the offending places.
        LimitExceeded: More classes or elements than `limits` allow.
    """
    missing = [Finding(f"#/{name}", "required") for name in ("logits", "labels") if name not in arrays]
    if missing:
        raise MissingField(f"{' and '.join(one.pointer[2:] for one in missing)} missing.", errors=missing)
    logits, labels = arrays["logits"], arrays["labels"]
    _check_logits(logits, options, limits)
    shape = sample_shape(logits.shape, options.class_axis)
    has_indices = _has_index_labels(logits, labels, shape, options)
    rows = to_rows(logits, options.class_axis)
    if options.input == "probabilities":
        _check_probabilities(rows, shape)
    class_weight = class_weights(arrays["weight"], rows.shape[1]) if "weight" in arrays else None
    warnings: list[Warning_] = []
    ignored: Array | None = None
    if has_indices:
        flat, ignored = _check_indices(labels, rows.shape[1], shape, options)
    else:
        flat = _probability_labels(to_rows(labels, options.class_axis), options)
        warnings += _normalization_warnings(flat)
    if options.input == "logits" and _look_like_probabilities(rows):
        warnings.append(_softmax_twice(rows.shape[0]))

    weighting = weigh(
        flat,
        shape,
        options,
        ignored=ignored,
        class_weight=class_weight,
        sample_weight=arrays.get("sample_weight"),
        grad_output=arrays.get("grad_output"),
    )
    # S q_c - a_c and q_c (A + B W) - B w_c cancel where probabilities meet their labels: in float32 they miss the
    # accuracy that plain index labels have, by up to 1.8 times.
    is_delicate = not has_indices or (class_weight is not None and options.label_smoothing > 0)
    is_wide = is_delicate or options.precision == "high" or logits.dtype == np.float64
    is_wide = is_wide or not fits_float32(options, class_weight, weighting)
    formula = _formula(options, has_indices=has_indices, is_wide=is_wide)
    if class_weight is not None:
        formula = replace(formula, class_weight=class_weight.tobytes())
    return Evaluation(options, formula, logits.shape, rows, flat, ignored, weighting, tuple(warnings))


def _check_logits(logits: Array, options: LossOptions, limits: SizeLimits) -> None:
    if name_of(logits) not in FLOATS:
        raise UnsupportedDtype.at("#/logits", f"logits are {name_of(logits)}; send one of {', '.join(FLOATS)}")
    if not 1 <= logits.ndim <= MAX_RANK:
        raise ShapeMismatch.at("#/logits", f"logits have rank {logits.ndim}; ranks 1 to {MAX_RANK} are supported")
    classes = logits.shape[-1 if options.class_axis == -1 or logits.ndim == 1 else 1]
    if classes == 0:
        raise ShapeMismatch.at("#/logits", f"logits of shape {shape_text(logits.shape)} have no classes")
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
                f"labels of shape {shape_text(shape)} are class indices, which are integers, and these are floats; "
                "cast them (labels.astype('int64') in numpy, labels.long() in torch)"
            )
            raise UnsupportedDtype.at("#/labels", detail)
        return True
    detail = (
        f"labels have shape {shape_text(labels.shape)}; logits of shape {shape_text(logits.shape)} go with "
        f"class indices of shape {shape_text(shape)} or probabilities of the logits' shape"
    )
    for other in (1, -1):
        if logits.ndim > 2 and other != options.class_axis and labels.shape == sample_shape(logits.shape, other):  # noqa: PLR2004 - below rank 3 both axes are the same
            detail += f" (did you mean class_axis={other}?)"
    raise ShapeMismatch.at("#/labels", detail)


def _check_probabilities(rows: Array, shape: tuple[int, ...]) -> None:
    good = np.concatenate([_are_probabilities(part) for part in _blocks(rows)])
    if not good.all():
        detail = "the row is not in [0, 1] or does not sum to 1 within 1e-3; is it input=logits?"
        summary = f"rows of the logits that are not probabilities: {np.count_nonzero(~good)}"
        raise error_at(InvalidValue, "logits", summary, bad=~good, shape=shape, describe=lambda _: detail)


def _check_indices(
    labels: Array, classes: int, shape: tuple[int, ...], options: LossOptions
) -> tuple[Array, Array | None]:
    """Returns class indices as (R,) int64 with 0 in ignored rows, and the ignored rows."""
    ignore_index = DEFAULT_IGNORE_INDEX if options.ignore_index is None else options.ignore_index
    flat = labels.reshape(-1)
    if flat.size == 0:
        return flat.astype(np.int64), None
    # The common case costs one reduction: every label in range, and ignore_index out of it. Read as unsigned, a
    # negative label is a large one.
    as_unsigned = flat.astype(np.int64, copy=False).view(np.uint64)
    if int(np.maximum.reduce(as_unsigned)) < classes and not 0 <= ignore_index < classes:
        return flat.astype(np.int64), None  # a copy: a view would hold all that was sent with it
    ignored = flat == ignore_index
    bad = ~ignored & ((flat < 0) | (flat >= classes))
    if bad.any():
        raise _label_error(flat, bad, shape, classes, ignore_index)
    return np.where(ignored, 0, flat).astype(np.int64), ignored if ignored.any() else None


def _label_error(flat: Array, bad: Array, shape: tuple[int, ...], classes: int, ignore_index: int) -> ServiceError:
    rule = f"in [0, {classes - 1}] and not ignore_index ({ignore_index})"
    only = "1 label is" if bad.sum() == 1 else f"{bad.sum()} labels are"
    summary = f"{only} not {rule}"
    if ignore_index != DEFAULT_IGNORE_INDEX and (flat[bad] == DEFAULT_IGNORE_INDEX).any():
        summary += f"; did you mean ignore_index={DEFAULT_IGNORE_INDEX}?"

    def describe(row: int) -> str:
        return f"{flat[row]} is not in [0, {classes - 1}]"

    return error_at(LabelOutOfRange, "labels", summary, bad=bad, shape=shape, describe=describe)


def _probability_labels(rows: Array, options: LossOptions) -> Array:
    if options.ignore_index is not None:
        raise InvalidValue.at("#/ignore_index", "ignore_index goes with class indices; these labels are probabilities")
    if name_of(rows) in FLOATS:
        return rows
    return rows.astype(np.float64)


def _normalization_warnings(labels: Array) -> list[Warning_]:
    sums = labels.sum(axis=1, dtype=np.float64)
    off = ~(np.abs(sums - 1) <= LABEL_TOLERANCE[labels.dtype.itemsize]) | (labels < 0).any(axis=1)
    detail = "Rows of the labels do not sum to 1 or hold negative entries; they were used as given."
    return [Warning_.of("labels_not_normalized", detail, off)] if off.any() else []


def _look_like_probabilities(rows: Array) -> bool:
    """Whether every row lies in [0, 1] and sums to 1, looking at as little as decides it."""
    if rows.shape[0] == 0 or not 0 <= rows.item(0) <= 1:
        return False
    return all(bool(_are_probabilities(part).all()) for part in (rows[:1], *_blocks(rows)))


def _are_probabilities(rows: Array) -> Array:
    """Tells of each row whether it is in [0, 1] and sums to 1."""
    wide = rows.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinities are outside
        good: Array = np.less_equal(np.abs(wide.sum(axis=1) - 1), PROBABILITY_TOLERANCE)
    return good & ((wide >= 0) & (wide <= 1)).all(axis=1)


def _blocks(rows: Array) -> Iterator[Array]:
    """Yields rows in pieces, of which a copy in float64 is no matter."""
    step = max(1, _BLOCK_ELEMENTS // rows.shape[1])
    return (rows[start : start + step] for start in range(0, max(1, len(rows)), step))


def _softmax_twice(count: int) -> Warning_:
    detail = (
        "Every row of the logits lies in [0, 1] and sums to 1: softmax was probably applied twice. "
        "Send the logits themselves, or say input=probabilities."
    )
    return Warning_("logits_look_like_probabilities", detail, count, tuple(range(min(count, 10))))


@lru_cache(maxsize=256)
def _formula(options: LossOptions, *, has_indices: bool, is_wide: bool) -> Formula:
    outputs = {"losses", "maximum", *options.include} - {"loss", "summary"}
    if "summary" in options.include:
        outputs |= {"nll", "predictions", "rank", "confidence"}
        outputs |= set() if has_indices else {"target", "label_entropy"}
    return Formula(
        input=options.input,
        label_smoothing=options.label_smoothing,
        temperature=options.temperature,
        z_loss=options.z_loss,
        arithmetic="float64" if is_wide else "float32",
        gradient_dtype=options.gradient_dtype if "gradients" in outputs else None,
        outputs=frozenset(outputs),
    )
