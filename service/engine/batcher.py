"""The shell around the plan: one task that hands batches to the device and results to those who wait."""

import asyncio
import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..dtypes import Array
from ..errors import DeadlineExceeded, Draining, InsufficientDeviceMemory, NotReady
from ..loss.evaluation import Evaluation
from .batch_plan import BatchLimits, ClosedBy, Waiting

LOOK_INTERVAL_S = 0.1
LONGEST_LOOK_S = 1.0
"""A pause of the whole process, which stops the looks too, says nothing about the device."""
HUNG_AFTER_S = 10.0
HUNG_AFTER_S_PER_ELEMENT = 1e-6
"""Every output of two classes takes a third of it on one core. With it, a usual batch (2^22) has hung after 14 s."""
CLOSE_TIMEOUT_S = 2.0
RESTART_S = 5.0
_LEARNING = 0.01

_log = logging.getLogger("losseval")


@dataclass(frozen=True, slots=True)
class DeviceRows:
    """What the device made of a batch: the kernel's rows of all its members, in order, and the seconds it took."""

    rows: Mapping[str, Array]
    compute_s: float
    transfer_s: float | None = None


class DeviceLost(Exception):  # noqa: N818 - what has happened, not what is wrong with anything
    """The device fails whatever it is given from now on; only a new process gets it back."""


class Device(Protocol):
    """Where batches are computed."""

    async def run(self, evaluations: Sequence[Evaluation]) -> DeviceRows:
        """Computes evaluations of one key together.

        Raises:
            InsufficientDeviceMemory: The batch does not fit.
            DeviceLost: It will not compute anything any more.
        """


@dataclass(frozen=True, slots=True)
class Computed:
    """One member's rows, and the company it had; `compute_share_s` is its part of the work by elements.

    `batch` is what the metrics made of the batch; the engine doesn't look into it.
    """

    rows: Mapping[str, Array]
    batch_requests: int
    batch_rows: int
    queue_s: float
    compute_s: float
    compute_share_s: float
    transfer_s: float | None
    batch: object


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """An evaluation that waits; its future is cancelled when its caller goes."""

    evaluation: Evaluation
    key: Hashable
    elements: int
    deadline: float
    queued_at: float
    done: asyncio.Future[Computed]

    @property
    def is_abandoned(self) -> bool:
        """Whether the caller has gone."""
        return self.done.done()

    def fail(self, error: Exception) -> None:
        """Answers with an error, unless the caller has gone."""
        if not self.done.done():
            self.done.set_exception(error)


class BatchMetrics(Protocol):
    """What the batcher reports."""

    def batch(  # noqa: PLR0913 - what there is to know
        self, *, requests: int, rows: int, elements: int, closed_by: ClosedBy, started: float, ended: float
    ) -> object:
        """A batch was computed, between two times of the batcher's clock; what is returned goes to its members."""

    def out_of_memory(self) -> None:
        """A batch did not fit on the device."""


class Batcher:
    """Queues evaluations and runs them in batches, one at a time.

    A member that makes its batch fail is found by running the members singly: only it gets the error. Out of memory
    halves the batch. When the device hangs or is lost, or the task dies, everyone who waits is told so.
    """

    def __init__(
        self, device: Device, limits: BatchLimits, *, clock: Callable[[], float], metrics: BatchMetrics | None = None
    ) -> None:
        self._device = device
        self._waiting: Waiting[Job] = Waiting(limits)
        self._clock = clock
        self._metrics = metrics
        self._arrival = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._running: Sequence[Job] = ()
        self._is_draining = False
        self._looked_at = clock()
        self._stalled_s = 0.0
        self._quickest_s = 0.0
        """About what the quickest of the last batches took: who can't wait as long is not computed for."""
        self._is_hung = False
        self._has_died = False
        self.is_lost = False

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_alive(self) -> bool:
        """Whether batches are run: the tasks exist and have not died, and the device does not hang."""
        task, watch = self._task, self._watch
        has_tasks = task is not None and watch is not None and not task.done() and not watch.done()
        return has_tasks and not self._is_hung

    @property
    def has_failed(self) -> bool:
        """Whether it ended without having been closed, or hangs."""
        return self._has_died or self._is_hung

    @property
    def is_running(self) -> bool:
        """Whether the device has a batch that it has not given back."""
        return bool(self._running)

    def start(self) -> None:
        """Starts the task that runs batches, and the one that watches it."""
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._serve(), name="batcher")
        self._watch = loop.create_task(self._look_regularly(), name="batcher watch")

    async def close(self) -> None:
        """Refuses new work, finishes what waits, and ends the task; a batch that runs on is left alone."""
        self._is_draining = True
        self._arrival.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=CLOSE_TIMEOUT_S)
        if self._watch is not None:
            self._watch.cancel()

    def look(self) -> None:
        """Answers the jobs whose deadline has passed, whether they wait or are computed; all, when the device hangs."""
        now = self._clock()
        passed_s, self._looked_at = min(now - self._looked_at, LONGEST_LOOK_S), now
        self._stalled_s = self._stalled_s + passed_s if self._running or len(self._waiting) else 0.0
        elements = sum(job.elements for job in self._running)
        if self._stalled_s > HUNG_AFTER_S + HUNG_AFTER_S_PER_ELEMENT * elements and not self._is_hung:
            self._is_hung = True
            _log.critical("the device has hung: a batch has run for %.0f s", self._stalled_s)
        for job in (*self._waiting, *self._running):
            if self._is_hung:
                job.fail(_not_computing())
            elif job.deadline <= now:
                job.fail(_too_late())
        self._waiting.drop_abandoned()

    async def submit(self, evaluation: Evaluation, *, deadline: float) -> Computed:
        """Waits for the evaluation's turn and returns its rows.

        Raises:
            DeadlineExceeded: The deadline passed while it waited.
            Draining, NotReady: The batcher is closing, or its task is not there.
        """
        if self._is_draining:
            detail = "The service is shutting down; send the request to another replica or again in a moment."
            raise Draining(detail)
        if not self.is_alive:
            raise _not_computing()
        done: asyncio.Future[Computed] = asyncio.get_running_loop().create_future()
        self._waiting.add(Job(evaluation, evaluation.batch_key, evaluation.elements, deadline, self._clock(), done))
        self._arrival.set()
        return await done

    async def _look_regularly(self) -> None:
        # One look at all jobs ten times a second costs less than a timer for each.
        while True:
            await asyncio.sleep(LOOK_INTERVAL_S)
            self.look()

    async def _serve(self) -> None:
        try:
            await self._run_batches()
        except BaseException as error:  # noqa: BLE001 - whatever ended it, nobody must wait for ever
            self._has_died = not self._is_draining
            if isinstance(error, Exception):
                _log.critical("nothing is computed any more", exc_info=error)
            for job in (*self._running, *self._waiting):
                job.fail(_not_computing())

    async def _run_batches(self) -> None:
        while True:
            while not len(self._waiting):
                if self._is_draining:
                    return
                self._arrival.clear()
                await self._arrival.wait()
            await self._run_next()
            await asyncio.sleep(0)  # tiny batches never wait for anything: let others have their turn

    async def _run_next(self) -> None:
        batch = self._waiting.next_batch(self._clock(), is_draining=self._is_draining)
        for job in batch.expired:
            job.fail(_too_late())
        self._running = batch.jobs
        await self._run(batch.jobs, batch.closed_by)
        self._running = ()
        self._stalled_s, self._is_hung = 0.0, False

    async def _run(self, jobs: Sequence[Job], closed_by: ClosedBy) -> None:
        started = self._clock()
        jobs = _in_time(jobs, started + self._quickest_s)
        if not jobs:
            return
        self._stalled_s = 0.0
        try:
            result = await self._device.run([job.evaluation for job in jobs])
        except DeviceLost:
            self.is_lost = True
            raise
        except InsufficientDeviceMemory as error:
            failure: Exception = error
            parts = 2
            if self._metrics is not None:
                self._metrics.out_of_memory()
        except Exception as error:  # noqa: BLE001 - whatever it is, it must reach the caller and nobody else
            failure, parts = error, len(jobs)
        else:
            took_s = self._clock() - started
            self._quickest_s = min(took_s, self._quickest_s + _LEARNING * took_s)
            self._deliver(jobs, result, started, closed_by)
            return
        # Not in the handlers above: while they run, they keep all that the failed attempt had allocated.
        if len(jobs) == 1:
            jobs[0].fail(failure)
            return
        del failure
        size = -(-len(jobs) // parts)
        for start in range(0, len(jobs), size):
            await self._run(jobs[start : start + size], closed_by)

    def _deliver(self, jobs: Sequence[Job], result: DeviceRows, started: float, closed_by: ClosedBy) -> None:
        total_rows = sum(job.evaluation.rows for job in jobs)
        total_elements = sum(job.elements for job in jobs)
        batch = self._metrics and self._metrics.batch(
            requests=len(jobs),
            rows=total_rows,
            elements=total_elements,
            closed_by=closed_by,
            started=started,
            ended=self._clock(),
        )
        first = 0
        for job in jobs:
            last = first + job.evaluation.rows
            part = slice(first, last)
            first = last
            if job.done.done():
                continue
            job.done.set_result(
                Computed(
                    rows={name: rows[part] for name, rows in result.rows.items()},
                    batch_requests=len(jobs),
                    batch_rows=total_rows,
                    queue_s=started - job.queued_at,
                    compute_s=result.compute_s,
                    compute_share_s=result.compute_s * job.elements / max(1, total_elements),
                    transfer_s=result.transfer_s,
                    batch=batch,
                )
            )


def _in_time(jobs: Sequence[Job], now: float) -> list[Job]:
    for job in jobs:
        if job.deadline <= now:
            job.fail(_too_late())
    return [job for job in jobs if not job.is_abandoned]


def _not_computing() -> NotReady:
    detail = "The device does not compute at the moment; send the request to another replica or again in a moment."
    return NotReady(detail, retry_after_s=RESTART_S)


def _too_late() -> DeadlineExceeded:
    return DeadlineExceeded("The deadline passed before the answer was there.")
