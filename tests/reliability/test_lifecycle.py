"""Ends, wanted and unwanted: nothing accepted is lost without an answer, and retries lose nothing."""

import contextlib
import signal
import threading
import time
from typing import Any

import httpx
import numpy as np
import pytest
from losseval import Client
from losseval.errors import LossevalError

from tests.calls import EXAMPLE
from tests.reliability.conftest import Figures
from tests.reliability.load import offering, saturate
from tests.reliability.proxy import Proxy
from tests.reliability.replicas import GOLDEN_BODY, Replica, serving, wait_until

SHARE = 0.7
EXIT_S = 30.0
FIXED: dict[str, Any] = {"max_batch_requests": 1}


def terminate_under_load(figures: Figures, build: str, *, drain_delay: float, times: int) -> None:
    """Sends SIGTERM in the middle of a load of 70 % of the peak."""
    lost, unanswered, sent, slowest_s = 0, 0, 0, 0.0
    for _ in range(times):
        with serving(build, is_unharmed=False, drain_delay=drain_delay, **FIXED) as replica:
            peak = saturate(replica.port, GOLDEN_BODY, connections=16, seconds=1).requests_per_s
            expected = replica.golden().content
            with offering(
                replica.port, GOLDEN_BODY, expected=expected, rate=SHARE * peak, seconds=2.5 + drain_delay, grace_s=2.0
            ) as generator:
                time.sleep(1.5)
                replica.process.send_signal(signal.SIGTERM)
                started = time.monotonic()
                assert replica.process.wait(timeout=EXIT_S) == 0
                slowest_s = max(slowest_s, time.monotonic() - started)
                offered = generator.outcome()
        assert offered.wrong == 0
        assert offered.ok > 0
        sent, lost, unanswered = sent + offered.sent, lost + offered.lost, unanswered + offered.unanswered
    figures(sent=sent, lost=lost, not_accepted=unanswered - lost, slowest_exit_s=slowest_s, drain_delay_s=drain_delay)
    assert lost == 0, f"{lost} of {sent} requests were sent and have no answer"


@pytest.mark.reliability
@pytest.mark.timeout(300)
@pytest.mark.parametrize("drain_delay", [0.0, 1.0])
def test_ten_terminated_services_answer_what_they_have_accepted(drain_delay: float, figures: Figures) -> None:
    terminate_under_load(figures, "fixed_device", drain_delay=drain_delay, times=10)


def terminate_in_overload(figures: Figures, build: str) -> None:
    """Sends SIGTERM while half a second of work and more waits: what was sent long before has to be answered."""
    with serving(build, is_unharmed=False, drain_delay=0.5, **FIXED) as replica:
        load: dict[str, Any] = {"rate": 400, "seconds": 2, "warmup_s": 0.0, "grace_s": 30.0, "unjudged_s": 0.25}
        expected = replica.golden().content
        with offering(replica.port, GOLDEN_BODY, expected=expected, **load) as generator:
            wait_until(lambda: replica.counters()["queue_seconds"] > 0.5, seconds=20, what="filling the queue")
            replica.process.send_signal(signal.SIGTERM)
            assert replica.process.wait(timeout=EXIT_S) == 0
            offered = generator.outcome()
    figures(sent=offered.sent, lost=offered.lost, statuses=dict(offered.statuses))
    assert offered.wrong == 0
    assert offered.lost == 0, f"{offered.lost} of {offered.sent} requests were sent and have no answer"
    assert offered.ok > 0


def test_a_terminated_service_answers_what_it_has_accepted(figures: Figures) -> None:
    terminate_in_overload(figures, "fixed_device")


def test_a_service_that_ends_at_once_is_found(figures: Figures) -> None:
    with pytest.raises(AssertionError, match="have no answer"):
        terminate_in_overload(figures, "fixed_device,abrupt")


class Pair:
    """Two replicas, of which one after the other is killed and replaced."""

    def __init__(self, stack: contextlib.ExitStack, first: Replica) -> None:
        self._stack = stack
        self.replicas = [first, stack.enter_context(serving(is_unharmed=False))]
        self.proxy = stack.enter_context(Proxy([replica.port for replica in self.replicas]))

    def kill(self, place: int) -> None:
        self.replicas[place].process.kill()
        self.replicas[place].process.wait()

    def replace(self, place: int) -> Replica:
        replica = self._stack.enter_context(serving(is_unharmed=False))
        self.replicas[place] = replica
        self.proxy.ports[place] = replica.port
        return replica


CALLERS = 4


def kill_often(pair: Pair, figures: Figures, *, kills: int, max_attempts: int) -> None:
    """Calls through the proxy all the while, and compares every answer with the first."""
    logits, labels = np.array(EXAMPLE["logits"], np.float32), np.array(EXAMPLE["labels"])
    is_over = threading.Event()
    calls, retried, wrong = [0] * CALLERS, [0] * CALLERS, [0] * CALLERS
    errors: list[LossevalError] = []
    with Client(pair.replicas[0].url) as calm:
        expected = calm.cross_entropy(logits, labels, include=("losses",)).losses

    def call(place: int) -> None:
        while not is_over.is_set():
            # Now and then a new one: on an idle connection even a single attempt is repeated once.
            with Client(f"http://127.0.0.1:{pair.proxy.port}", max_attempts=max_attempts) as client:
                for _ in range(3):
                    try:
                        result = client.cross_entropy(logits, labels, include=("losses",))
                    except LossevalError as error:
                        errors.append(error)
                    else:
                        wrong[place] += not np.array_equal(result.losses, expected)
                        retried[place] += result.meta.attempts > 1
                    calls[place] += 1
                    is_over.wait(0.005)  # the machine has others to start

    threads = [threading.Thread(target=call, args=(place,)) for place in range(CALLERS)]
    for thread in threads:
        thread.start()
    ready_s = pair.replicas[0].ready_s
    time.sleep(0.5)  # of calls
    for number in range(1, kills + 1):
        started = time.monotonic()
        pair.kill(number % 2)
        if kills > 1:
            ready_s = max(ready_s, pair.replace(number % 2).ready_s)
        time.sleep(max(0.0, (3 * ready_s if kills > 1 else 1.0) - (time.monotonic() - started)))
    is_over.set()
    for thread in threads:
        thread.join()
    figures(
        kills=kills, calls=sum(calls), retried=sum(retried), lost=len(errors), wrong=sum(wrong), time_to_ready_s=ready_s
    )
    assert sum(wrong) == 0
    assert not errors, f"{len(errors)} calls were lost: {errors[0]}"


def test_a_killed_replica_costs_a_client_with_retries_nothing(plain: Replica, figures: Figures) -> None:
    with contextlib.ExitStack() as stack:
        kill_often(Pair(stack, plain), figures, kills=1, max_attempts=3)


@pytest.mark.reliability
@pytest.mark.timeout(240)
def test_replicas_killed_again_and_again_cost_a_client_with_retries_nothing(figures: Figures) -> None:
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(serving(is_unharmed=False))
        kill_often(Pair(stack, first), figures, kills=8, max_attempts=3)


def test_a_killed_replica_costs_a_client_without_retries_something(figures: Figures) -> None:
    """On an idle connection even one attempt is repeated; here every connection is new."""
    with contextlib.ExitStack() as stack:
        replica = stack.enter_context(serving("fixed_device", is_unharmed=False, **FIXED))
        lost = []

        def call() -> None:
            try:
                with Client(replica.url, max_attempts=1) as client:
                    client.cross_entropy(np.zeros((1, 2), np.float32), np.zeros(1, int))
            except LossevalError as error:
                lost.append(error)

        threads = [threading.Thread(target=call) for _ in range(20)]
        for thread in threads:
            thread.start()
        replica.process.kill()
        for thread in threads:
            thread.join()
        figures(lost=len(lost))
        assert lost


def test_a_second_sigterm_changes_nothing_and_sigint_skips_the_delay(figures: Figures) -> None:
    with serving(drain_delay=30, is_unharmed=False) as replica:
        for _ in range(2):
            replica.process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
        reply = replica.golden()
        assert reply.status == 200
        assert reply.headers["connection"] == "close"
        assert httpx.get(f"{replica.url}/readyz").status_code == 503
        replica.process.send_signal(signal.SIGINT)
        started = time.monotonic()
        assert replica.process.wait(timeout=10) == 0
        figures(sigint_exit_s=time.monotonic() - started)
