"""The books of bytes and of work."""

from contextlib import ExitStack

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from service.engine.admission import Admission, Place, Reservation, WorkEstimate
from service.errors import DeadlineExceeded, Overloaded


class Rejections(list[str]):
    def rejected(self, reason: str) -> None:
        self.append(reason)


def an_admission(max_inflight_bytes: int = 1000, max_queue_s: float = 1.0) -> tuple[Admission, Rejections]:
    rejections = Rejections()
    return Admission(max_inflight_bytes, max_queue_s, rejections), rejections


def test_json_reserves_twenty_times_its_length_and_gives_it_back() -> None:
    admission, _ = an_admission()
    reserved = admission.reserve("json", 30)
    assert admission.inflight_bytes == 600
    reserved.release()
    assert admission.inflight_bytes == 0
    reserved.release()
    assert admission.inflight_bytes == 0


def test_a_reservation_grows_with_what_comes_and_never_shrinks_before_its_end() -> None:
    admission, rejections = an_admission()
    other = admission.reserve("binary", 100)
    growing = admission.reserve("binary", 0)
    growing.cover(600)
    growing.cover(200)
    assert admission.inflight_bytes == 900
    with pytest.raises(Overloaded):
        growing.cover(701)
    assert (admission.inflight_bytes, rejections) == (900, ["bytes"])
    other.release()
    growing.cover(10**9)  # alone
    growing.release()
    assert admission.inflight_bytes == 0


def test_bytes_in_flight_are_bounded() -> None:
    admission, rejections = an_admission()
    admission.reserve("json", 30)
    with pytest.raises(Overloaded):
        admission.reserve("json", 21)
    assert rejections == ["bytes"]
    admission.reserve("json", 20)
    assert admission.inflight_bytes == 1000


def test_a_lone_request_is_served_however_large() -> None:
    admission, rejections = an_admission(max_inflight_bytes=1, max_queue_s=1e-9)
    admission.check_queue("json", 10**9, remaining_s=1e-9)
    admission.reserve("json", 10**9).release()
    assert (admission.inflight_bytes, rejections) == (0, [])


def test_a_request_larger_than_the_budget_leaves_a_quarter_of_it_to_others() -> None:
    admission, _ = an_admission(max_inflight_bytes=1000)
    large = admission.reserve("binary", 10**6)
    others = admission.reserve("binary", 83)
    with pytest.raises(Overloaded):
        admission.reserve("binary", 1)
    with pytest.raises(Overloaded):
        admission.reserve("binary", 10**6)
    large.cover(10**7)  # what was taken on is finished, whoever came since
    large.release()
    others.release()
    assert admission.inflight_bytes == 0


def test_a_body_on_its_way_holds_bytes_and_no_queue_time() -> None:
    admission, _ = an_admission(max_inflight_bytes=2 * 3 * 2**28 + 1000, max_queue_s=0.01)
    for _ in range(2):
        admission.check_queue("binary", 2**28, remaining_s=60)
        admission.reserve("binary", 2**28)
    admission.check_queue("json", 40, remaining_s=0.001)
    assert admission.reserve("json", 40).size == 800


def test_work_longer_than_the_bound_is_taken_when_less_than_half_of_it_waits() -> None:
    admission, _ = an_admission(max_queue_s=0.1)
    admission.enter("json", 4 * 10**6)
    admission.check_queue("json", 10**8, remaining_s=60)
    admission.enter("json", 2 * 10**6)
    with pytest.raises(Overloaded):
        admission.check_queue("json", 10**8, remaining_s=60)
    admission.check_queue("json", 10**5, remaining_s=60)


def test_a_place_can_be_lost_and_taken_again_and_is_left_once() -> None:
    admission, _ = an_admission()
    with Place(admission) as place:
        place.take("json", 10**6, now=0.0)
        assert (admission.queued_requests, place.work_s) == (1, admission.queue_s)
        place.leave()
        place.leave()
        assert (admission.queued_requests, admission.queue_s) == (0, 0.0)
        place.take("json", 10**6, now=0.0)
        assert admission.queued_requests == 1
    assert (admission.queued_requests, admission.queue_s) == (0, 0.0)


def wait_in_turn(admission: Admission, *, slower: float, times: int) -> None:
    """Fills the queue as far as may be, and answers everybody `slower` times later than was estimated."""
    for _ in range(times):
        with ExitStack() as stack:
            place = stack.enter_context(Place(admission))
            while not admission.is_full_for("json", 10**6):
                place = stack.enter_context(Place(admission))
                place.take("json", 10**6, now=0.0)
            place.finish(slower * admission.queue_s + 0.05)


@pytest.mark.parametrize(
    ("slower", "pace"),
    [
        pytest.param(3.0, 3.0, id="others have the processor"),
        pytest.param(0.5, 1.0, id="batches are quicker than alone"),
        pytest.param(1e6, 4.0, id="it stands still"),
    ],
)
def test_what_takes_longer_than_estimated_counts_for_more(slower: float, pace: float) -> None:
    admission, _ = an_admission()
    admission.enter("json", 0)  # it is never empty
    wait_in_turn(admission, slower=slower, times=300)
    assert admission.pace == pytest.approx(pace, rel=0.01)
    assert admission.waiting_s == pytest.approx(pace * admission.queue_s, rel=0.01)
    with pytest.raises(DeadlineExceeded):
        admission.check_queue("json", 0, remaining_s=0.95 * pace * admission.queue_s)
    wait_in_turn(admission, slower=1.0, times=400)
    assert admission.pace == pytest.approx(1, rel=0.01), "it does not recover"


def test_a_queue_that_is_empty_now_and_then_forgets_what_slowed_it_down() -> None:
    admission, _ = an_admission()
    with Place(admission) as place:
        place.take("json", 10**6, now=0.0)
        wait_in_turn(admission, slower=3.0, times=100)
        assert admission.pace > 2
    for _ in range(20):
        admission.leave(admission.enter("json", 10))
    assert admission.pace == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("max_queue_s", "waited_s"),
    [
        pytest.param(1.0, 30.0, id="with hardly anybody ahead"),
        pytest.param(0.01, 0.05, id="for a few turns of the loop"),
    ],
)
def test_waiting_that_is_not_due_to_the_queue_teaches_nothing(max_queue_s: float, waited_s: float) -> None:
    admission, _ = an_admission(max_queue_s=max_queue_s)
    with Place(admission) as place:
        place.take("json", 10**6, now=0.0)
        place.finish(waited_s)
        assert admission.pace == 1


def test_work_that_waits_is_bounded_and_says_when_to_come_again() -> None:
    admission, rejections = an_admission(max_queue_s=2.5)
    first = admission.enter("json", 10**8)  # about a second by the initial estimate
    admission.check_queue("json", 10**8, remaining_s=60)
    second = admission.enter("json", 10**8)
    with pytest.raises(Overloaded) as refusal:
        admission.check_queue("json", 10**8, remaining_s=60)
    assert rejections == ["queue_time"]
    assert refusal.value.retry_after_s == pytest.approx(admission.queue_s, abs=1)
    admission.leave(first)
    admission.check_queue("json", 10**8, remaining_s=60)
    admission.leave(second)
    assert admission.queue_s == 0


def test_a_request_that_cannot_meet_its_deadline_is_refused_at_once() -> None:
    admission, rejections = an_admission(max_queue_s=10)
    admission.enter("json", 10**8)
    with pytest.raises(DeadlineExceeded):
        admission.check_queue("json", 1, remaining_s=0.5)
    assert rejections == ["deadline"]


def test_the_estimate_learns_offset_and_slope() -> None:
    estimate = WorkEstimate(1e-8)
    for _ in range(2000):
        for size in (100, 10_000, 1_000_000):
            estimate.observe(size, 0.003 + 2e-9 * size)
    assert estimate.seconds(500_000) == pytest.approx(0.004, rel=0.05)
    assert estimate.seconds(0) == pytest.approx(0.003, rel=0.05)


@pytest.mark.parametrize(("size", "seconds"), [(100, 0.5), (2_500_000, 0.05), (150, 2e-4)])
def test_equal_sizes_teach_their_mean_and_leave_the_others_plausible(size: int, seconds: float) -> None:
    """Differences of large sums once made one body sixteen megabytes cheap, or a usual one nine times too dear."""
    estimate = WorkEstimate(1e-8)
    for _ in range(30_000):
        estimate.observe(size, seconds)
    assert estimate.seconds(size) == pytest.approx(seconds, rel=0.01)
    assert estimate.seconds(16 * 2**20) > 0.05
    assert 0 < estimate.seconds(1) <= seconds


def test_a_deadline_that_has_passed_is_refused_even_by_an_idle_service() -> None:
    admission, rejections = an_admission()
    with pytest.raises(DeadlineExceeded):
        admission.check_queue("json", 1, remaining_s=0.0)
    assert rejections == ["deadline"]


class Books(RuleBasedStateMachine):
    """Requests that come, grow, work and go in any order, each accounted for by hand as well."""

    reserved: Bundle[Reservation] = Bundle("reserved")
    working: Bundle[float] = Bundle("working")

    def __init__(self) -> None:
        super().__init__()
        self.admission, self.rejections = an_admission(max_inflight_bytes=1000, max_queue_s=1e-3)
        self.open: list[Reservation] = []
        self.work: list[float] = []

    @rule(target=reserved, length=st.integers(0, 400))
    def arrive(self, length: int) -> Reservation:
        is_idle = not self.admission.inflight_bytes
        reservation = Reservation(self.admission)
        try:
            reservation = self.admission.reserve("binary", length)
        except Overloaded:
            assert not is_idle, "an idle service refuses nothing"
        self.open.append(reservation)
        return reservation

    @rule(reservation=reserved, size=st.integers(0, 1500))
    def grow(self, reservation: Reservation, size: int) -> None:
        before = reservation.size
        try:
            reservation.cover(size)
        except Overloaded:
            assert reservation.size == before, "a refusal changes nothing"

    @rule(reservation=reserved)
    def release(self, reservation: Reservation) -> None:
        reservation.release()

    @rule(target=working, size=st.integers(0, 10**5))
    def enter(self, size: int) -> float:
        is_idle = not self.work
        try:
            self.admission.check_queue("json", size, remaining_s=60)
        except Overloaded:
            assert not is_idle, "an idle service refuses nothing"
        self.work.append(self.admission.enter("json", size))
        return self.work[-1]

    @rule(work=consumes(working))
    def leave(self, work: float) -> None:
        self.admission.leave(work)
        self.work.remove(work)

    @rule(size=st.integers(0, 10**5), seconds=st.floats(1e-6, 1.0))
    def learn(self, size: int, seconds: float) -> None:
        self.admission.observe("json", size, seconds)

    @invariant()
    def the_sums_are_those_of_the_parts(self) -> None:
        assert self.admission.inflight_bytes == sum(one.size for one in self.open)
        assert self.admission.inflight_bytes <= self.admission.max_inflight_bytes
        assert self.admission.queued_requests == len(self.work)
        assert self.admission.queue_s == pytest.approx(sum(self.work), abs=1e-9)

    def teardown(self) -> None:
        for reservation in self.open:
            reservation.release()
        for work in self.work:
            self.admission.leave(work)
        assert (self.admission.inflight_bytes, self.admission.queue_s, self.admission.queued_requests) == (0, 0.0, 0)


test_whatever_is_entered_in_the_books_leaves_them_exactly_once = Books.TestCase
