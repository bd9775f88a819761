"""What can be asked of the loss, as values that compare and hash."""

from dataclasses import dataclass
from typing import Literal, get_args

InputKind = Literal["logits", "log_probabilities", "probabilities"]
Reduction = Literal["mean", "sum", "none"]
Precision = Literal["standard", "high"]
FloatName = Literal["F32", "F64", "F16", "BF16"]
Output = Literal[
    "loss",
    "losses",
    "gradients",
    "nll",
    "probabilities",
    "logsumexp",
    "entropy",
    "margin",
    "gradient_norm",
    "predictions",
    "summary",
]

OUTPUTS: tuple[Output, ...] = get_args(Output)
DEFAULT_INCLUDE: tuple[Output, ...] = ("loss", "losses")
DEFAULT_IGNORE_INDEX = -100
MAX_RANK = 16


@dataclass(frozen=True, slots=True)
class LossOptions:
    """The scalar options of one request; each value is already within its documented range.

    `ignore_index` is None where the caller gave none: given explicitly it is refused for probability labels.
    """

    input: InputKind = "logits"
    ignore_index: int | None = None
    label_smoothing: float = 0.0
    temperature: float = 1.0
    z_loss: float = 0.0
    reduction: Reduction = "mean"
    class_axis: Literal[1, -1] = 1
    include: tuple[Output, ...] = DEFAULT_INCLUDE
    precision: Precision = "standard"
    gradient_dtype: FloatName | None = None


@dataclass(frozen=True, slots=True)
class Formula:
    """What one pass of the kernel computes. Requests of one formula can share a pass.

    `outputs` names what the kernel returns, not the response's fields. Everything that
    differs from row to row (ignored rows, sample weights, reduction, upstream gradients) is not here: it is data.
    """

    input: InputKind = "logits"
    label_smoothing: float = 0.0
    temperature: float = 1.0
    z_loss: float = 0.0
    arithmetic: Literal["float32", "float64"] = "float32"
    gradient_dtype: FloatName | None = None
    outputs: frozenset[str] = frozenset()
    class_weight: bytes | None = None
    """float64 in C order, one for each class; bytes, so that formulas compare by value."""
