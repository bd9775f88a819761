"""Builds of the service that differ in one thing: a device that does what a test needs, or a guarantee switched off.

A sabotaged build proves that the scenario which passes without it can fail.
"""

import dataclasses
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import httptools
import numpy as np
import torch
from fastapi import FastAPI

from service import server as lifecycle
from service.api import cross_entropy, documentation, health, problems, protocol
from service.api.gathering import GatheringTransport
from service.engine import batch_plan, batcher, device
from service.engine.admission import Admission, Reservation
from service.engine.batcher import Batcher, DeviceRows
from service.engine.device import TorchDevice
from service.errors import InvalidValue
from service.loss.evaluation import Evaluation
from service.wire import json_body, json_errors
from tests.reliability.marks import DEVICE_ROWS, FIXED_S, MARK, SMALL_CLASSES

BUILDS: Final[dict[str, Callable[[], None]]] = {}
Kernel = Callable[..., dict[str, torch.Tensor]]


def build(change: Callable[[], None]) -> Callable[[], None]:
    BUILDS[change.__name__] = change
    return change


def replace(owner: object, name: str, new: object) -> Any:
    """Puts something in the place of what an owner has by that name, and returns that."""
    old = getattr(owner, name)
    setattr(owner, name, new)
    return old


def _change_kernel(changed: Callable[[Kernel, dict[str, Any]], dict[str, torch.Tensor]]) -> None:
    """Puts something around the kernel, which then always runs in the device's thread."""
    plain: Kernel = replace(device, "cross_entropy", lambda **arguments: changed(plain, arguments))
    replace(device, "TINY_ELEMENTS", 0)


def _is_marked(logits: torch.Tensor) -> bool:
    return bool((logits == MARK).any())


# Devices


@build
def fixed_device() -> None:
    """Every batch takes the device 5 ms, and no processor."""

    def kernel(plain: Kernel, arguments: dict[str, Any]) -> dict[str, torch.Tensor]:
        started = time.perf_counter()
        found = plain(**arguments)
        time.sleep(max(0.0, started + FIXED_S - time.perf_counter()))
        return found

    _change_kernel(kernel)


@build
def failing_device() -> None:
    """A marked request makes its batch fail."""

    def kernel(plain: Kernel, arguments: dict[str, Any]) -> dict[str, torch.Tensor]:
        if _is_marked(arguments["logits"]):
            raise ArithmeticError("a marked request")
        return plain(**arguments)

    _change_kernel(kernel)


@build
def small_device() -> None:
    """More than DEVICE_ROWS rows of five classes don't fit."""

    def kernel(plain: Kernel, arguments: dict[str, Any]) -> dict[str, torch.Tensor]:
        rows, classes = arguments["logits"].shape
        if rows > DEVICE_ROWS and classes == SMALL_CLASSES:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return plain(**arguments)

    _change_kernel(kernel)


@build
def hanging_device() -> None:
    """A marked request never comes back from the device."""

    def kernel(plain: Kernel, arguments: dict[str, Any]) -> dict[str, torch.Tensor]:
        while _is_marked(arguments["logits"]):
            time.sleep(1)
        return plain(**arguments)

    _change_kernel(kernel)


@build
def sticky_device() -> None:
    """After a marked request everything fails that uses the device, as with CUDA after an assertion in a kernel."""
    broken: list[bool] = []

    def fail(*_: object, **__: object) -> Any:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    def kernel(plain: Kernel, arguments: dict[str, Any]) -> dict[str, torch.Tensor]:
        if broken or _is_marked(arguments["logits"]):
            broken.append(True)
            for name in ("zeros", "ones", "empty"):
                replace(torch, name, fail)
            fail()
        return plain(**arguments)

    _change_kernel(kernel)


@build
def mortal_batcher() -> None:
    """A marked request kills the task that runs batches."""

    async def run_next(self: Batcher) -> None:
        if any(np.any(job.evaluation.logits == MARK) for job in self._waiting):
            raise SystemError("the batcher task ends")
        await plain(self)

    plain = replace(Batcher, "_run_next", run_next)


# Guarantees switched off


@build
def errors_are_bugs() -> None:
    """Every refusal is a 500."""
    replace(problems, "status_of", lambda _: 500)


@build
def bodies_are_kept() -> None:
    """Every body stays in memory: a leak."""
    kept: list[bytes] = []

    async def read_body(*args: object, **options: object) -> Any:
        received = await plain(*args, **options)
        kept.append(bytes(received) + bytes(4096))
        return received

    plain = replace(cross_entropy, "read_body", read_body)


@build
def sloppy_parser() -> None:
    """The parser takes what two servers could read differently."""

    class Sloppy(httptools.HttpRequestParser):
        def __init__(self, owner: object) -> None:
            super().__init__(owner)
            self.set_dangerous_leniencies(
                lenient_chunked_length=True,
                lenient_headers=True,
                lenient_transfer_encoding=True,
                lenient_optional_lf_after_cr=True,
                lenient_optional_cr_before_lf=True,
                lenient_spaces_after_chunk_size=True,
            )

    def init(self: protocol.HttpProtocol, *args: object, **options: object) -> None:
        plain(self, *args, **options)
        self.parser = Sloppy(self)

    plain = replace(protocol.HttpProtocol, "__init__", init)


@build
def no_lingering() -> None:
    """A connection is reset as soon as its last answer is written."""

    def close(self: GatheringTransport) -> None:
        self.flush()
        self.reset()

    replace(GatheringTransport, "close", close)


@build
def long_numbers() -> None:
    """Numbers are read however long they are, which takes the square of their length."""
    sys.set_int_max_str_digits(0)
    replace(json_errors, "_bounded_int", int)


@build
def every_element_explained() -> None:
    """Of a wrong array not the first element is described, but each."""

    def explain_element(name: str, value: Any) -> InvalidValue:
        findings = [
            InvalidValue.at(f"#/{name}/{place}", f"{one} is not a number") for place, one in enumerate(value[0])
        ]
        return findings[0]

    replace(json_body, "explain_element", explain_element)


@build
def helpful_paths() -> None:
    """A path that is nearly right is redirected to the one that is, on the host that the client names."""

    def framework(*args: Any, **options: Any) -> FastAPI:
        app: FastAPI = plain(*args, **options)
        app.router.redirect_slashes = True
        return app

    plain = replace(documentation, "framework", framework)


@build
def eager_refusals() -> None:
    """Refusals are written whether anybody reads them or not."""
    replace(GatheringTransport, "is_flushed", property(lambda _: True))


@build
def nothing_released() -> None:
    """What a request reserved stays reserved."""
    replace(Reservation, "release", lambda _: None)


@build
def everything_admitted() -> None:
    """Nobody is refused for the work that waits."""
    replace(Admission, "is_full_for", lambda *_: False)
    replace(Admission, "check_queue", lambda *_, **__: None)


@build
def nothing_reserved() -> None:
    """Bodies may take any memory."""
    replace(Admission, "grow", lambda *_: None)


@build
def computed_for_nobody() -> None:
    """Nothing is dropped from the queue."""

    def next_batch(self: object, now: float, **options: bool) -> Any:
        del now
        return plain(self, -math.inf, **options)

    plain = replace(batch_plan.Waiting, "next_batch", next_batch)
    replace(batcher.Job, "is_abandoned", property(lambda _: False))
    replace(Batcher, "_run", _run_expired_too)


async def _run_expired_too(self: Batcher, jobs: Sequence[batcher.Job], closed_by: batch_plan.ClosedBy) -> None:
    started = self._clock()
    result = await self._device.run([job.evaluation for job in jobs])
    self._deliver(jobs, result, started, closed_by)


@build
def everybody_fails() -> None:
    """A failing batch fails all of its members."""

    async def run(self: Batcher, jobs: Sequence[batcher.Job], closed_by: batch_plan.ClosedBy) -> None:
        started = self._clock()
        try:
            result = await self._device.run([job.evaluation for job in jobs])
        except Exception as error:  # noqa: BLE001 - what the sabotage is about
            for job in jobs:
                job.fail(error)
        else:
            self._deliver(jobs, result, started, closed_by)

    replace(Batcher, "_run", run)


@build
def company_shows() -> None:
    """The result of a row depends on the batch it is in."""

    def compute(self: TorchDevice, evaluations: Sequence[Evaluation]) -> DeviceRows:
        found: DeviceRows = plain(self, evaluations)
        if len(evaluations) == 1:
            return found
        nudged = {
            name: np.nextafter(rows, np.inf, dtype=rows.dtype) if rows.dtype.kind == "f" else rows
            for name, rows in found.rows.items()
        }
        return dataclasses.replace(found, rows=nudged)

    plain = replace(TorchDevice, "compute", compute)


@build
def slow_upload_is_work() -> None:
    """A body counts as waiting work while it is on its way."""
    works: dict[int, float] = {}

    def reserve(self: Admission, wire: Any, content_length: int) -> Reservation:
        reservation: Reservation = plain_reserve(self, wire, content_length)
        works[id(reservation)] = self.enter(wire, content_length)
        self.queue_s += content_length * 1e-8
        return reservation

    def release(self: Reservation) -> None:
        if id(self) in works:
            self.admission.leave(works.pop(id(self)))
        plain_release(self)

    plain_reserve = replace(Admission, "reserve", reserve)
    plain_release = replace(Reservation, "release", release)


@build
def abrupt() -> None:
    """SIGTERM ends the process at once."""
    replace(lifecycle.Server, "handle_exit", lambda *_: os._exit(0))


@build
def always_alive() -> None:
    """Liveness and readiness say yes, whatever happens."""
    replace(health.Health, "is_alive", property(lambda _: True))
    replace(health.Health, "is_ready", property(lambda _: True))


@build
def clinging() -> None:
    """The process goes on without its device."""
    replace(health.Health, "is_lost", property(lambda _: False))
