"""`CrossEntropyLoss`: PyTorch's module of that name, whose forward and backward come from the service."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from torch import Tensor

    from .client import Client


class CrossEntropyLoss(torch.nn.Module):
    """Drop-in for `torch.nn.CrossEntropyLoss`; differentiable once, and with respect to the logits.

    The gradients come with the loss, unreduced in float32 (float64 for float64 logits), and are scaled and only then
    cast in backward, so that float16 with a gradient scaler does not underflow.

    Args:
        client: Evaluates; its time budget and retries hold for every step.
        weight: As in PyTorch, though not negative.
        ignore_index: As in PyTorch.
        reduction: As in PyTorch.
        label_smoothing: As in PyTorch.
    """

    weight: Tensor | None

    def __init__(
        self,
        client: Client,
        weight: Tensor | None = None,
        *,
        ignore_index: int = -100,
        reduction: Literal["mean", "sum", "none"] = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.client, self.reduction = client, reduction
        self.register_buffer("weight", weight)
        self.ignore_index, self.label_smoothing = ignore_index, label_smoothing

    def forward(self, input: Tensor, target: Tensor) -> Tensor:  # noqa: A002 - PyTorch's names
        """Computes the loss of logits (C), (N, C) or (N, C, d1…dk) and class indices or probabilities."""
        if target.requires_grad:
            raise NotImplementedError("there are no gradients with respect to the target")
        weight = None if self.weight is None else self.weight.double()
        options = {"weight": weight, "ignore_index": self.ignore_index, "label_smoothing": self.label_smoothing}
        loss: Tensor = _CrossEntropy.apply(input, target, self.client, self.reduction, torch.is_grad_enabled(), options)
        return loss

    def extra_repr(self) -> str:
        """Names the service."""
        return f"{self.client}, reduction={self.reduction!r}"


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        client: Client,
        reduction: str,
        is_grad_enabled: bool,
        options: dict[str, Any],
    ) -> Tensor:
        outputs = ["losses"] if reduction == "none" else ["loss"]
        if is_grad_enabled and ctx.needs_input_grad[0]:
            outputs.append("gradients")
        sums = "none" if reduction == "none" else "sum"
        result = client.cross_entropy(logits, target, include=outputs, reduction=sums, **options)
        if "gradients" in outputs:
            ctx.save_for_backward(torch.from_numpy(result.gradients).to(logits.device))
            ctx.dtype, ctx.reduction, ctx.normalizer = logits.dtype, reduction, result.normalizer
        mean = result.loss_sum / result.normalizer if result.normalizer else math.nan
        value = {"mean": mean, "sum": result.loss_sum, "none": result.outputs.get("losses")}[reduction]
        # PyTorch's own is autocast to float32.
        is_widened = logits.dtype.itemsize == 2 and torch.is_autocast_enabled(logits.device.type)
        return torch.as_tensor(value, dtype=torch.float32 if is_widened else logits.dtype, device=logits.device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradients,) = ctx.saved_tensors
        scale = upstream.to(gradients.dtype)
        if ctx.reduction == "mean":
            scale = scale / ctx.normalizer if ctx.normalizer else torch.zeros_like(scale)
        elif ctx.reduction == "none":
            scale = scale.unsqueeze(min(1, gradients.ndim - 1))
        return (gradients * scale).to(ctx.dtype), None, None, None, None, None
