"""What each row counts: class and sample weights, ignored rows, the normalizer and the upstream gradient.

All of it is known on the host before the kernel runs, in float64, and reaches the kernel as two factors a row.
"""

import math
from dataclasses import dataclass

import numpy as np

from ..dtypes import WEIGHTS, Array, name_of
from ..errors import InvalidValue, NumberOutOfRange, ShapeMismatch, UnsupportedDtype
from .options import LossOptions
from .places import error_at, shape_text

_SMALLEST, _LARGEST = 1e-18, 1e18


@dataclass(frozen=True, slots=True)
class Weighting:
    """The factors of the rows.

    `normalizer` is D, what the mean divides by. `row_weight` (R,) multiplies the losses, None for all ones.
    `gradient_scale` multiplies the gradients with respect to logits / temperature: (R,), or a number that holds for all
    rows; None where none are asked for.
    """

    normalizer: float
    row_weight: Array | None
    gradient_scale: Array | float | None


def weigh(  # noqa: PLR0913 - all that decides what a row counts
    labels: Array,
    shape: tuple[int, ...],
    options: LossOptions,
    *,
    ignored: Array | None,
    class_weight: Array | None,
    sample_weight: Array | None,
    grad_output: Array | None,
) -> Weighting:
    """Computes the factors.

    Args:
        labels: (R,) class indices or (R, C) probabilities.
        shape: The shape of class indices.
        options: The scalar options.
        ignored: (R,) mask of the ignored rows, or None.
        class_weight: (C,) float64, or None.
        sample_weight: As sent.
        grad_output: As sent.

    Raises:
        ShapeMismatch, UnsupportedDtype, InvalidValue: `sample_weight` or `grad_output` is wrong.
    """
    samples = None if sample_weight is None else _sample_weight(sample_weight, shape)
    upstream = 1.0 if grad_output is None else _upstream(grad_output, shape, options)
    normalizer, row_weight = _normalizer(labels, ignored, samples, class_weight, options)
    if not math.isfinite(normalizer):
        raise NumberOutOfRange.at("#/sample_weight", "the sum of the weights is beyond float64")
    if "gradients" not in options.include:
        return Weighting(normalizer, row_weight, None)
    divisor = normalizer if options.reduction == "mean" else 1.0
    scale = upstream / divisor / options.temperature if divisor else 0.0
    scale = scale if row_weight is None else row_weight * scale
    if not (math.isfinite(scale) if isinstance(scale, float) else np.isfinite(scale).all()):
        detail = "grad_output * sample_weight / (normalizer * temperature) is beyond float64"
        raise NumberOutOfRange.at("#/grad_output", detail)
    return Weighting(normalizer, row_weight, scale)


def _normalizer(
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


def class_weights(weight: Array, classes: int) -> Array:
    """Checks the weights of the classes and returns them as (C,) float64.

    Raises:
        ShapeMismatch, UnsupportedDtype, InvalidValue: They don't fit, or are negative or not finite.
    """
    if weight.shape != (classes,):
        detail = f"weight has shape {shape_text(weight.shape)}; {classes} classes need ({classes},)"
        raise ShapeMismatch.at("#/weight", detail)
    return _non_negative("weight", weight, (classes,))


def _sample_weight(weight: Array, shape: tuple[int, ...]) -> Array:
    if weight.shape != shape:
        detail = f"sample_weight has shape {shape_text(weight.shape)}; class indices have {shape_text(shape)}"
        raise ShapeMismatch.at("#/sample_weight", detail)
    return _non_negative("sample_weight", weight, shape)


def _non_negative(name: str, weight: Array, shape: tuple[int, ...]) -> Array:
    flat = _wide(name, weight)
    _check(name, flat, np.isfinite(flat) & (flat >= 0), shape, problem="negative or not finite")
    return flat


def _check(name: str, flat: Array, good: Array, shape: tuple[int, ...], *, problem: str) -> None:
    if not good.all():
        summary = f"{np.count_nonzero(~good)} values of {name} are {problem}"
        describe = lambda place: f"{flat[place]} is {problem}"  # noqa: E731 - named for the line's sake
        raise error_at(InvalidValue, name, summary, bad=~good, shape=shape, describe=describe)


def _wide(name: str, array: Array) -> Array:
    if name_of(array) not in WEIGHTS:
        raise UnsupportedDtype.at(f"#/{name}", f"{name} is {name_of(array)}; send one of {', '.join(WEIGHTS)}")
    return array.reshape(-1).astype(np.float64)


def _upstream(grad_output: Array, shape: tuple[int, ...], options: LossOptions) -> float | Array:
    if grad_output.shape != () and not (options.reduction == "none" and grad_output.shape == shape):
        fits = f"a number or {shape_text(shape)}" if options.reduction == "none" else "a number"
        detail = f"grad_output has shape {shape_text(grad_output.shape)}; reduction={options.reduction} takes {fits}"
        raise ShapeMismatch.at("#/grad_output", detail)
    flat = _wide("grad_output", grad_output)
    _check("grad_output", flat, np.isfinite(flat), grad_output.shape, problem="not finite")
    return flat if shape and grad_output.shape == shape else float(flat[0])


def fits_float32(options: LossOptions, class_weight: Array | None, weighting: Weighting) -> bool:
    """Whether float32 can multiply the factors: any two of them, without reaching 0 or infinity."""
    factors = (options.temperature, options.z_loss, class_weight, weighting.row_weight, weighting.gradient_scale)
    return all(map(_is_moderate, factors))


def _is_moderate(array: Array | float | None) -> bool:
    if array is None or isinstance(array, int | float):
        return not array or _SMALLEST <= abs(array) <= _LARGEST
    if array.size == 0 or (array.min() >= _SMALLEST and array.max() <= _LARGEST):
        return True
    sizes = np.abs(array)
    return bool((((sizes >= _SMALLEST) & (sizes <= _LARGEST)) | (sizes == 0)).all())
