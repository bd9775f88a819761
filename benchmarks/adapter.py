"""The one place where the benchmarks touch the service's own code."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from service.api.schemas import SCALAR_FIELDS
from service.engine.device import TorchDevice
from service.errors import InsufficientDeviceMemory, LabelOutOfRange
from service.host import keep_freed_memory
from service.loss.cross_entropy import cross_entropy
from service.loss.evaluation import Evaluation
from service.loss.options import Formula, LossOptions
from service.loss.validation import SizeLimits, validate
from service.wire import json_body

__all__ = [
    "Evaluation",
    "InsufficientDeviceMemory",
    "LabelOutOfRange",
    "TorchDevice",
    "decode_json",
    "encode_json",
    "evaluation",
    "keep_freed_memory",
    "losses_and_gradients",
]

Array = NDArray[Any]
_OUTPUTS = frozenset({"losses", "gradients"})


def losses_and_gradients(logits: Tensor, labels: Tensor, *, is_high: bool = False) -> tuple[Tensor, Tensor]:
    """Computes losses (N) and the gradient (N, C) of their mean, in the dtype of the logits, where they are.

    Args:
        logits: (N, C), float32, float64 or bfloat16.
        labels: (N,), int64 in [0, C).
        is_high: Computes in float64 whatever the dtype.
    """
    is_wide = is_high or logits.dtype == torch.float64
    formula = Formula(
        outputs=_OUTPUTS,
        arithmetic="float64" if is_wide else "float32",
        gradient_dtype="BF16" if logits.dtype == torch.bfloat16 else None,
    )
    arithmetic = torch.float64 if is_wide else torch.float32
    scale = torch.full((len(labels),), 1 / len(labels), dtype=arithmetic, device=logits.device)
    found = cross_entropy(logits, labels, formula=formula, gradient_scale=scale)
    return found["losses"].to(logits.dtype), found["gradients"]


def decode_json(body: bytes) -> Mapping[str, Array]:
    """Reads the arrays of a JSON request."""
    arrays, _ = json_body.decode(body, SCALAR_FIELDS)
    return arrays


def encode_json(values: Mapping[str, object]) -> Sequence[bytes | bytearray | memoryview]:
    """Writes a JSON answer, in parts."""
    return json_body.encode(values, base64=False)


def evaluation(logits: Array, labels: Array) -> Evaluation:
    """Validates a request for loss, losses and gradients.

    Raises:
        LabelOutOfRange: A label is not in [0, C).
    """
    options = LossOptions(include=("loss", "losses", "gradients"))
    return validate({"logits": logits, "labels": labels}, options, SizeLimits())
