"""What the service takes on: bytes that lie in memory, and seconds of work that wait.

Refuses, never queues without bound. Bytes are reserved when the headers are read; queue time counts from the moment a
request takes its place, mostly when the body is there. The work of a request is estimated as a + b * bytes, one line
for each wire form, fitted to what requests took lately; and the pace at which such work is done follows how long those
waited who came to a long queue.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, Self

from ..errors import DeadlineExceeded, Overloaded

Wire = Literal["json", "binary"]
Reason = Literal["bytes", "queue_time", "deadline", "draining", "not_ready", "insufficient_device_memory"]
"""Why a request was refused though nothing is wrong with it; the last three are decided elsewhere."""
BYTES_RESERVED: Mapping[Wire, int] = {"json": 20, "binary": 3}
"""Times Content-Length: what decoding can cost. A document of `0,0,0` takes 19 times its bytes in the parser; beside
the logits, which stay where they arrived, gradients take as much again, or twice as much for 16-bit logits. What asks
for more than that is seen when it is decoded, and reserves it then."""
_PRIOR_SLOPE: Mapping[Wire, float] = {"json": 1e-8, "binary": 1e-9}
"""Seconds per byte: parsing, computing and writing a number of nine digits; computing and copying one of four bytes."""
_LEARNING = 0.01
_RIDGE = 1e9
"""Bytes squared; sizes that vary by more than its root, 32 kB, teach a slope of their own."""
_MIN_WORK_S = 1e-5
_UNTIMED_S = 1.5e-4
"""What HTTP, the event loop and the log cost; of a small request, two thirds."""
_PACE_LEARNING = 0.02
_SLOWEST_PACE = 4.0
_LATENCY_S = 0.05
"""What a few turns of the event loop take under load, whatever waits. A queue held shorter for it would run dry between
two turns, and leave the processor to refusals."""


class RejectionMetrics(Protocol):
    """What admission reports."""

    def rejected(self, reason: Reason) -> None:
        """A request was refused."""


@dataclass(slots=True)
class WorkEstimate:
    """The line seconds = a + b * bytes through what was observed, with exponential forgetting.

    Where sizes hardly vary there is no slope to see; there it stays near the one it started with (ridge regression).
    """

    prior_slope: float
    size: float = 1e4
    seconds_mean: float = 3e-4
    observed: int = 0
    variance: float = 0.0
    covariance: float = 0.0
    slope: float = field(init=False)

    def __post_init__(self) -> None:
        self.slope = self.prior_slope

    def seconds(self, size: int) -> float:
        """Estimates the work of a body of `size` bytes."""
        work = self.seconds_mean + self.slope * (size - self.size)
        return max(work, _MIN_WORK_S)

    def observe(self, size: int, seconds: float) -> None:
        """Learns from a request that was answered; the first ones count for more than what was guessed before."""
        self.observed += 1
        share = max(_LEARNING, 1 / (self.observed + 1))
        beyond_size, beyond_seconds = size - self.size, seconds - self.seconds_mean
        self.size += share * beyond_size
        self.seconds_mean += share * beyond_seconds
        self.variance = (1 - share) * (self.variance + share * beyond_size**2)
        self.covariance = (1 - share) * (self.covariance + share * beyond_size * beyond_seconds)
        slope = (self.covariance + self.prior_slope * _RIDGE) / (self.variance + _RIDGE)
        self.slope = min(max(slope, 0.0), self.seconds_mean / max(self.size, 1.0))  # the offset is never negative


@dataclass(slots=True, eq=False)
class Reservation:
    """The bytes one request holds; grows while its size becomes known."""

    admission: "Admission"
    size: int = 0
    exceeds_budget: bool = False

    def cover(self, size: int) -> None:
        """Takes what is missing up to `size` bytes.

        Raises:
            Overloaded: They do not fit now.
        """
        if size > self.size:
            self.admission.grow(self, size)

    def release(self) -> None:
        """Gives everything back."""
        self.admission.inflight_bytes -= self.size
        self.size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


@dataclass(slots=True)
class Place:
    """What a request counts for in the queue, while it has a place there."""

    admission: "Admission"
    work_s: float | None = None
    taken_at: float = 0.0
    expected_s: float = 0.0

    def take(self, wire: Wire, size: int, now: float) -> None:
        """Counts the work on a body of `size` bytes, from now on."""
        self.work_s = self.admission.enter(wire, size)
        self.taken_at, self.expected_s = now, self.admission.waiting_s

    def finish(self, now: float) -> None:
        """Tells that the answer is there."""
        self.admission.observe_wait(self.expected_s, now - self.taken_at)

    def leave(self) -> None:
        """Counts nothing any more; the place may be taken again."""
        if self.work_s is not None:
            self.admission.leave(self.work_s)
            self.work_s = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()


@dataclass(slots=True)
class Admission:
    """The books of bytes in flight and of estimated work; everything entered leaves exactly once."""

    max_inflight_bytes: int
    max_queue_s: float
    metrics: RejectionMetrics | None = None
    inflight_bytes: int = 0
    queue_s: float = 0.0
    """Estimated work."""
    queued_requests: int = 0
    pace: float = 1.0
    """How long a second of that work takes, while others have the processor, too, or are refused."""
    _estimates: dict[Wire, WorkEstimate] = field(
        default_factory=lambda: {wire: WorkEstimate(slope) for wire, slope in _PRIOR_SLOPE.items()}
    )

    def reserve(self, wire: Wire, content_length: int) -> Reservation:
        """Takes the bytes that a body can cost.

        Raises:
            Overloaded: They do not fit now.
        """
        reservation = Reservation(self)
        reservation.cover(BYTES_RESERVED[wire] * content_length)
        return reservation

    def grow(self, reservation: Reservation, size: int) -> None:
        """Makes a reservation larger.

        Raises:
            Overloaded: It does not fit now.
        """
        if reservation.exceeds_budget:
            return
        others = self.inflight_bytes - reservation.size
        if others and others + size > self.max_inflight_bytes:
            detail = f"{others} of {self.max_inflight_bytes} bytes are in use; this request needs {size}."
            raise self._refusal("bytes", detail)
        if size > self.max_inflight_bytes:
            # Alone, a request of any permitted size is served, however small the budget; a quarter of it remains for
            # others, lest one slow upload shut everyone out.
            reservation.exceeds_budget = True
            size = self.max_inflight_bytes - self.max_inflight_bytes // 4
        self.inflight_bytes = others + size
        reservation.size = size

    def check_queue(self, wire: Wire, size: int, *, remaining_s: float) -> None:
        """Refuses a request that would wait too long, before anything is spent on it.

        Raises:
            Overloaded: The work that waits exceeds the bound.
            DeadlineExceeded: The answer can't be there in `remaining_s`.
        """
        self.check_deadline(remaining_s)
        if not self.queued_requests:
            return
        if self.is_full_for(wire, size):
            raise self._refusal("queue_time", self.full_detail)
        total = self.waiting_s + self.pace * self._estimates[wire].seconds(size)
        if total > remaining_s:
            self._count("deadline")
            detail = f"The answer would take {total:.2f} s, and the caller waits {remaining_s:.2f} s more."
            raise DeadlineExceeded(detail)

    def check_deadline(self, remaining_s: float) -> None:
        """Refuses a request whose time is up.

        Raises:
            DeadlineExceeded: Nobody waits for the answer any more.
        """
        if remaining_s <= 0:
            self._count("deadline")
            raise DeadlineExceeded("The deadline passed before the work on the request began.")

    @property
    def waiting_s(self) -> float:
        """How long it takes until what waits now is done."""
        return self.pace * self.queue_s

    @property
    def is_relaxed(self) -> bool:
        """Whether there is so much room that looking closer hardly finds anything to refuse."""
        return self.waiting_s <= self.max_queue_s / 2 and self.inflight_bytes <= self.max_inflight_bytes / 2

    def is_full_for(self, wire: Wire, size: int) -> bool:
        """Tells whether too much work waits for a request that has to wait behind it."""
        # Counted in full, work longer than the bound would only ever be taken by an idle server.
        left_s = self.max_queue_s - self.waiting_s
        own_s = self.pace * self._estimates[wire].seconds(size)
        return self.queued_requests > 0 and left_s < min(own_s, self.max_queue_s / 2)

    @property
    def full_detail(self) -> str:
        """What a request is told that was refused for queue time."""
        return f"As much work waits as may ({self.max_queue_s:g} s); try again later."

    @property
    def retry_after_s(self) -> int:
        """Whole seconds until what waits now is done."""
        return max(1, math.ceil(self.waiting_s))

    def enter(self, wire: Wire, size: int) -> float:
        """Counts a request whose body has arrived, and returns its estimated work to be given to `leave`."""
        work = self._estimates[wire].seconds(size)
        self.queue_s += work
        self.queued_requests += 1
        return work

    def leave(self, work: float) -> None:
        """Ends what `enter` began: the request is answered, refused or abandoned."""
        self.queued_requests -= 1
        self.queue_s -= work
        if not self.queued_requests:
            self.queue_s = 0.0  # differences of floats leave dust; an empty queue is exactly empty
            self.pace += (1.0 - self.pace) / 4  # what slowed it down is passing

    def observe(self, wire: Wire, size: int, seconds: float) -> None:
        """Calibrates the estimate with the work a request really took, as its stages were timed."""
        self._estimates[wire].observe(size, seconds + _UNTIMED_S)

    def observe_wait(self, expected_s: float, seconds: float) -> None:
        """Calibrates the pace with how long a request waited for its answer that was expected to take `expected_s`."""
        # In a short queue, uploads and batches of others are most of what there is to see.
        if expected_s >= self.max_queue_s / 2:
            pace = self.pace * (seconds - _LATENCY_S) / expected_s
            self.pace += _PACE_LEARNING * (min(max(pace, 1.0), _SLOWEST_PACE) - self.pace)

    def _refusal(self, reason: Reason, detail: str) -> Overloaded:
        self._count(reason)
        return Overloaded(detail, retry_after_s=self.retry_after_s)

    def _count(self, reason: Reason) -> None:
        if self.metrics is not None:
            self.metrics.rejected(reason)
