"""The books of bytes and of work."""

import pytest

from service.engine.admission import Admission, WorkEstimate
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
    admission, _ = an_admission(max_inflight_bytes=1, max_queue_s=1e-9)
    admission.check_queue("json", 10**9, remaining_s=1e-9)
    assert admission.reserve("json", 10**9).size == 20 * 10**9


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
