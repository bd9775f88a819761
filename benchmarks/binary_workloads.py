"""The requests that are sent as safetensors files, written and read by the official package."""

import dataclasses
import math
from collections.abc import Mapping
from functools import cached_property
from typing import Final

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from benchmarks.reference import losses_and_gradients
from benchmarks.workloads import GRADIENT_TOLERANCE, OUTPUTS, TOLERANCE

_CHECKED_ELEMENTS: Final = 1 << 18
_NAMES: Final = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


@dataclasses.dataclass(frozen=True)
class BinaryWorkload:
    """Logits (N, C) or (N, C, d) with labels (N) or (N, d), the outputs in binary too."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    connections: int = 1

    content_type = "application/x-safetensors"
    query = f"?include={','.join(OUTPUTS)}"

    @property
    def name(self) -> str:
        """The shape and the dtype of the logits."""
        return f"{'×'.join(map(str, self.shape))} {_NAMES[self.dtype]}"

    @property
    def samples(self) -> int:
        """The number of losses."""
        return math.prod(self.shape) // self.shape[1]

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Normal logits, scaled by two, and uniform labels, always the same."""
        generator = torch.Generator().manual_seed(self.shape[0])
        logits = torch.randn(self.shape, generator=generator).mul_(2).to(self.dtype)
        labels = torch.randint(self.shape[1], (self.shape[0], *self.shape[2:]), generator=generator)
        return {"logits": logits, "labels": labels}

    @cached_property
    def body(self) -> bytes:
        """The request as a safetensors file."""
        return safetensors.torch.save(self.tensors)

    def is_answered_by(self, answer: bytes) -> bool:
        """Says whether an answer is right in some evenly spaced samples, and plausible in all of them."""
        given = safetensors.torch.load(answer)
        return set(OUTPUTS) <= set(given) and self._is_plausible(given) and self._is_right_in_some(given)

    def _is_plausible(self, given: Mapping[str, Tensor]) -> bool:
        """The mean is that of the losses; the gradient of each sample sums to 0."""
        losses, gradients = given["losses"], given["gradients"]
        has_shapes = losses.shape == self.tensors["labels"].shape and gradients.shape == self.shape
        mean_error = float((given["loss"] - losses.mean(dtype=torch.float64)).abs())
        largest_sum = float(gradients.sum(dim=1, dtype=torch.float32).abs().max()) * self.samples
        return has_shapes and mean_error <= TOLERANCE and largest_sum <= TOLERANCE

    def _is_right_in_some(self, given: Mapping[str, Tensor]) -> bool:
        logits, labels = self.tensors["logits"], self.tensors["labels"]
        step = -(-logits.numel() // _CHECKED_ELEMENTS)
        some = torch.arange(0, self.samples, step)
        losses, gradients = losses_and_gradients(_rows(logits, some).double().numpy(), labels.reshape(-1)[some].numpy())
        # The reference's mean is over the samples it was given, the service's over all of them.
        right = (losses, gradients * len(some))
        found = (given["losses"].reshape(-1)[some], _rows(given["gradients"], some) * self.samples)
        return all(
            np.allclose(one.double().numpy(), other.astype(np.float64), rtol=TOLERANCE, atol=absolute)
            for one, other, absolute in zip(found, right, (TOLERANCE, GRADIENT_TOLERANCE), strict=True)
        )


def _rows(tensor: Tensor, some: Tensor) -> Tensor:
    """Returns some of the samples of a tensor whose classes are on axis 1, as (R, C)."""
    return tensor.movedim(1, -1).reshape(-1, tensor.shape[1])[some]
