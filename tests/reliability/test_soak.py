"""Minutes of everything at once: what is taken is given back."""

import itertools
import threading
import time

import numpy as np
import pytest

from tests.calls import BINARY, EXAMPLE, PATH
from tests.reliability.conftest import Figures
from tests.reliability.corpus import HAND_MADE
from tests.reliability.load import offering
from tests.reliability.replicas import GOLDEN_BODY, Replica, exchange, serving
from tests.reliability.test_connections import connected, nothing
from tests.reliability.test_disconnects import in_body, in_headers, queued
from tests.wire import encode, encode_tensors

RATE = 100
GROWTH_BYTES_PER_S = (5 << 20) / 600
LOGITS = np.random.default_rng(4).normal(size=(256, 1000)).astype(np.float32)
LARGE = {"logits": LOGITS, "labels": np.zeros(256, np.uint8)}
BODIES = [
    (encode({**EXAMPLE, "include": ["summary", "losses"]}), {"Content-Type": "application/json"}, PATH),
    (encode_tensors(LARGE), BINARY, f"{PATH}?include=gradients"),
    (encode(LARGE, arrays="base64"), {"Content-Type": "application/json"}, PATH),
    (None, {}, "/metrics"),
    (None, {}, "/v1/info"),
    (None, {}, "/openapi.json"),
    (None, {}, "/nowhere"),
]


def slope_per_s(times: list[float], sizes: list[int]) -> float:
    """Returns how fast the floor of the sizes rises: of each tenth of the time the least counts."""
    parts = [part for part in np.array_split(np.column_stack([times, sizes]), 10) if len(part)]
    floor = np.array([part[np.argmin(part[:, 1])] for part in parts])
    return float(np.polyfit(floor[:, 0], floor[:, 1], 1)[0])


def soak(replica: Replica, figures: Figures, *, seconds: float) -> None:
    """Tiny requests at a steady rate, and beside them large, wrong and unfinished ones in turn."""
    is_over = threading.Event()

    def vary() -> None:
        wrong = itertools.cycle(HAND_MADE)
        while not is_over.wait(0.01):
            for body, headers, path in BODIES:
                exchange(replica.port, body, headers, path=path)
            for one in itertools.islice(wrong, 20):
                exchange(replica.port, one.body, one.headers)
            for leave in (in_headers, in_body, queued):
                with connected(replica.port, 5, nothing) as connections:
                    leave(connections)

    times, sizes, descriptors, threads = [], [], [], []
    thread = threading.Thread(target=vary)
    thread.start()
    try:
        with offering(replica.port, GOLDEN_BODY, rate=RATE, seconds=seconds) as generator:
            started = time.monotonic()
            while not generator.is_over():
                time.sleep(1)
                passed = time.monotonic() - started
                if passed > 0.4 * seconds:
                    times.append(passed)
                    sizes.append(replica.resident_bytes())
                    descriptors.append(replica.descriptors())
                    threads.append(replica.threads())
            offered = generator.outcome()
    finally:
        is_over.set()
        thread.join()
    slope = slope_per_s(times, sizes)
    middle = len(times) // 2
    figures(
        requests=offered.sent,
        statuses=dict(offered.statuses),
        p99_ms=offered.p99_s * 1e3,
        resident_mib=sizes[-1] / 2**20,
        slope_mib_in_10_min=slope * 600 / 2**20,
        descriptors=f"{min(descriptors)}…{max(descriptors)}",
        threads=f"{min(threads)}…{max(threads)}",
    )
    assert offered.ok == offered.sent
    assert slope < GROWTH_BYTES_PER_S, f"memory grows by {slope * 600 / 2**20:.1f} MiB in 10 minutes"
    assert min(descriptors[middle:]) <= min(descriptors[:middle]) + 2, "descriptors are leaked"
    assert max(threads) <= threads[0] + 8


@pytest.mark.soak
@pytest.mark.timeout(420)
def test_five_minutes_leave_memory_and_descriptors_as_they_were(figures: Figures) -> None:
    with serving() as replica:
        soak(replica, figures, seconds=300)


@pytest.mark.soak
@pytest.mark.timeout(240)
def test_a_leak_is_found(figures: Figures) -> None:
    with serving("bodies_are_kept") as replica, pytest.raises(AssertionError, match="memory grows"):
        soak(replica, figures, seconds=120)
