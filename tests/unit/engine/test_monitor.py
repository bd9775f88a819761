"""Counting after the answer."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from service.engine.batcher import DeviceRows
from service.engine.device import TorchDevice
from service.engine.monitor import DUE_ELEMENTS, DUE_POOLS, DUE_REQUESTS, Monitor
from service.loss.evaluation import Evaluation
from service.loss.samples import Source, Tally
from tests.unit.fakes import an_evaluation


def named(name: str) -> Source:
    return Source(name, "", None, 1.0, None)


@dataclass
class Counted:
    tallies: list[tuple[Source, Tally]] = field(default_factory=list)
    lost: list[tuple[int, Exception]] = field(default_factory=list)

    def add(self, source: Source, tally: Tally) -> None:
        self.tallies.append((source, tally))

    def unmonitored(self, rows: int, error: Exception) -> None:
        self.lost.append((rows, error))

    def total(self, name: str) -> int:
        return sum(one.correct + one.incorrect for source, one in self.tallies if source.model == name)


@dataclass
class GatedDevice:
    """The real one, behind a gate; fails for evaluations of three classes."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    torch: TorchDevice = field(default_factory=lambda: TorchDevice("cpu", threads=1))
    batches: list[int] = field(default_factory=list)

    async def run(self, evaluations: Sequence[Evaluation]) -> DeviceRows:
        self.batches.append(len(evaluations))
        await self.gate.wait()
        if evaluations[0].classes == 3:
            raise MemoryError("full")
        return self.torch.compute(evaluations)


def opened() -> GatedDevice:
    device = GatedDevice()
    device.gate.set()
    return device


def test_requests_of_one_kind_are_counted_together_and_apart_by_source() -> None:
    device, counted = opened(), Counted()
    monitor = Monitor(device, counted)
    for index in range(10):
        monitor.note(an_evaluation(rows=index + 1), named("even" if index % 2 == 0 else "odd"))
    asyncio.run(monitor.settle())
    assert device.batches == [1]
    assert len(counted.tallies) == 2
    assert (counted.total("even"), counted.total("odd")) == (1 + 3 + 5 + 7 + 9, 2 + 4 + 6 + 8 + 10)


def test_nothing_is_counted_twice() -> None:
    counted = Counted()
    monitor = Monitor(opened(), counted)
    monitor.note(an_evaluation(), named("a"))
    asyncio.run(monitor.settle())
    asyncio.run(monitor.settle())
    assert counted.total("a") == 1


@pytest.mark.parametrize(
    ("requests", "rows"), [pytest.param(DUE_REQUESTS, 1, id="many"), pytest.param(1, DUE_ELEMENTS // 2, id="large")]
)
def test_it_is_due_when_enough_lies_about(requests: int, rows: int) -> None:
    monitor = Monitor(opened(), Counted())
    for _ in range(requests):
        assert not monitor.is_due
        monitor.note(an_evaluation(rows=rows), named("a"))
    assert monitor.is_due
    asyncio.run(monitor.settle())
    assert not monitor.is_due


def test_settling_waits_for_what_is_being_counted_already() -> None:
    async def scenario() -> None:
        device, counted = GatedDevice(), Counted()
        monitor = Monitor(device, counted)
        monitor.note(an_evaluation(), named("a"))
        first = asyncio.create_task(monitor.settle())
        await asyncio.sleep(0)
        second = asyncio.create_task(monitor.settle())
        await asyncio.sleep(0)
        assert not second.done()
        device.gate.set()
        await second
        assert first.done()
        assert counted.total("a") == 1

    asyncio.run(scenario())


def test_what_cannot_be_computed_is_said_and_the_rest_is_counted() -> None:
    counted = Counted()
    monitor = Monitor(opened(), counted)
    monitor.note(an_evaluation(rows=5, classes=3), named("a"))
    monitor.note(an_evaluation(rows=2), named("a"))
    asyncio.run(monitor.settle())
    assert [(rows, type(error)) for rows, error in counted.lost] == [(5, MemoryError)]
    assert counted.total("a") == 2


def test_what_cannot_be_added_is_said_and_the_rest_is_counted() -> None:
    class Failing(Counted):
        def add(self, source: Source, tally: Tally) -> None:
            if source.model == "bad":
                raise MemoryError("full")
            super().add(source, tally)

    counted = Failing()
    monitor = Monitor(opened(), counted)
    monitor.note(an_evaluation(rows=5, classes=4), named("bad"))
    monitor.note(an_evaluation(rows=2), named("a"))
    asyncio.run(monitor.settle())
    assert [rows for rows, _ in counted.lost] == [5]
    assert counted.total("a") == 2


def test_counting_goes_on_when_the_one_who_waits_goes() -> None:
    async def scenario() -> None:
        device, counted = GatedDevice(), Counted()
        monitor = Monitor(device, counted)
        monitor.note(an_evaluation(), named("a"))
        waiting = asyncio.create_task(monitor.settle())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.sleep(0)
        device.gate.set()
        await monitor.settle()
        assert counted.total("a") == 1

    asyncio.run(scenario())


def test_others_have_their_turn_between_many_sources() -> None:
    async def scenario() -> None:
        counted = Counted()
        monitor = Monitor(opened(), counted)
        for number in range(100):
            monitor.note(an_evaluation(), named(str(number)))
        turns: list[int] = []

        async def others() -> None:
            while len(counted.tallies) < 100:
                turns.append(len(counted.tallies))
                await asyncio.sleep(0)

        await asyncio.gather(monitor.settle(), others())
        assert len(set(turns)) >= 100

    asyncio.run(scenario())


def test_the_estimate_learns_what_the_device_takes_and_not_how_long_it_is_waited_for() -> None:
    class Slow(GatedDevice):
        async def run(self, evaluations: Sequence[Evaluation]) -> DeviceRows:
            found = await super().run(evaluations)
            return DeviceRows(found.rows, compute_s=2.0, transfer_s=1.0)

    async def scenario() -> None:
        monitor = Monitor(Slow(gate=opened().gate), Counted())
        assert monitor.work_s(1000) == 0
        monitor.note(an_evaluation(rows=15), named("a"))
        await monitor.settle()
        assert monitor.work_s(30) == pytest.approx(0.1 * 3.0)  # a tenth of what it saw

    asyncio.run(scenario())


def test_many_kinds_are_due_soon() -> None:
    monitor = Monitor(opened(), Counted())
    for classes in range(2, 2 + DUE_POOLS):
        assert not monitor.is_due
        monitor.note(an_evaluation(classes=classes), named("a"))
    assert monitor.is_due


def test_a_large_evaluation_is_computed_in_pieces() -> None:
    device, counted = opened(), Counted()
    monitor = Monitor(device, counted)
    monitor.note(an_evaluation(rows=5 << 20), named("a"))
    asyncio.run(monitor.settle())
    assert device.batches == [1, 1, 1]
    assert counted.total("a") == 5 << 20
