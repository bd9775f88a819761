"""`CrossEntropyLoss`: PyTorch's module of that name, whose forward and backward come from the service."""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from .client import Client
from .operations import Output


class CrossEntropyLoss(torch.nn.Module):
    """Drop-in for `torch.nn.CrossEntropyLoss`: differentiable once, with respect to the logits.

    The gradients of the sum come with the loss, in float32 (float64 for float64 logits). Backward scales them, and only
    then casts them, so that float16 with a gradient scaler doesn't underflow.

    Args:
        client: Its time budget and retries hold for every step.
        weight: As in PyTorch, as are the others; though not negative.
        ignore_index: Labels that count for nothing.
        reduction: Of the losses.
        label_smoothing: 0 to 1.
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
        if reduction not in {"mean", "sum", "none"}:
            raise ValueError(f"{reduction} is not a valid value for reduction")
        self.client, self.reduction = client, reduction
        self.ignore_index, self.label_smoothing = ignore_index, label_smoothing
        self.register_buffer("weight", weight)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:  # noqa: A002 - PyTorch's name
        """Computes the loss of logits (C), (N, C) or (N, C, d1…dk) and class indices or probabilities."""
        if target.requires_grad:
            raise NotImplementedError("there are no gradients with respect to the target")
        is_reduced, needs_gradients = self.reduction != "none", input.requires_grad and torch.is_grad_enabled()
        include: list[Output] = ["loss" if is_reduced else "losses"]
        if needs_gradients:
            include.append("gradients")
        result = self.client.cross_entropy(
            input,
            target,
            include=include,
            reduction="sum" if is_reduced else "none",
            weight=None if self.weight is None else self.weight.double(),
            ignore_index=self.ignore_index if target.ndim < input.ndim else None,  # probabilities have none
            label_smoothing=self.label_smoothing,
        )
        divisor = result.normalizer if self.reduction == "mean" else 1.0
        value = (result.loss_sum / divisor if divisor else math.nan) if is_reduced else result.losses
        # PyTorch's own is autocast to float32.
        is_widened = input.dtype in {torch.float16, torch.bfloat16} and torch.is_autocast_enabled(input.device.type)
        loss = torch.as_tensor(value, dtype=torch.float32 if is_widened else input.dtype, device=input.device)
        if needs_gradients:
            gradients = torch.from_numpy(result.gradients).to(input.device)
            loss = _WithGradients.apply(input, loss, gradients, divisor)  # type: ignore[no-untyped-call]
        return loss

    def extra_repr(self) -> str:
        """Names the service."""
        return f"{self.client}, reduction={self.reduction!r}"


class _WithGradients(torch.autograd.Function):
    """The loss, as a function of the logits whose gradients are known: divided by `divisor`, 0 where that is 0."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, loss: Tensor, gradients: Tensor, divisor: float) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(gradients)
        ctx.dtype, ctx.divisor = logits.dtype, divisor
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        # Not `once_differentiable`: with a constant upstream gradient it lets the second derivative be 0 in silence.
        if torch.is_grad_enabled():
            raise RuntimeError("the loss of the service can't be differentiated twice (create_graph=True)")
        (gradients,) = ctx.saved_tensors
        scale = upstream.to(gradients.dtype) / ctx.divisor if ctx.divisor else torch.zeros_like(upstream)
        if scale.ndim:  # of each sample: along the class axis
            scale = scale.unsqueeze(1)
        return (gradients * scale).to(ctx.dtype), None, None, None
