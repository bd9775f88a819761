"""One bad request in a hundred, and any company at all: everybody gets the answer they would get alone."""

import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from tests.crowd import EVERY_OUTPUT, Crowd, random_rows, strangers
from tests.reliability.conftest import Figures
from tests.reliability.marks import MARK
from tests.reliability.replicas import GOLDEN_BODY, Replica, check_golden, exchange
from tests.wire import encode

POISON = encode({"logits": [[MARK, 1.0, 2.0, 3.0]], "labels": [0], "include": ["loss", "losses", "gradients"]})
"""Of the same key as the golden request, so that they share batches."""
THREADS = 8


def poisoned(replica: Replica, figures: Figures, *, count: int) -> None:
    """Every hundredth request makes its batch fail."""
    found: Counter[tuple[bool, int]] = Counter()
    companies: Counter[int] = Counter()
    wrong: list[bytes] = []
    lock = threading.Lock()

    def send(numbers: Sequence[int]) -> None:
        with Crowd(replica.port) as crowd:
            for start in range(0, len(numbers), 11):
                part = numbers[start : start + 11]
                bodies = [POISON if number % 100 == 0 else GOLDEN_BODY for number in part]
                for number, reply in zip(part, crowd.fire(bodies), strict=True):
                    with lock:
                        found[number % 100 == 0, reply.status] += 1
                        if reply.status == 200:
                            companies[reply.companions] += 1
                            if number % 100 and not is_golden(reply.content):
                                wrong.append(reply.content)

    threads = [threading.Thread(target=send, args=(range(first, count, THREADS),)) for first in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    harmed = sum(number for (is_bad, status), number in found.items() if not is_bad and status != 200)
    shared = sum(number for company, number in companies.items() if company > 1) / sum(companies.values())
    figures(
        requests=count,
        culprits={status: number for (is_bad, status), number in found.items() if is_bad},
        neighbours_failed=harmed,
        in_company=f"{shared:.0%}",
    )
    assert harmed == 0, f"{harmed} neighbours failed"
    assert not wrong, f"{len(wrong)} neighbours got another answer: {wrong[0]!r}"
    assert found[True, 500] == count // 100
    assert shared, "nobody had company"


def is_golden(content: bytes) -> bool:
    try:
        check_golden(content)
    except AssertionError:
        return False
    return True


COUNTS = [pytest.param(600, id="600"), pytest.param(10_000, id="10000", marks=pytest.mark.reliability)]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("count", COUNTS)
def test_a_poisoned_request_fails_alone(count: int, device: Replica, figures: Figures) -> None:
    poisoned(device, figures, count=count)


def test_a_batch_that_fails_together_is_found(failing_together: Replica, figures: Figures) -> None:
    with pytest.raises(AssertionError, match="neighbours failed"):
        poisoned(failing_together, figures, count=500)


def accompany(replica: Replica, figures: Figures, *, batches: int) -> None:
    """Sends one request alone, then again and again among strangers that may share its batch."""
    generator = torch.Generator().manual_seed(5)
    fields: dict[str, Any] = {"logits": random_rows((5, 37), torch.float32, generator), "labels": torch.arange(5)}
    fields |= {"include": EVERY_OUTPUT, "label_smoothing": 0.1}
    body = encode(fields, arrays="base64")
    alone = exchange(replica.port, body)
    assert alone.status == 200, alone.content
    sizes: Counter[int] = Counter()
    with Crowd(replica.port) as crowd:
        while sum(sizes.values()) < batches:
            reply, *_ = crowd.fire(
                [body, *strangers(fields, int(torch.randint(1, 11, (), generator=generator)), generator)]
            )
            assert reply.content == alone.content, f"other bits in a batch of {reply.companions}"
            sizes[reply.companions] += reply.companions > 1
    figures(batches=sum(sizes.values()), sizes=dict(sorted(sizes.items())))


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "batches", [pytest.param(50, id="50"), pytest.param(1000, id="1000", marks=pytest.mark.reliability)]
)
def test_company_changes_no_bit(batches: int, plain: Replica, figures: Figures) -> None:
    accompany(plain, figures, batches=batches)


def test_company_that_shows_is_found(careless: Replica, figures: Figures) -> None:
    with pytest.raises(AssertionError, match="other bits"):
        accompany(careless, figures, batches=20)
