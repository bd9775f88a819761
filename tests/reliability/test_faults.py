"""Devices that hang, lose their memory or break, and wires that do: said at once, never wrong."""

import http.client
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
from losseval import Client
from losseval.errors import LossevalError

from tests.reliability.conftest import Figures
from tests.reliability.marks import DEVICE_ROWS, MARK, SMALL_CLASSES
from tests.reliability.proxy import Fault, Proxy
from tests.reliability.replicas import GOLDEN_BODY, Replica, Reply, exchange, serving, wait_until
from tests.wire import encode

NOTICED_S = 15.0
EXIT_S = 30.0
MARKED = encode({"logits": [[MARK, 1.0]], "labels": [0]})


def status_of(replica: Replica, path: str) -> int:
    return exchange(replica.port, path=path, timeout_s=5).status


def wedge(replica: Replica, figures: Figures, *, noticed_s: float) -> None:
    """One request wedges the engine, others wait behind it; liveness must say so, and everybody get an answer."""
    replies: list[Reply] = []

    def send(body: bytes) -> None:
        with suppress(OSError, http.client.HTTPException):
            replies.append(exchange(replica.port, body, timeout_s=90))

    threads = [threading.Thread(target=send, args=(body,), daemon=True) for body in [MARKED] + [GOLDEN_BODY] * 5]
    started = time.monotonic()
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    try:
        dead_s = wait_until(
            lambda: status_of(replica, "/livez") == 503, seconds=noticed_s, what="noticing that nothing is computed"
        )
        for thread in threads:
            thread.join(max(0.0, started + noticed_s + 2 - time.monotonic()))
        answered_s = time.monotonic() - started
        statuses = sorted(reply.status for reply in replies)
        figures(livez_503_after_s=dead_s, answered_after_s=answered_s, statuses=statuses)
        assert len(replies) == len(threads), f"{len(threads) - len(replies)} callers wait on"
        assert set(statuses) <= {500, 503, 504}
        assert status_of(replica, "/readyz") == 503
        assert exchange(replica.port, GOLDEN_BODY).status == 503, "more work is taken"
    finally:
        replica.process.kill()
        for thread in threads:
            thread.join()


@pytest.mark.reliability
def test_a_device_that_hangs_is_noticed_and_what_waits_is_answered(figures: Figures) -> None:
    with serving("hanging_device", is_unharmed=False) as replica:
        wedge(replica, figures, noticed_s=NOTICED_S)


def test_a_batcher_that_dies_is_noticed_and_what_waits_is_answered(figures: Figures) -> None:
    with serving("mortal_batcher", is_unharmed=False) as replica:
        wedge(replica, figures, noticed_s=NOTICED_S)


def test_health_that_is_always_good_is_found(figures: Figures) -> None:
    with (
        serving("mortal_batcher,always_alive", is_unharmed=False) as replica,
        pytest.raises(AssertionError, match="noticing"),
    ):
        wedge(replica, figures, noticed_s=1)


def rows(count: int) -> bytes:
    return encode({"logits": [[0.5] * SMALL_CLASSES] * count, "labels": [0] * count})


def crowd_out(replica: Replica, figures: Figures) -> None:
    """Batches that don't fit are halved until they do, and only the request that can't fit alone is refused."""
    sizes = [1, 2, 3, DEVICE_ROWS, DEVICE_ROWS + 1, 40] * 10
    with ThreadPoolExecutor(20) as pool:
        replies = list(pool.map(lambda size: exchange(replica.port, rows(size)), sizes))
    found = Counter((size > DEVICE_ROWS, reply.status) for size, reply in zip(sizes, replies, strict=True))
    figures(
        fits={s: n for (big, s), n in found.items() if not big}, too_big={s: n for (big, s), n in found.items() if big}
    )
    assert {status for big, status in found if not big} == {200}, "a neighbour was refused"
    assert {status for big, status in found if big} == {503}, "what can't fit is not refused as such"
    refused = next(reply for size, reply in zip(sizes, replies, strict=True) if size > DEVICE_ROWS)
    assert b'"insufficient_device_memory"' in refused.content
    assert "retry-after" in refused.headers


def test_out_of_memory_halves_the_batch(device: Replica, figures: Figures) -> None:
    crowd_out(device, figures)


def test_a_batch_that_is_not_halved_is_found(failing_together: Replica, figures: Figures) -> None:
    with pytest.raises(AssertionError, match="a neighbour was refused"):
        crowd_out(failing_together, figures)


def break_device(replica: Replica, figures: Figures, *, exit_s: float = EXIT_S) -> None:
    """After an error that stays, the batch may be tried elsewhere, and the process ends by itself, and says why."""
    reply = exchange(replica.port, MARKED)
    started = time.monotonic()
    liveness = 0
    while replica.process.poll() is None and time.monotonic() - started < exit_s:
        try:
            liveness = status_of(replica, "/livez")
        except (OSError, http.client.HTTPException):
            break
    assert reply.status == 503, f"the batch got {reply.status}, which nobody tries again"
    wait_until(lambda: replica.process.poll() is not None, seconds=exit_s, what="ending")
    code = replica.process.returncode
    figures(batch=reply.status, last_livez=liveness, exit_code=code, ended_after_s=time.monotonic() - started)
    assert liveness in {0, 503}
    assert code not in {0, 1, 2, -6, -9, -11, -15}, f"exit code {code} says nothing"


def test_a_device_that_is_broken_for_good_ends_the_process(figures: Figures) -> None:
    with serving("sticky_device", is_unharmed=False) as replica:
        break_device(replica, figures)


def test_a_process_that_outlives_its_device_is_found(figures: Figures) -> None:
    with (
        serving("sticky_device,clinging", is_unharmed=False) as replica,
        pytest.raises(AssertionError, match="ending took"),
    ):
        break_device(replica, figures, exit_s=2)


# On the wire

CALLS = 24
BATCH = np.random.default_rng(2).normal(size=(64, 10)).astype(np.float32), np.arange(64) % 10


def call_through(replica: Replica, fault: Fault, figures: Figures, *, share: float, calls: int, attempts: int) -> None:
    """Calls through a wire of which a share of all connections has a fault; a client of its own for each call."""
    chance = np.random.default_rng(11)
    with Client(replica.url) as client:
        expected = client.cross_entropy(*BATCH, include=("losses", "gradients"))
    outcomes: Counter[str] = Counter()
    with Proxy([replica.port], lambda: fault if chance.random() < share else "none") as proxy:

        def call(_: int) -> str:
            with Client(f"http://127.0.0.1:{proxy.port}", max_attempts=attempts, timeout=30) as caller:
                try:
                    found = caller.cross_entropy(*BATCH, include=("losses", "gradients"))
                except LossevalError as error:
                    return type(error).__name__
            assert found.losses is not None
            assert found.gradients is not None
            is_right = np.array_equal(found.losses, expected.losses) and np.array_equal(
                found.gradients, expected.gradients
            )
            return "right" if is_right else "wrong"

        with ThreadPoolExecutor(8) as pool:
            outcomes.update(pool.map(call, range(calls)))
        figures(f"{fault} in {share:.0%}", outcomes=dict(outcomes), connections=proxy.connections)
    assert not outcomes["wrong"]
    assert outcomes["right"] >= 0.999 * calls, f"lost on the wire: {dict(outcomes)}"


FAULTS = [
    pytest.param("delay", 1.0, id="delay"),
    pytest.param("reset", 0.05, id="reset"),
    pytest.param("truncation", 0.05, id="truncation"),
    pytest.param("trickle", 1.0, id="10-KB-a-second"),
]


@pytest.mark.parametrize(("fault", "share"), FAULTS)
def test_a_faulty_wire_costs_a_client_with_retries_nothing(
    fault: Fault, share: float, plain: Replica, figures: Figures
) -> None:
    call_through(plain, fault, figures, share=share, calls=CALLS, attempts=3)


@pytest.mark.reliability
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("fault", "share"), FAULTS)
def test_a_thousand_calls_over_a_faulty_wire(fault: Fault, share: float, plain: Replica, figures: Figures) -> None:
    call_through(plain, fault, figures, share=share, calls=1000, attempts=3)


@pytest.mark.parametrize("fault", ["reset", "truncation"])
def test_a_client_without_retries_is_found(fault: Fault, plain: Replica, figures: Figures) -> None:
    with pytest.raises(AssertionError, match="lost on the wire"):
        call_through(plain, fault, figures, share=0.5, calls=20, attempts=1)
