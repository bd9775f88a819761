"""Where torch runs: on one device, in a thread of its own unless the batch is tiny, fed with numpy arrays.

On CUDA a batch crosses the bus twice: once in from pinned memory, once out into pinned memory.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from ..dtypes import Array, joined
from ..errors import InsufficientDeviceMemory
from ..loss.cross_entropy import cross_entropy
from ..loss.evaluation import Evaluation
from ..loss.options import Formula
from .batcher import DeviceLost, DeviceRows
from .staging import from_device, to_device

TINY_ELEMENTS = 1 << 14
"""Smaller batches on the CPU are computed where they are: they take a tenth of a millisecond, and a thread that shares
the interpreter's lock with a busy event loop waits longer for it than that, at every operation."""


def gather(evaluations: Sequence[Evaluation]) -> dict[str, Array]:
    """Joins evaluations of one key to the arguments of the kernel, on the host; a single one is not copied."""
    arithmetic = np.dtype(evaluations[0].formula.arithmetic)
    arrays = {
        "logits": joined([one.logits for one in evaluations]),
        "labels": joined([one.labels for one in evaluations]),
    }
    rows = [one.rows for one in evaluations]
    weights = [one.weighting.row_weight for one in evaluations]
    if any(weight is not None for weight in weights):
        arrays["row_weight"] = _factors([1.0 if one is None else one for one in weights], rows).astype(arithmetic)
    scales = [scale for one in evaluations if (scale := one.weighting.gradient_scale) is not None]
    if scales:
        scale = _factors(scales, rows)
        arrays["gradient_scale"] = scale.astype(arithmetic)
        if not scale.all():
            arrays["zero_rows"] = np.flatnonzero(scale == 0)
    return arrays


def _factors(factors: Sequence[Array | float], rows: Sequence[int]) -> Array:
    """Joins factors of rows, of which a number stands for all rows of its evaluation."""
    if len(factors) == 1:
        return np.full(rows[0], factors[0]) if isinstance(factors[0], float) else factors[0]
    if all(isinstance(factor, float) for factor in factors):
        return np.repeat(np.array(factors), rows)
    return np.concatenate([np.broadcast_to(factor, count) for factor, count in zip(factors, rows, strict=True)])


class TorchDevice:
    """A torch device and the one thread that drives it."""

    def __init__(self, name: str, *, threads: int) -> None:
        self.device = resolve(name)
        # OpenMP counts threads for each calling thread. Tiny batches run in the event loop's, on one: a team of several
        # spins for milliseconds after every exponential, however small.
        torch.set_num_threads(1)
        self._executor = ThreadPoolExecutor(1, "torch", torch.set_num_threads, (threads,))

    @property
    def name(self) -> str:
        """The device as torch writes it: cpu, cuda:0."""
        return str(self.device)

    async def run(self, evaluations: Sequence[Evaluation]) -> DeviceRows:
        """Computes evaluations of one key together, off the event loop unless they are tiny."""
        if self.device.type == "cpu" and sum(one.elements for one in evaluations) <= TINY_ELEMENTS:
            return self.compute(evaluations)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self.compute, evaluations)

    def compute(self, evaluations: Sequence[Evaluation]) -> DeviceRows:
        """Computes evaluations of one key together, in the calling thread."""
        started = time.perf_counter()
        try:
            inputs, formula = gather(evaluations), evaluations[0].formula
            if self.device.type != "cpu":
                return self._compute_staged(inputs, formula)  # pragma: cuda
            rows = _to_numpy(cross_entropy(formula=formula, **_to_torch(inputs)))
            return DeviceRows(rows, time.perf_counter() - started)
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                if self._still_computes():
                    raise
                raise DeviceLost(str(error)) from error
        # Not while the error is handled: its traceback keeps the tensors of the failed attempt.
        if self.device.type == "cuda":  # pragma: cuda
            torch.cuda.empty_cache()
        raise InsufficientDeviceMemory("The device has too little memory for this request; split the batch.")

    def close(self) -> None:
        """Ends the thread as soon as it has no batch."""
        self._executor.shutdown(wait=False)

    def _still_computes(self) -> bool:
        # After some errors (an assertion in a kernel, an illegal address) a CUDA context never does again; their class,
        # torch.AcceleratorError, is that of harmless ones too.
        try:
            torch.zeros(1, device=self.device).item()
        except RuntimeError:
            return False
        return True

    def _compute_staged(self, inputs: Mapping[str, Array], formula: Formula) -> DeviceRows:
        started = time.perf_counter()
        tensors = to_device(_to_torch(inputs), self.device)
        self._synchronize()
        arrived = time.perf_counter()
        found = cross_entropy(formula=formula, **tensors)
        self._synchronize()
        computed = time.perf_counter()
        rows = _to_numpy(from_device(found))
        finished = time.perf_counter()
        return DeviceRows(rows, computed - arrived, (finished - computed) + (arrived - started))

    def _synchronize(self) -> None:
        if self.device.type == "cuda":  # pragma: cuda
            torch.cuda.synchronize(self.device)


def resolve(name: str) -> torch.device:
    """Turns the setting DEVICE into a torch device; `auto` means cuda if there is one.

    Raises:
        ValueError: A CUDA device is asked for and there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            msg = f"DEVICE={name}, but torch {torch.__version__} sees no CUDA device"
            raise ValueError(msg)
        device = torch.device("cuda", device.index or 0)  # pragma: cuda
        if device.index >= torch.cuda.device_count():  # pragma: cuda
            msg = f"DEVICE={name}, but there are {torch.cuda.device_count()} CUDA devices"
            raise ValueError(msg)
    return device


def _is_out_of_memory(error: Exception) -> bool:
    # torch has no class for it on the CPU, nor for pinned memory.
    return isinstance(error, MemoryError) or any(
        text in str(error) for text in ("out of memory", "can't allocate memory")
    )


def _to_torch(arrays: Mapping[str, Array]) -> dict[str, Tensor]:
    return {name: _as_tensor(array) for name, array in arrays.items()}


def _as_tensor(array: Array) -> Tensor:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _to_numpy(tensors: Mapping[str, Tensor]) -> dict[str, Array]:
    return {name: _as_array(tensor) for name, tensor in tensors.items()}


def _as_array(tensor: Tensor) -> Array:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
