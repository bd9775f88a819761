"""Which waiting jobs run next, and together: pure decisions, no clock and no waiting.

There is no timer. Whatever waits when the device is free runs at once; what arrives meanwhile accumulates, and a batch
is closed only when it is started. Jobs of one key share a batch; keys take turns, so that none starves.
"""

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

ClosedBy = Literal["idle", "budget", "drain"]


class Plannable(Protocol):
    """What the plan needs to know of a job."""

    @property
    def key(self) -> Hashable:
        """Jobs of equal keys can share a batch."""

    @property
    def elements(self) -> int:
        """Rows times classes."""

    @property
    def deadline(self) -> float:
        """The time, on the clock of `next_batch`, after which the answer is of no use."""

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody waits for the answer any more."""


JobT = TypeVar("JobT", bound=Plannable)


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Budgets of one batch; a single larger job runs alone."""

    max_elements: int
    max_requests: int


@dataclass(frozen=True, slots=True)
class Batch(Generic[JobT]):
    """Jobs to run together, and those that expired while they waited; abandoned ones are in neither."""

    jobs: tuple[JobT, ...]
    expired: tuple[JobT, ...]
    closed_by: ClosedBy


class Waiting(Generic[JobT]):
    """The jobs that wait, in one queue for each key."""

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        self._queues: OrderedDict[Hashable, deque[JobT]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def __iter__(self) -> Iterator[JobT]:
        return (job for queue in self._queues.values() for job in queue)

    def add(self, job: JobT) -> None:
        """Puts a job behind the others of its key."""
        self._queues.setdefault(job.key, deque()).append(job)

    def drop_abandoned(self) -> None:
        """Lets go of the jobs nobody waits for, and of the memory they hold."""
        for key, queue in list(self._queues.items()):
            self._queues[key] = deque(job for job in queue if not job.is_abandoned)
            if not self._queues[key]:
                del self._queues[key]

    def next_batch(self, now: float, *, is_draining: bool = False) -> Batch[JobT]:
        """Takes the batch whose turn it is; its key, if jobs are left of it, goes to the back."""
        if not self._queues:
            return Batch((), (), "idle")
        key, queue = self._queues.popitem(last=False)
        jobs: list[JobT] = []
        expired: list[JobT] = []
        elements = 0
        while queue and (not jobs or self._has_room(len(jobs), elements + queue[0].elements)):
            job = queue.popleft()
            if job.is_abandoned:
                continue
            if job.deadline <= now:
                expired.append(job)
                continue
            jobs.append(job)
            elements += job.elements
        if queue:
            self._queues[key] = queue
        return Batch(tuple(jobs), tuple(expired), "budget" if queue else "drain" if is_draining else "idle")

    def _has_room(self, requests: int, elements: int) -> bool:
        return requests < self._limits.max_requests and elements <= self._limits.max_elements
