"""Stand-ins for the clock, the device and the metrics."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from service.engine.batcher import DeviceRows
from service.loss.evaluation import Evaluation
from service.loss.options import LossOptions
from service.loss.validation import SizeLimits, validate

Message = dict[str, Any]


@dataclass
class FakeClock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def an_evaluation(value: float = 0.0, *, rows: int = 1, classes: int = 2, **options: object) -> Evaluation:
    """Evaluation whose logits are all `value`, which the fake device returns as its losses."""
    arrays = {"logits": np.full((rows, classes), value, np.float32), "labels": np.zeros(rows, np.int64)}
    return validate(arrays, LossOptions(**options), SizeLimits())  # type: ignore[arg-type]


@dataclass
class FakeDevice:
    """Returns each row's first logit as its loss; runs only while its gate is open, and fails when told to."""

    fails: Callable[[Sequence[Evaluation]], Exception | None] = lambda _: None
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    batches: list[int] = field(default_factory=list)
    is_running: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, evaluations: Sequence[Evaluation]) -> DeviceRows:
        self.batches.append(len(evaluations))
        self.is_running.set()
        await self.gate.wait()
        error = self.fails(evaluations)
        if error is not None:
            raise error
        return DeviceRows({"losses": np.concatenate([one.logits[:, 0] for one in evaluations])}, compute_s=1.0)


@dataclass
class RecordedBatches:
    batches: list[dict[str, object]] = field(default_factory=list)
    out_of_memories: int = 0

    def batch(self, **figures: object) -> None:
        self.batches.append(figures)

    def out_of_memory(self) -> None:
        self.out_of_memories += 1


def receiving(*messages: Message) -> Callable[[], Awaitable[Message]]:
    """ASGI's receive: the messages, then nothing for ever."""
    left = iter(messages)

    async def receive() -> Message:
        try:
            return next(left)
        except StopIteration:
            return await asyncio.Future()

    return receive


async def settle() -> None:
    """Lets every task run until it waits for something."""
    for _ in range(20):
        await asyncio.sleep(0)


async def outcome(awaitable: Awaitable[object]) -> object:
    """Returns the result, or the error."""
    try:
        return await awaitable
    except Exception as error:  # noqa: BLE001 - the outcome is what is tested
        return error
