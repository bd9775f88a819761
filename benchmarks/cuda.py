"""Section `cuda`: the kernel beside a copy within the device, the engine beside the bus, and what it must survive."""

import asyncio
import sys
import time
from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from torch import Tensor

from benchmarks import adapter
from benchmarks.report import Row, Table, at_least, median, progress, row

_SHAPES: Final = ((65_536, 10), (4096, 8192), (512, 32_000))
_DTYPES: Final = {torch.float32: "F32", torch.bfloat16: "BF16"}
_KERNEL_BAR: Final = at_least(0.5)
_STREAM_BAR: Final = at_least(0.8)
_FULL_ROUNDS: Final = 50
_QUICK_ROUNDS: Final = 10
_WARMUP_ROUNDS: Final = 3
_FILLER_BYTES: Final = 1 << 30
_IN_FLIGHT: Final = 4
_REQUESTS_A_ROUND: Final = 4 * _IN_FLIGHT
_SCARCE_BYTES: Final = 64 << 20


def device_s(ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Returns the median seconds of each on the device; they take turns.

    Filling a gibibyte first empties the device's cache, and keeps it busy until the host has issued all that follows:
    what is timed is the device, not the interpreter.
    """
    filler = torch.empty(_FILLER_BYTES, dtype=torch.uint8, device="cuda")
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(_WARMUP_ROUNDS + rounds):
        for work, found in zip((ours, theirs), times, strict=True):
            start, stop = _event(), _event()
            filler.zero_()
            start.record()
            work()
            stop.record()
            torch.cuda.synchronize()
            found.append(start.elapsed_time(stop) / 1e3)
    return median(times[0][_WARMUP_ROUNDS:]), median(times[1][_WARMUP_ROUNDS:])


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _kernel(shape: tuple[int, int], dtype: torch.dtype, rounds: int) -> Row:
    """The kernel has to read the logits and to write as many gradients; so does a copy."""
    progress(f"cuda: kernel, {shape[0]}×{shape[1]} {_DTYPES[dtype]}")
    logits = 2 * torch.randn(shape, device="cuda").to(dtype)
    labels = torch.randint(shape[1], (shape[0],), device="cuda")
    target = torch.empty_like(logits)
    ours_s, copy_s = device_s(
        lambda: adapter.losses_and_gradients(logits, labels), lambda: target.copy_(logits), rounds
    )
    moved = 2 * logits.numel() * logits.element_size() / 1e9
    what = f"{shape[0]:,}×{shape[1]:,} {_DTYPES[dtype]}: loss and gradient GB/s, against a copy within the device"
    return row(what, figure=moved / ours_s, reference=moved / copy_s, bar=_KERNEL_BAR)


def _request(rows: int, classes: int) -> adapter.Evaluation:
    generator = np.random.default_rng(rows)
    logits = generator.standard_normal((rows, classes), dtype=np.float32)
    return adapter.evaluation(logits, generator.integers(0, classes, rows))


async def _stream_s(device: adapter.TorchDevice, request: adapter.Evaluation) -> float:
    """Returns the seconds that one of many requests takes when there is always another."""

    async def send() -> None:
        for _ in range(_REQUESTS_A_ROUND // _IN_FLIGHT):
            await device.run([request])

    begun_at = time.perf_counter()
    await asyncio.gather(*(send() for _ in range(_IN_FLIGHT)))
    return (time.perf_counter() - begun_at) / _REQUESTS_A_ROUND


def _copies_s(host: tuple[Tensor, Tensor], device: tuple[Tensor, Tensor]) -> float:
    """Returns the seconds that pinned memory takes to the device and back, both at once, each on its own stream."""
    into, out_of = torch.cuda.Stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    begun_at = time.perf_counter()
    for _ in range(_REQUESTS_A_ROUND):
        with torch.cuda.stream(into):
            device[0].copy_(host[0], non_blocking=True)
        with torch.cuda.stream(out_of):
            host[1].copy_(device[1], non_blocking=True)
    torch.cuda.synchronize()
    return (time.perf_counter() - begun_at) / _REQUESTS_A_ROUND


def _stream(device: adapter.TorchDevice, rounds: int) -> Row:
    progress("cuda: stream of requests")
    request = _request(4096, 8192)
    size = request.logits.nbytes
    host = (torch.empty(size, dtype=torch.uint8).pin_memory(), torch.empty(size, dtype=torch.uint8).pin_memory())
    on_device = (host[0].cuda(), host[1].cuda())
    requests: list[float] = []
    copies: list[float] = []
    for _ in range(1 + rounds):
        requests.append(asyncio.run(_stream_s(device, request)))
        copies.append(_copies_s(host, on_device))
    request_s, copy_s = median(requests[1:]), median(copies[1:])
    what = "stream of 128 MiB requests: GB/s each way, against pinned copies both ways at once"
    return row(what, figure=size / request_s / 1e9, reference=size / copy_s / 1e9, bar=_STREAM_BAR)


def _refuses_what_does_not_fit(device: adapter.TorchDevice) -> bool:
    """Leaves the process so little of the device's memory that a request cannot fit."""
    huge, total = _request(4096, 8192), torch.cuda.get_device_properties(device.device).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(_SCARCE_BYTES / total, device.device)
    try:
        device.compute([huge])
    except adapter.InsufficientDeviceMemory:
        return True
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device.device)
    return False


def _refuses_bad_labels(device: adapter.TorchDevice) -> bool:
    """A label that reached the device would end the process' use of it."""
    try:
        device.compute([adapter.evaluation(np.zeros((4, 10), np.float32), np.full(4, 10))])
    except adapter.LabelOutOfRange:
        return True
    return False


def _survival(device: adapter.TorchDevice) -> list[Row]:
    """After each refusal the same request gets the same bits as before."""
    small = _request(32, 10)
    rows: list[Row] = []
    for what, refuses in (("out of memory", _refuses_what_does_not_fit), ("bad labels", _refuses_bad_labels)):
        progress(f"cuda: {what}")
        before = device.compute([small]).rows["gradients"]
        is_survived = refuses(device) and np.array_equal(device.compute([small]).rows["gradients"], before)
        rows.append(row(f"{what}: refused, and survived", figure=float(is_survived), reference=1, bar=at_least(1)))
    return rows


def run(*, is_quick: bool) -> list[Table]:
    """Measures the kernel and the engine; ends the process where there is no CUDA device."""
    if not torch.cuda.is_available():
        sys.exit(f"benchmarks cuda: torch {torch.__version__} sees no CUDA device")
    rounds = _QUICK_ROUNDS if is_quick else _FULL_ROUNDS
    kernel = [_kernel(shape, dtype, rounds) for dtype in _DTYPES for shape in _SHAPES]
    device = adapter.TorchDevice("cuda", threads=1)
    try:
        engine = [_stream(device, rounds // 5), *_survival(device)]
    finally:
        device.close()
    name = torch.cuda.get_device_name()
    return [Table(f"CUDA: kernel on {name}", kernel), Table("CUDA: engine", engine)]
