"""The batcher under cancellation, failure and deadlines."""

import asyncio
import weakref
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
import pytest

from service.engine import batcher as batcher_module
from service.engine.batch_plan import BatchLimits
from service.engine.batcher import (
    HUNG_AFTER_S,
    HUNG_AFTER_S_PER_ELEMENT,
    LOOK_INTERVAL_S,
    RESTART_S,
    Batcher,
    Computed,
    DeviceLost,
)
from service.errors import DeadlineExceeded, Draining, InsufficientDeviceMemory, NotReady
from service.loss.evaluation import Evaluation
from tests.unit.fakes import FakeClock, FakeDevice, RecordedBatches, an_evaluation, outcome, settle

FOREVER = 1e9


class Bench:
    """A batcher on a fake device whose first batch, a lone request, is held until the gate opens."""

    def __init__(self, *, max_elements: int = 100, max_requests: int = 10) -> None:
        self.clock = FakeClock()
        self.device = FakeDevice()
        self.metrics = RecordedBatches()
        limits = BatchLimits(max_elements, max_requests)
        self.batcher = Batcher(self.device, limits, clock=self.clock, metrics=self.metrics)

    async def occupy(self, *, rows: int = 1) -> asyncio.Task[Computed]:
        self.batcher.start()
        first = self.submit(-1.0, rows=rows)
        await self.device.is_running.wait()
        return first

    def submit(self, value: float, *, deadline: float = FOREVER, rows: int = 1) -> asyncio.Task[Computed]:
        evaluation = an_evaluation(value, rows=rows)
        return asyncio.ensure_future(self.batcher.submit(evaluation, deadline=deadline))

    async def finish(self) -> None:
        self.device.gate.set()
        await self.batcher.close()


def run(scenario: Callable[[Bench], Awaitable[None]], **limits: int) -> None:
    async def main() -> None:
        await scenario(Bench(**limits))

    asyncio.run(asyncio.wait_for(main(), 10))


def loss_of(computed: Computed) -> float:
    return float(computed.rows["losses"][0])


def test_cancelling_one_of_three_leaves_the_others_their_results() -> None:
    async def scenario(bench: Bench) -> None:
        _ = await bench.occupy()
        callers = [bench.submit(value) for value in (1.0, 2.0, 3.0)]
        await settle()
        callers[1].cancel()
        await settle()
        bench.device.gate.set()
        assert loss_of(await callers[0]) == 1.0
        assert loss_of(await callers[2]) == 3.0
        assert bench.device.batches == [1, 2]
        await bench.finish()

    run(scenario)


def test_cancelling_a_member_while_its_batch_runs_leaves_the_others_their_results() -> None:
    async def scenario(bench: Bench) -> None:
        first = await bench.occupy()
        first.cancel()
        second = bench.submit(2.0)
        await settle()
        bench.device.gate.set()
        assert loss_of(await second) == 2.0
        await bench.finish()

    run(scenario)


def test_only_the_member_that_fails_fails() -> None:
    async def scenario(bench: Bench) -> None:
        def poison(evaluations: Sequence[Evaluation]) -> Exception | None:
            return RuntimeError("poison") if any(one.logits[0, 0] == 2.0 for one in evaluations) else None

        bench.device.fails = poison
        _ = await bench.occupy()
        callers = [bench.submit(value) for value in (1.0, 2.0, 3.0)]
        await settle()
        bench.device.gate.set()
        results = [await outcome(caller) for caller in callers]
        assert isinstance(results[1], RuntimeError)
        assert [loss_of(result) for result in (results[0], results[2])] == [1.0, 3.0]  # type: ignore[arg-type]
        assert bench.device.batches == [1, 3, 1, 1, 1]
        await bench.finish()

    run(scenario)


def test_out_of_memory_halves_the_batch_until_it_fits() -> None:
    async def scenario(bench: Bench) -> None:
        def too_big(evaluations: Sequence[Evaluation]) -> Exception | None:
            rows = sum(one.rows for one in evaluations)
            return InsufficientDeviceMemory("full") if rows > 2 else None

        bench.device.fails = too_big
        _ = await bench.occupy()
        callers = [bench.submit(value) for value in (1.0, 2.0, 3.0)] + [bench.submit(4.0, rows=3)]
        await settle()
        bench.device.gate.set()
        results = [await outcome(caller) for caller in callers]
        assert [loss_of(result) for result in results[:3]] == [1.0, 2.0, 3.0]  # type: ignore[arg-type]
        assert isinstance(results[3], InsufficientDeviceMemory)
        assert bench.device.batches == [1, 4, 2, 2, 1, 1]
        await bench.finish()

    run(scenario)


def test_a_request_that_expires_in_the_queue_is_answered_without_being_computed() -> None:
    async def scenario(bench: Bench) -> None:
        _ = await bench.occupy()
        late, patient = bench.submit(1.0, deadline=5.0), bench.submit(2.0, deadline=5.1)
        await settle()
        bench.clock.now = 5.0
        bench.device.gate.set()
        assert isinstance(await outcome(late), DeadlineExceeded)
        assert loss_of(await patient) == 2.0
        assert bench.device.batches == [1, 1]
        await bench.finish()

    run(scenario)


def test_who_can_not_wait_as_long_as_the_quickest_batch_takes_is_not_computed_for() -> None:
    async def scenario(bench: Bench) -> None:
        took_s = 2.0

        def takes_a_while(_: Sequence[Evaluation]) -> None:
            bench.clock.now += took_s

        bench.device.fails = takes_a_while
        bench.device.gate.set()
        bench.batcher.start()
        for _ in range(150):
            await bench.submit(1.0)
        now, computed = bench.clock.now, len(bench.device.batches)
        assert isinstance(await outcome(bench.submit(1.0, deadline=now + 1.9)), DeadlineExceeded)
        assert len(bench.device.batches) == computed
        assert loss_of(await bench.submit(1.0, deadline=now + 2.1)) == 1.0
        took_s = 0.1
        await bench.submit(1.0)
        assert loss_of(await bench.submit(1.0, deadline=bench.clock.now + 1.9)) == 1.0, "one quick batch is enough"
        await bench.finish()

    run(scenario)


def test_what_arrives_together_runs_together_and_is_split_by_rows() -> None:
    async def scenario(bench: Bench) -> None:
        bench.device.gate.set()
        bench.batcher.start()
        callers = [bench.submit(float(rows), rows=rows) for rows in (1, 2, 3)]
        for caller, rows in zip(callers, (1, 2, 3), strict=True):
            computed = await caller
            np.testing.assert_array_equal(computed.rows["losses"], np.full(rows, float(rows), np.float32))
            assert (computed.batch_requests, computed.batch_rows) == (3, 6)
            assert computed.compute_share_s == pytest.approx(rows / 6)
        figures = {"requests": 3, "rows": 6, "elements": 12, "closed_by": "idle", "started": 0.0, "ended": 0.0}
        assert bench.metrics.batches == [figures]
        await bench.finish()

    run(scenario)


def test_the_queue_time_is_that_from_arrival_to_start() -> None:
    async def scenario(bench: Bench) -> None:
        _ = await bench.occupy()
        second = bench.submit(2.0)
        await settle()
        bench.clock.now = 7.0
        bench.device.gate.set()
        assert (await second).queue_s == 7.0
        await bench.finish()

    run(scenario)


def test_closing_finishes_what_waits_and_refuses_what_comes() -> None:
    async def scenario(bench: Bench) -> None:
        _ = await bench.occupy()
        waiting = bench.submit(1.0)
        await settle()
        closing = asyncio.ensure_future(bench.batcher.close())
        await settle()
        assert isinstance(await outcome(bench.submit(2.0)), Draining)
        bench.device.gate.set()
        assert loss_of(await waiting) == 1.0
        await closing
        assert not bench.batcher.is_alive
        assert bench.metrics.batches[-1]["closed_by"] == "drain"

    run(scenario)


def test_one_request_a_batch_switches_batching_off() -> None:
    async def scenario(bench: Bench) -> None:
        bench.device.gate.set()
        bench.batcher.start()
        await asyncio.gather(*(bench.submit(float(value)) for value in range(3)))
        assert bench.device.batches == [1, 1, 1]
        await bench.finish()

    run(scenario, max_requests=1)


def test_deadlines_hold_while_a_failed_batch_is_run_again() -> None:
    async def scenario(bench: Bench) -> None:
        def fails_once(evaluations: Sequence[Evaluation]) -> Exception | None:
            bench.clock.now += 1.0
            return RuntimeError("first") if len(evaluations) > 1 else None

        bench.device.fails = fails_once
        _ = await bench.occupy()
        callers = [bench.submit(float(value), deadline=2.5) for value in range(3)]
        await settle()
        bench.device.gate.set()
        while not callers[0].done():
            await settle()
        bench.batcher.look()
        results = [await outcome(caller) for caller in callers]
        assert loss_of(results[0]) == 0.0  # type: ignore[arg-type]
        assert any(isinstance(result, DeadlineExceeded) for result in results[1:])
        await bench.finish()

    run(scenario)


def test_expiring_answers_what_waits_and_what_runs() -> None:
    async def scenario(bench: Bench) -> None:
        bench.batcher.start()
        running, waiting = bench.submit(1.0, deadline=5.0), None
        await bench.device.is_running.wait()
        waiting = bench.submit(2.0, deadline=5.0)
        await settle()
        bench.clock.now = 5.0
        bench.batcher.look()
        assert isinstance(await outcome(running), DeadlineExceeded)
        assert isinstance(await outcome(waiting), DeadlineExceeded)
        await bench.finish()
        assert bench.device.batches == [1]

    run(scenario)


def test_nothing_of_the_last_batch_is_kept() -> None:
    async def scenario(bench: Bench) -> None:
        bench.device.gate.set()
        bench.batcher.start()
        evaluation = an_evaluation(1.0)
        logits = weakref.ref(evaluation.logits)
        _ = await bench.batcher.submit(evaluation, deadline=FOREVER)
        del evaluation, _
        await settle()
        assert logits() is None
        await bench.finish()

    run(scenario)


def test_a_batcher_that_does_not_run_takes_nothing() -> None:
    async def scenario(bench: Bench) -> None:
        assert isinstance(await outcome(bench.submit(1.0)), NotReady)

    run(scenario)


def pass_time(bench: Bench, seconds: float) -> None:
    """Lets the batcher look after its jobs for so long."""
    for _ in range(round(seconds / LOOK_INTERVAL_S)):
        bench.clock.now += LOOK_INTERVAL_S
        bench.batcher.look()


def test_a_hung_device_is_noticed_within_fifteen_seconds_and_who_waits_is_told() -> None:
    async def scenario(bench: Bench) -> None:
        running = await bench.occupy()
        waiting = bench.submit(1.0)
        await settle()
        pass_time(bench, HUNG_AFTER_S - 1)
        assert not bench.batcher.has_failed
        pass_time(bench, 2)
        assert bench.clock.now < 15
        assert not bench.batcher.is_alive
        for caller in (running, waiting, bench.submit(2.0)):
            assert isinstance(await outcome(caller), NotReady)
        await bench.finish()

    run(scenario)


def test_a_device_that_comes_back_is_used_again() -> None:
    async def scenario(bench: Bench) -> None:
        first = await bench.occupy()
        pass_time(bench, HUNG_AFTER_S + 1)
        assert isinstance(await outcome(first), NotReady)
        bench.device.gate.set()
        while bench.batcher.is_running:
            await settle()
        assert bench.batcher.is_alive
        assert loss_of(await bench.submit(2.0)) == 2.0
        await bench.finish()

    run(scenario)


@pytest.mark.parametrize(
    ("seconds", "elements"),
    [
        pytest.param(HUNG_AFTER_S + 1, round(2 / HUNG_AFTER_S_PER_ELEMENT), id="a large batch takes its time"),
        pytest.param(0.0, 1, id="a pause of the whole process is not the device's"),
    ],
)
def test_a_device_that_works_is_not_taken_for_hung(seconds: float, elements: int) -> None:
    async def scenario(bench: Bench) -> None:
        running = await bench.occupy(rows=elements // 2 or 1)
        pass_time(bench, seconds)
        bench.clock.now += 3600 if not seconds else 0
        bench.batcher.look()
        assert bench.batcher.is_alive
        await bench.finish()
        await running

    run(scenario)


def test_batch_after_batch_is_not_taken_for_hung() -> None:
    async def scenario(bench: Bench) -> None:
        first = await bench.occupy()
        for value in range(3):
            following = bench.submit(float(value))
            pass_time(bench, HUNG_AFTER_S - 1)
            bench.device.gate.set()
            await first
            bench.device.gate.clear()
            first = following
            while len(bench.batcher):
                await settle()
        assert bench.batcher.is_alive
        await bench.finish()

    run(scenario)


def test_when_the_task_dies_everyone_who_waits_is_told_and_it_shows() -> None:
    async def scenario(bench: Bench) -> None:
        running = await bench.occupy()
        waiting = bench.submit(1.0)
        await settle()
        bench.metrics.batch = None  # type: ignore[assignment, method-assign]  # a bug in the loop itself
        bench.device.gate.set()
        assert isinstance(await outcome(running), NotReady)
        assert isinstance(await outcome(waiting), NotReady)
        assert isinstance(await outcome(bench.submit(2.0)), NotReady)
        assert bench.batcher.has_failed
        assert not bench.batcher.is_alive
        assert not bench.batcher.is_lost
        await bench.batcher.close()

    run(scenario)


def test_a_cancelled_task_leaves_nobody_waiting() -> None:
    async def scenario(bench: Bench) -> None:
        running = await bench.occupy()
        task = bench.batcher._task
        assert task is not None
        task.cancel()
        assert isinstance(await outcome(running), NotReady)
        assert bench.batcher.has_failed
        await bench.batcher.close()

    run(scenario)


def test_a_lost_device_fails_its_batch_as_worth_a_retry_and_computes_nothing_more() -> None:
    async def scenario(bench: Bench) -> None:
        bench.device.fails = lambda _: DeviceLost("device-side assert triggered")
        running = await bench.occupy()
        waiting = [bench.submit(1.0), bench.submit(2.0)]
        await settle()
        bench.device.gate.set()
        for caller in (running, *waiting):
            error = await outcome(caller)
            assert isinstance(error, NotReady)
            assert error.retry_after_s == RESTART_S
        assert bench.device.batches == [1], "members are not run again on a device that is gone"
        assert bench.batcher.is_lost
        assert bench.batcher.has_failed
        assert not bench.batcher.is_alive
        await bench.batcher.close()

    run(scenario)


def test_what_nobody_waits_for_is_let_go_while_it_waits() -> None:
    async def scenario(bench: Bench) -> None:
        _ = await bench.occupy()
        evaluation = an_evaluation(1.0)
        logits = weakref.ref(evaluation.logits)
        caller = asyncio.ensure_future(bench.batcher.submit(evaluation, deadline=FOREVER))
        del evaluation
        await settle()
        caller.cancel()
        await settle()
        del caller
        bench.batcher.look()
        assert logits() is None
        assert not len(bench.batcher)
        await bench.finish()

    run(scenario)


def test_closing_does_not_wait_for_a_device_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher_module, "CLOSE_TIMEOUT_S", 0.0)

    async def scenario(bench: Bench) -> None:
        running = await bench.occupy()
        running.cancel()
        await bench.batcher.close()
        assert bench.batcher.is_running

    run(scenario)
