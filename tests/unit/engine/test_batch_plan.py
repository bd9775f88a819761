"""Which jobs run together, decided without a clock."""

from dataclasses import dataclass

import pytest

from service.engine.batch_plan import BatchLimits, Waiting


@dataclass
class FakeJob:
    name: str
    key: str = "a"
    elements: int = 1
    deadline: float = 100.0
    is_abandoned: bool = False


def waiting(*jobs: FakeJob, max_elements: int = 10, max_requests: int = 3) -> Waiting[FakeJob]:
    queue: Waiting[FakeJob] = Waiting(BatchLimits(max_elements, max_requests))
    for job in jobs:
        queue.add(job)
    return queue


def names(jobs: tuple[FakeJob, ...]) -> str:
    return "".join(job.name for job in jobs)


def test_takes_everything_of_one_key_in_order() -> None:
    batch = waiting(FakeJob("1"), FakeJob("2", key="b"), FakeJob("3")).next_batch(0)
    assert names(batch.jobs) == "13"
    assert batch.closed_by == "idle"


def test_keys_take_turns_so_that_none_starves() -> None:
    queue = waiting(*(FakeJob(str(i)) for i in range(6)), FakeJob("x", key="b"))
    assert [names(queue.next_batch(0).jobs) for _ in range(3)] == ["012", "x", "345"]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        pytest.param([5, 5], "01", id="exactly the budget"),
        pytest.param([5, 6], "0", id="one element over"),
        pytest.param([11, 1], "0", id="larger than the budget runs alone"),
    ],
)
def test_the_budget_is_in_elements(sizes: list[int], expected: str) -> None:
    queue = waiting(*(FakeJob(str(i), elements=size) for i, size in enumerate(sizes)))
    batch = queue.next_batch(0)
    assert names(batch.jobs) == expected
    assert batch.closed_by == ("idle" if expected == "01" else "budget")


def test_at_most_so_many_requests() -> None:
    queue = waiting(*(FakeJob(str(i)) for i in range(4)))
    assert names(queue.next_batch(0).jobs) == "012"
    assert len(queue) == 1


@pytest.mark.parametrize(("now", "jobs", "expired"), [(99.9, "1", ""), (100.0, "", "1")])
def test_a_job_expires_at_its_deadline(now: float, jobs: str, expired: str) -> None:
    batch = waiting(FakeJob("1")).next_batch(now)
    assert (names(batch.jobs), names(batch.expired)) == (jobs, expired)


def test_an_abandoned_job_is_dropped_without_a_trace() -> None:
    batch = waiting(FakeJob("1", is_abandoned=True), FakeJob("2")).next_batch(0)
    assert (names(batch.jobs), batch.expired) == ("2", ())


def test_nothing_waiting_is_an_empty_batch() -> None:
    assert waiting().next_batch(0).jobs == ()


def test_the_last_batches_of_a_drain_say_so() -> None:
    assert waiting(FakeJob("1")).next_batch(0, is_draining=True).closed_by == "drain"
