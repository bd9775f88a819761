"""One request in the kernel's terms: contiguous rows, a formula, and what is needed to answer from the rows."""

import math
from dataclasses import dataclass

import numpy as np

from ..dtypes import Array
from .options import Formula, LossOptions
from .weighting import Weighting


@dataclass(frozen=True, slots=True)
class Warning_:  # noqa: N801 - `Warning` is a builtin
    """Something that was computed but deserves notice; `first` holds at most ten flat indices into `losses`."""

    code: str
    detail: str
    count: int
    first: tuple[int, ...]

    @classmethod
    def of(cls, code: str, detail: str, rows: Array) -> "Warning_":
        """Builds the warning from a mask over the rows."""
        found = np.flatnonzero(rows)
        return cls(code, detail, len(found), tuple(found[:10].tolist()))


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A validated request.

    `logits` is (R, C) and contiguous. `labels` is (R,) int64, with 0 in ignored rows, or (R, C). `ignored` is (R,), or
    None for nothing ignored.
    """

    options: LossOptions
    formula: Formula
    shape: tuple[int, ...]
    logits: Array
    labels: Array
    ignored: Array | None
    weighting: Weighting
    warnings: tuple[Warning_, ...]

    @property
    def rows(self) -> int:
        """The number of samples, ignored ones included."""
        return int(self.logits.shape[0])

    @property
    def classes(self) -> int:
        """The number of classes, at least 1."""
        return int(self.logits.shape[1])

    @property
    def elements(self) -> int:
        """Rows times classes: the measure of work."""
        return self.logits.size

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of class indices: that of the logits without its class axis."""
        return sample_shape(self.shape, self.options.class_axis)

    @property
    def has_index_labels(self) -> bool:
        """Whether labels are class indices rather than probabilities."""
        return self.labels.ndim == 1

    @property
    def batch_key(self) -> tuple[object, ...]:
        """Evaluations with equal keys can share one pass of the kernel."""
        return (self.formula, self.classes, self.logits.dtype, self.labels.ndim, self.labels.dtype)


def class_axis(rank: int, option: int) -> int:
    """Returns the index of the class axis; both spellings mean the only axis of a single sample."""
    return rank - 1 if option == -1 or rank == 1 else 1


def sample_shape(shape: tuple[int, ...], option: int) -> tuple[int, ...]:
    """Returns the shape without its class axis."""
    axis = class_axis(len(shape), option)
    return shape[:axis] + shape[axis + 1 :]


def answer_size(shape: tuple[int, ...], options: LossOptions) -> int:
    """Returns how many numbers the arrays of an answer hold, for logits of this shape."""
    include, elements = options.include, math.prod(shape)
    classes = shape[class_axis(len(shape), options.class_axis)] if shape else 1
    matrices = ("gradients" in include) + ("probabilities" in include)
    columns = len(include) - matrices - ("loss" in include) - ("summary" in include)
    return elements * matrices + elements // max(1, classes) * columns


def working_bytes(logits: Array, options: LossOptions, numbers: int) -> int:
    """Returns about how many bytes an answer of so many numbers takes to compute, beside the logits.

    That is the arrays of the answer, and for each row labels, factors and whatever else is a column in between.
    """
    is_wide = logits.dtype.itemsize == 8 or options.gradient_dtype == "F64"  # noqa: PLR2004 - float64
    classes = logits.shape[class_axis(logits.ndim, options.class_axis)] if logits.ndim else 1
    row_bytes = 128 if "summary" in options.include else 64
    return numbers * (8 if is_wide else 4) + logits.size // max(1, classes) * row_bytes


def to_rows(array: Array, option: int) -> Array:
    """Moves the classes last and flattens the rest: contiguous (R, C)."""
    if array.ndim == 2:  # noqa: PLR2004 - rows already: the common case
        return np.ascontiguousarray(array)
    axis = class_axis(array.ndim, option)
    classes = array.shape[axis]
    count = array.size // classes if classes else 0
    return np.ascontiguousarray(np.moveaxis(array, axis, -1).reshape(count, classes))


def from_rows(rows: Array, shape: tuple[int, ...], option: int) -> Array:
    """Undoes `to_rows`."""
    if len(shape) <= 2:  # noqa: PLR2004 - as in to_rows
        return rows.reshape(shape)
    axis = class_axis(len(shape), option)
    last = (*shape[:axis], *shape[axis + 1 :], shape[axis])
    return np.moveaxis(rows.reshape(last), -1, axis)
