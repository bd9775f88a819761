"""Many tensors across the bus in one copy: packed into a single buffer, pinned on the host's side.

Pinned memory comes from torch's caching host allocator, which keeps freed blocks and hands them out again.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

ALIGNMENT = 256
"""Bytes; what cudaMalloc gives, so that a view of the buffer is as good as an allocation of its own."""


@dataclass(frozen=True, slots=True)
class _Place:
    start: int
    stop: int
    dtype: torch.dtype
    shape: torch.Size

    def view(self, buffer: Tensor) -> Tensor:
        return buffer[self.start : self.stop].view(self.dtype).view(self.shape)


def to_device(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Copies host tensors to the device in one transfer."""
    places, size = _layout(tensors)
    packed = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    for name, place in places.items():
        place.view(packed).copy_(tensors[name])
    arrived = packed.to(device, non_blocking=True)
    return {name: place.view(arrived) for name, place in places.items()}


def from_device(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies tensors of one device to the host in one transfer, and waits for it."""
    places, size = _layout(tensors)
    device = next(iter(tensors.values())).device
    packed = torch.empty(size, dtype=torch.uint8, device=device)
    for name, place in places.items():
        place.view(packed).copy_(tensors[name])
    arrived = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    arrived.copy_(packed, non_blocking=True)
    if device.type == "cuda":  # pragma: cuda
        torch.cuda.current_stream(device).synchronize()
    return {name: place.view(arrived) for name, place in places.items()}


def _layout(tensors: Mapping[str, Tensor]) -> tuple[dict[str, _Place], int]:
    places, start = {}, 0
    for name, tensor in tensors.items():
        stop = start + tensor.numel() * tensor.element_size()
        places[name] = _Place(start, stop, tensor.dtype, tensor.shape)
        start = -(-stop // ALIGNMENT) * ALIGNMENT
    return places, start
