"""Worst errors of the kernel, and of `F.cross_entropy` beside it, in units of the accuracy bars.

1 is exactly at the bar, 0.5 is twice as good as asked for, 148 is 148 times too far off.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from benchmarks import adapter
from benchmarks.reference import losses_and_gradients as right_answer
from benchmarks.regimes import CLASSES, REGIMES, Labels, draw
from benchmarks.report import Row, Table, progress

Wide = NDArray[np.longdouble]
Kernel = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclasses.dataclass(frozen=True, slots=True)
class Bars:
    """The errors allowed; those of gradients are per unit of upstream gradient, here 1 / N."""

    loss: float
    loss_when_even: float  # every logit within 4 of the row's largest
    gradient_relative: float
    gradient_absolute: float
    row_sum: float


@dataclasses.dataclass(frozen=True, slots=True)
class Precision:
    """A way to compute, the dtype it reads and writes, and its bars."""

    name: str
    dtype: type[np.float32 | np.float64]
    kernel: Kernel
    torch: Kernel
    bars: Bars


@dataclasses.dataclass(frozen=True, slots=True)
class Errors:
    """The worst of many rows, in units of the bars, and the number of false zeros."""

    loss: float = 0.0
    gradient: float = 0.0
    row_sum: float = 0.0
    zeros: int = 0

    def worst(self, other: "Errors") -> "Errors":
        """Joins two sets of rows; NaN wins."""
        pairs = ((self.loss, other.loss), (self.gradient, other.gradient), (self.row_sum, other.row_sum))
        loss, gradient, row_sum = (float(np.maximum(*pair)) for pair in pairs)
        return Errors(loss, gradient, row_sum, self.zeros + other.zeros)

    @property
    def is_within(self) -> bool:
        return max(self.loss, self.gradient, self.row_sum) <= 1 and not self.zeros


def autograd(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Computes the same with `F.cross_entropy` and autograd."""
    leaf = logits.detach().requires_grad_()
    losses = functional.cross_entropy(leaf, labels, reduction="none")
    (gradients,) = torch.autograd.grad(losses.mean(), leaf)
    return losses.detach(), gradients


def autograd_in_float64(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Computes in float64 and rounds at the end, as one would for more digits."""
    losses, gradients = autograd(logits.double(), labels)
    return losses.float(), gradients.float()


def high(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return adapter.losses_and_gradients(logits, labels, is_high=True)


_SUBNORMAL: Final = float(np.finfo(np.float32).smallest_subnormal)
PRECISIONS: Final = (
    Precision("standard", np.float32, adapter.losses_and_gradients, autograd, Bars(5e-6, 3e-7, 1e-6, 6e-8, 5e-7)),
    Precision("high", np.float32, high, autograd_in_float64, Bars(6.1e-8, 6.1e-8, 6.1e-8, _SUBNORMAL, 2e-7)),
    Precision("F64 input", np.float64, adapter.losses_and_gradients, autograd, Bars(1e-14, 1e-14, 0, 1e-14, 1e-14)),
)


def _loss_error(losses: Wide, right: Wide, is_even: NDArray[np.bool_], precision: Precision) -> float:
    """Relative, but below the smallest normal number, where digits run out: in units of that number."""
    relative = np.where(is_even, precision.bars.loss_when_even, precision.bars.loss)
    tiny = np.finfo(precision.dtype).tiny
    allowed = np.where(right >= tiny, relative * right, tiny)
    return float((np.abs(losses - right) / allowed).max())


def _gradient_error(gradients: Wide, right: Wide, precision: Precision) -> float:
    """Whichever is larger counts: the relative allowance or the absolute one."""
    bars, upstream = precision.bars, 1 / len(right)
    # High precision rounds once, so its absolute allowance is a subnormal of the output itself.
    absolute = bars.gradient_absolute * (1 if precision.name == "high" else upstream)
    return float((np.abs(gradients - right) / np.maximum(bars.gradient_relative * np.abs(right), absolute)).max())


def _false_zeros(given: Wide, right: Wide, precision: Precision) -> int:
    return int(((given == 0) & (np.abs(right) >= np.finfo(precision.dtype).tiny)).sum())


def compare(logits: NDArray[Any], labels: Labels, right: tuple[Wide, Wide], precision: Precision) -> list[Errors]:
    """Returns the errors of the service's kernel and of torch's."""
    is_even = (logits - logits.max(axis=1, keepdims=True)).min(axis=1) > -4
    found = []
    for kernel in (precision.kernel, precision.torch):
        given = kernel(torch.from_numpy(logits), torch.from_numpy(labels))
        losses, gradients = (tensor.numpy().astype(np.longdouble) for tensor in given)
        found.append(
            Errors(
                loss=_loss_error(losses, right[0], is_even, precision),
                gradient=_gradient_error(gradients, right[1], precision),
                row_sum=float(np.abs(gradients.sum(axis=1)).max()) * len(labels) / precision.bars.row_sum,
                zeros=_false_zeros(losses, right[0], precision) + _false_zeros(gradients, right[1], precision),
            )
        )
    return found


def _regime_rows(name: str, elements: int) -> list[Row]:
    """One row a precision, each the worst over all class counts."""
    worst = {precision.name: [Errors(), Errors()] for precision in PRECISIONS}
    for classes in CLASSES:
        drawn, labels = draw(name, classes, elements)
        answers: dict[type, tuple[Wide, Wide]] = {}
        for precision in PRECISIONS:
            logits = drawn.astype(precision.dtype)
            if precision.dtype not in answers:
                answers[precision.dtype] = right_answer(logits, labels)
            errors = compare(logits, labels, answers[precision.dtype], precision)
            worst[precision.name] = [old.worst(new) for old, new in zip(worst[precision.name], errors, strict=True)]
    return [_row(precision, name, *worst[precision.name]) for precision in PRECISIONS]


def _row(precision: Precision, regime: str, kernel: Errors, reference: Errors) -> Row:
    return {
        "precision": precision.name,
        "logits": regime,
        "loss": kernel.loss,
        "gradient": kernel.gradient,
        "row sum": kernel.row_sum,
        "false zeros": kernel.zeros,
        "torch: loss": reference.loss,
        "torch: gradient": reference.gradient,
        "torch: row sum": reference.row_sum,
        "torch: false zeros": reference.zeros,
        "bar": "≤ 1, no false zeros",
        "holds": kernel.is_within,
    }


def measure(elements: int) -> Table:
    """Compares every regime at every class count and precision."""
    rows: list[Row] = []
    for name in REGIMES:
        progress(f"accuracy: {name}")
        with np.errstate(under="ignore"):
            rows += _regime_rows(name, elements)
    order = [precision.name for precision in PRECISIONS]
    rows.sort(key=lambda line: order.index(str(line["precision"])))
    title = f"Accuracy: worst error in units of its bar, C in {{{', '.join(map(str, CLASSES))}}}"
    return Table(title, rows)
