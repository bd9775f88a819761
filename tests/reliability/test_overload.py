"""More requests than can be answered: refused at once, never slow, never wrong, and every one accounted for."""

import contextlib
import math
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from benchmarks.load import LoadResult
from benchmarks.servers import Server, bare, running
from benchmarks.workloads import JsonWorkload
from tests.api.test_raw_socket import head
from tests.calls import BINARY, PATH
from tests.reliability.conftest import Figures
from tests.reliability.load import Offered, offer, saturate
from tests.reliability.marks import FIXED_S, MARK
from tests.reliability.replicas import GOLDEN_BODY, LIVEZ_S, Replica, patiently, serving, total, wait_until
from tests.wire import encode

MAX_QUEUE_S = 1.0
GOLDEN_ROWS = 3
INFLIGHT_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Bars:
    """What has to be reached."""

    goodput: float
    p99_s: float = MAX_QUEUE_S + 0.3
    for_nobody: float = 0.01


BARS = {2: Bars(0.97), 5: Bars(0.95), 10: Bars(0.90)}
FOR_NOBODY = 0.1
"""In `make test`, where others disturb; without dropping it is several times as much."""
TINY: dict[str, Any] = {"max_batch_requests": 1}
"""With the fixed device: some 180 requests a second, so that a generator in Python can offer ten times as many."""
MARKED = encode({"logits": [[MARK, 1.0]], "labels": [0]})
LARGE = JsonWorkload(256, 1000, 4).body


@contextlib.contextmanager
def watched(replica: Replica) -> Iterator[list[float]]:
    """Asks `/livez` ten times a second while the block runs."""
    found: list[float] = []
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(0.1):
            try:
                found.append(replica.livez_s())
            except OSError:
                found.append(math.inf)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        is_over.set()
        thread.join()


def answers(replica: Replica) -> dict[str, float]:
    """Counts what the service says it has answered, by status."""
    counters = replica.counters()
    return {
        code: total(counters, "http_requests_total", f'code="{code}"', f'route="{PATH}"')
        for code in ("200", "499", "500", "503", "504")
    }


def check_books(offered: Offered, before: dict[str, float], after: dict[str, float]) -> None:
    """The service's counters are the client's; who went without an answer is a 499."""
    gone = offered.unanswered - offered.unsent
    for code, count in after.items():
        expected = gone if code == "499" else offered.statuses.get(code, 0)
        assert count - before[code] == expected, f"{code}: {count - before[code]:g} there, {expected} here"


def overload(
    replica: Replica,
    times: int,
    figures: Figures,
    *,
    bars: Bars,
    body: bytes,
    seconds: float,
    connections: int,
    **options: Any,
) -> None:
    """Offers a multiple of the peak, and checks every bar."""
    expected = httpx.post(f"{replica.url}{PATH}", content=body, headers={"content-type": "application/json"}).content
    peak = saturate(replica.port, body, connections=connections, seconds=1.5).requests_per_s
    before, rows_before = answers(replica), replica.counters()["rows_total"]
    with watched(replica) as livez:
        offered = offer(replica.port, body, expected=expected, rate=times * peak, seconds=seconds, **options)
    recovery_s = wait_until(lambda: replica.golden().seconds < 0.1, seconds=2, what="getting back to normal")
    after, computed = answers(replica), replica.counters()["rows_total"] - rows_before
    goldens = after["200"] - before["200"] - offered.ok
    rows = body.count(b"],[") + body.count(b"], [") + 1
    nobody = 1 - (offered.ok * rows + goldens * GOLDEN_ROWS) / computed
    goodput = offered.goodput_per_s / peak
    figures(
        f"{times}× the peak of {peak:.0f}/s",
        goodput=f"{goodput:.1%}",
        p99_ms=offered.p99_s * 1e3,
        refusal_p99_ms=offered.refusal_p99_s * 1e3,
        statuses=dict(offered.statuses),
        unanswered=offered.unanswered,
        rows_for_nobody=f"{nobody:.2%}",
        recovery_s=recovery_s,
        livez_worst_ms=max(livez) * 1e3,
        generator_late_p99_ms=offered.lag_p99_s * 1e3,
    )
    after["200"] -= goldens
    assert offered.wrong == 0
    assert offered.p99_s <= bars.p99_s, f"p99 {offered.p99_s:.2f} s"
    assert goodput >= bars.goodput, f"goodput {goodput:.1%}"
    assert nobody <= bars.for_nobody, f"{nobody:.1%} of the rows were computed for nobody"
    assert offered.answered("5") == offered.statuses.get("503", 0)
    assert offered.unanswered == 0
    assert sorted(livez)[int(0.99 * len(livez))] <= LIVEZ_S
    check_books(offered, before, after)


@pytest.fixture(scope="module")
def fixed_replica() -> Iterator[Replica]:
    with serving("fixed_device", max_inflight_bytes=2 << 30, **TINY) as replica:
        yield replica


@pytest.fixture
def fixed(fixed_replica: Replica) -> Iterator[Replica]:
    yield fixed_replica
    fixed_replica.check_unharmed()


def tiny(replica: Replica, times: int, figures: Figures, *, bars: Bars, seconds: float, **options: Any) -> None:
    overload(replica, times, figures, bars=bars, body=GOLDEN_BODY, seconds=seconds, connections=16, **options)


def flood(replica: Replica, figures: Figures, **options: Any) -> None:
    """Offers five times what the fixed device can do at best: whoever is not served is refused, and in the books."""
    expected = replica.golden().content
    before = answers(replica)
    with watched(replica) as livez:
        load: dict[str, Any] = {"rate": 5 / FIXED_S, "seconds": 1.5, "warmup_s": 0.0, "grace_s": 30.0, **options}
        offered = offer(replica.port, GOLDEN_BODY, expected=expected, **load)
    figures(statuses=dict(offered.statuses), unanswered=offered.unanswered, p99_ms=offered.p99_s * 1e3)
    assert offered.wrong == 0
    assert offered.statuses.get("503", 0) >= offered.sent / 10, "next to nobody was refused"
    assert set(offered.statuses) == {"200", "503"}
    assert offered.unanswered == 0
    assert math.inf not in livez
    check_books(offered, before, answers(replica))
    check_idle(replica)


def check_idle(replica: Replica) -> None:
    """Everything that was in the books is out of them."""
    counters = replica.counters()
    assert {name: counters[name] for name in ("queue_requests", "queue_seconds")} == dict.fromkeys(
        ("queue_requests", "queue_seconds"), 0.0
    )


def test_five_times_the_peak(fixed: Replica, figures: Figures) -> None:
    flood(fixed, figures)


def test_a_service_that_admits_everything_is_found(figures: Figures) -> None:
    with (
        serving("fixed_device,everything_admitted", is_unharmed=False, **TINY) as replica,
        pytest.raises(AssertionError, match="nobody was refused"),
    ):
        flood(replica, figures, grace_s=0.0)


@pytest.mark.reliability
def test_without_a_bound_on_the_queue_overload_makes_answers_slow(figures: Figures) -> None:
    with (
        serving("fixed_device,everything_admitted", is_unharmed=False, **TINY) as replica,
        pytest.raises(AssertionError, match=r"^p99 |getting back"),
    ):
        tiny(replica, 5, figures, bars=BARS[5], seconds=2, grace_s=1.0)


@pytest.mark.reliability
@pytest.mark.timeout(180)
@pytest.mark.parametrize("times", BARS)
def test_tiny_requests_beyond_the_peak(times: int, fixed: Replica, figures: Figures) -> None:
    patiently(lambda: tiny(fixed, times, figures, bars=BARS[times], seconds=10))


@pytest.mark.reliability
@pytest.mark.timeout(180)
@pytest.mark.parametrize("waits", [pytest.param(True, id="waits-for-100"), pytest.param(False, id="sends-at-once")])
@pytest.mark.parametrize("times", BARS)
def test_large_json_beyond_the_peak(times: int, figures: Figures, *, waits: bool) -> None:
    """Of what the generator can offer: it shares the machine with the service, and a refused body costs both."""
    load: dict[str, Any] = {"seconds": 8, "warmup_s": 2.0, "connections": 4, "expects_continue": waits}
    with serving() as replica:
        patiently(lambda: overload(replica, times, figures, bars=BARS[times], body=LARGE, **load))


def hurried(
    replica: Replica, figures: Figures, *, for_nobody: float = FOR_NOBODY, seconds: float = 1.0, **impatience: Any
) -> None:
    """Callers who can't wait as long as the queue is: what is computed for them is little."""
    rows_before = replica.counters()["rows_total"]
    offered = offer(replica.port, GOLDEN_BODY, rate=3 / FIXED_S, seconds=seconds, warmup_s=0.0, **impatience)
    wait_until(lambda: replica.counters()["queue_requests"] == 0, seconds=40, what="emptying the queue")
    computed = (replica.counters()["rows_total"] - rows_before) / GOLDEN_ROWS
    nobody = 1 - offered.ok / computed
    figures(
        rows_for_nobody=f"{nobody:.2%}",
        goodput_per_s=offered.goodput_per_s,
        p99_ms=offered.p99_s * 1e3,
        statuses=dict(offered.statuses),
        hung_up=offered.unanswered,
    )
    assert nobody <= for_nobody, f"{nobody:.1%} of the rows were computed for nobody"


IMPATIENCE = [
    pytest.param({"headers": {"X-Request-Timeout": "0.3"}}, id="deadline"),
    pytest.param({"patience_s": 1.0}, id="hangs-up"),
]


@pytest.mark.parametrize("impatience", IMPATIENCE)
def test_next_to_nothing_is_computed_for_those_who_do_not_wait(
    impatience: dict[str, Any], fixed: Replica, figures: Figures
) -> None:
    hurried(fixed, figures, **impatience)


@pytest.mark.reliability
@pytest.mark.timeout(120)
@pytest.mark.parametrize("impatience", IMPATIENCE)
def test_next_to_nothing_is_computed_for_those_who_do_not_wait_to_the_bar(
    impatience: dict[str, Any], fixed: Replica, figures: Figures
) -> None:
    patiently(lambda: hurried(fixed, figures, for_nobody=BARS[2].for_nobody, seconds=5, **impatience))


def test_without_dropping_much_is_computed_for_nobody(figures: Figures) -> None:
    with (
        serving("fixed_device,computed_for_nobody", is_unharmed=False, **TINY) as replica,
        pytest.raises(AssertionError, match="for nobody"),
    ):
        hurried(replica, figures, patience_s=1.0)


@contextlib.contextmanager
def trickling(port: int, size: int, count: int) -> Iterator[list[bool]]:
    """Uploads that come at 128 KiB/s and never end."""
    is_over = threading.Event()
    uploaded: list[bool] = []

    def upload() -> None:
        with suppress(ConnectionError), socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(head(f"Content-Length: {size}", content_type=BINARY["content-type"]))
            while not is_over.wait(0.25):
                connection.sendall(bytes(1 << 15))
            uploaded.append(True)

    threads = [threading.Thread(target=upload) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield uploaded
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def beside_uploads(replica: Replica, figures: Figures, *, rate: float = 40, seconds: float = 1) -> Offered:
    with trickling(replica.port, 1 << 28, 2) as uploaded:
        in_flight = (
            "http_requests_in_flight"  # an upload and the question; where uploads are work, one keeps out the other
        )
        wait_until(lambda: replica.counters()[in_flight] >= 2, seconds=20, what="beginning to upload")
        beside = offer(replica.port, GOLDEN_BODY, rate=rate, seconds=seconds)
    figures(beside_p99_ms=beside.p99_s * 1e3, statuses=dict(beside.statuses))
    assert beside.ok == beside.sent, f"refused beside uploads: {beside.statuses}"
    assert len(uploaded) == 2, "an upload was cut off"
    return beside


def test_two_slow_uploads_of_256_mib_keep_nobody_out(fixed: Replica, figures: Figures) -> None:
    beside_uploads(fixed, figures)


@pytest.mark.reliability
def test_two_slow_uploads_of_256_mib_delay_nobody(fixed: Replica, figures: Figures) -> None:
    def scenario() -> None:
        alone = offer(fixed.port, GOLDEN_BODY, rate=100, seconds=2)
        beside = beside_uploads(fixed, figures, rate=100, seconds=2)
        figures(alone_p99_ms=alone.p99_s * 1e3)
        assert beside.p50_s <= 2 * alone.p50_s
        assert beside.p99_s <= 2 * alone.p99_s + 0.02

    patiently(scenario)


def test_uploads_that_count_as_work_keep_others_out(figures: Figures) -> None:
    with (
        serving("fixed_device,slow_upload_is_work", max_inflight_bytes=2 << 30, is_unharmed=False, **TINY) as replica,
        pytest.raises(AssertionError, match="refused beside uploads"),
    ):
        beside_uploads(replica, figures)


def fill_memory(replica: Replica, figures: Figures, *, seconds: float) -> None:
    """Offers ten times the peak twice: memory may grow by what may be in flight, and then no more."""
    peak = saturate(replica.port, LARGE, connections=4, seconds=5).requests_per_s
    found = []
    replica.forget_peak()
    for times in (1, 10, 10):
        offer(replica.port, LARGE, rate=times * peak, seconds=seconds, expects_continue=True)
        found.append(replica.peak_bytes())
    at_peak, halfway, beyond = found
    figures(at_1x_mib=at_peak >> 20, halfway_mib=halfway >> 20, at_the_end_mib=beyond >> 20, seconds=2 * seconds)
    assert beyond <= at_peak + INFLIGHT_BYTES, f"memory grew by {beyond - at_peak >> 20} MiB"
    assert beyond <= halfway + (16 << 20)


@pytest.mark.reliability
@pytest.mark.timeout(240)
def test_memory_under_ten_times_the_peak_is_bounded_and_flat(figures: Figures) -> None:
    with serving(max_inflight_bytes=INFLIGHT_BYTES) as replica:
        fill_memory(replica, figures, seconds=30)


@pytest.mark.reliability
@pytest.mark.timeout(120)
def test_memory_without_bounds_is_found(figures: Figures) -> None:
    with (
        serving(
            "everything_admitted,nothing_reserved", max_inflight_bytes=INFLIGHT_BYTES, is_unharmed=False
        ) as replica,
        pytest.raises(AssertionError, match="memory grew"),
    ):
        fill_memory(replica, figures, seconds=1)


def cpu_of(server: Server, connections: int, *, seconds: float = 4.0, path: str = PATH) -> tuple[LoadResult, float]:
    """Sends tiny requests as fast as answers come, and returns the server's CPU seconds for each of them."""
    before = server.cpu_s()
    found = saturate(server.port, GOLDEN_BODY, connections=connections, seconds=seconds, path=path)
    return found, (server.cpu_s() - before) / found.answered


def refusal_cpu() -> float:
    """Measures a service that refuses everything: a device that hangs keeps its queue full."""
    with serving("hanging_device", max_queue_ms=1, is_unharmed=False) as replica, contextlib.ExitStack() as stack:
        for _ in range(10):
            waiting = stack.enter_context(socket.create_connection(("127.0.0.1", replica.port)))
            waiting.sendall(head(f"Content-Length: {len(MARKED)}") + MARKED)
        wait_until(lambda: replica.golden().status == 503, seconds=2, what="filling the queue")
        refused, seconds = cpu_of(replica, 16)
        replica.process.kill()
    assert refused.not_ok == refused.answered
    return seconds


@pytest.mark.reliability
@pytest.mark.timeout(240)
def test_a_refusal_costs_little_more_than_the_bare_application(figures: Figures) -> None:
    """CPU of the server's process, beside that of an application that does nothing but answer as much."""
    refusal_s = refusal_cpu()
    with running(bare()) as server:
        _, bare_s = cpu_of(server, 16, path="/?bytes=300")
    figures(refusal_us=refusal_s * 1e6, bare_us=bare_s * 1e6, ratio=refusal_s / bare_s, bar="1.2 × bare")
    assert refusal_s <= 1.2 * bare_s


@pytest.mark.reliability
@pytest.mark.timeout(240)
def test_what_refusing_leaves_of_the_processor_goes_to_answers(figures: Figures) -> None:
    """More callers than fit the queue come again at once, on a device that takes next to nothing.

    With k times the peak offered and r the cost of a refusal in answers, the processor has (1 - k r) / (1 - r) left.
    """

    def scenario() -> None:
        refusal_s = refusal_cpu()
        with serving(max_queue_ms=100) as replica:
            cpu_of(replica, 16, seconds=2)
            peak, answer_s = cpu_of(replica, 16)
            crowd, _ = cpu_of(replica, 900)
        r, k = refusal_s / answer_s, crowd.requests_per_s / peak.requests_per_s
        goodput = crowd.requests_per_s * (1 - crowd.not_ok / crowd.answered) / peak.requests_per_s
        formula = (1 - k * r) / (1 - r)
        figures(peak_per_s=peak.requests_per_s, k=k, r=r, goodput=f"{goodput:.1%}", formula=f"{formula:.1%}")
        assert crowd.not_ok
        assert goodput >= 0.9 * formula

    patiently(scenario)
