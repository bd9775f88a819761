"""Clients that go, wherever they are: what they held is given back, and their neighbours notice nothing."""

import contextlib
import socket
import time
from collections.abc import Callable

import pytest

from tests.api.test_raw_socket import head
from tests.calls import BINARY, PATH
from tests.reliability.conftest import ROOM, Figures
from tests.reliability.load import offering
from tests.reliability.replicas import GOLDEN_BODY, Replica, exchange, serving, total, wait_until
from tests.reliability.test_connections import BIG

RATE = 50
AT_ONCE = 50
GAUGES = ("http_requests_in_flight", "queue_requests", "queue_seconds")
WHOLE = head(f"Content-Length: {len(GOLDEN_BODY)}") + GOLDEN_BODY
BIG_WHOLE = head(f"Content-Length: {len(BIG)}", path=f"{PATH}?include=gradients", content_type=BINARY["content-type"])
Leave = Callable[[list[socket.socket]], None]


def send_all(connections: list[socket.socket], sent: bytes) -> None:
    for connection in connections:
        connection.sendall(sent)


def in_headers(connections: list[socket.socket]) -> None:
    send_all(connections, WHOLE[:40])


def in_body(connections: list[socket.socket]) -> None:
    """With a reservation of 20 MB each."""
    send_all(connections, head("Content-Length: 1000000") + b'{"logits": [[')


def queued(connections: list[socket.socket]) -> None:
    """The device takes one request in 5 ms, so that most of them wait when they go."""
    send_all(connections, WHOLE)


def in_batch(connections: list[socket.socket]) -> None:
    for connection in connections:
        connection.sendall(WHOLE)
        time.sleep(0.002)
        connection.close()


def in_answer(connections: list[socket.socket]) -> None:
    """One by one: each answer has 16 MB."""
    for connection in connections:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        connection.sendall(BIG_WHOLE)
        connection.sendall(BIG)
        assert connection.recv(12) == b"HTTP/1.1 200"
        connection.close()


PHASES: dict[str, Leave] = {
    "in-headers": in_headers,
    "in-body": in_body,
    "queued": queued,
    "in-batch": in_batch,
    "in-answer": in_answer,
}


def leave_often(replica: Replica, figures: Figures, *, phase: str, count: int, settled_s: float) -> None:
    """Comes and goes, many at once, beside a client who stays."""
    port, done = replica.port, 0
    gone = total(replica.counters(), "client_disconnects_total")
    at_once = 1 if phase == "in-answer" else AT_ONCE
    seconds = 0.02 * count if phase == "in-answer" else 0.008 * count
    with offering(port, GOLDEN_BODY, rate=RATE, seconds=seconds, warmup_s=0.2) as generator:
        while done < count:
            with contextlib.ExitStack() as stack:  # which closes them
                opened = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(at_once)]
                PHASES[phase](opened)
            done += at_once
        neighbour = generator.outcome()
    settled_s = wait_until(lambda: is_empty(replica), seconds=settled_s, what="giving everything back")
    gone = total(replica.counters(), "client_disconnects_total") - gone
    figures(
        left=done,
        noticed=gone,
        given_back_s=settled_s,
        neighbour=dict(neighbour.statuses),
        neighbour_p99_ms=neighbour.p99_s * 1e3,
    )
    assert neighbour.ok == neighbour.sent, f"the neighbour got {neighbour.statuses}"
    path = f"{PATH}?include=loss"
    assert exchange(port, BIG, BINARY, path=path).status == 200, "what they reserved was not given back"


def is_empty(replica: Replica) -> bool:
    """Whether nothing is in flight but the question itself."""
    counters = replica.counters()
    return all(counters[name] <= (name == "http_requests_in_flight") for name in GAUGES)


COUNTS = [
    pytest.param(50, 20.0, id="50"),
    pytest.param(1000, 1.0, id="1000", marks=pytest.mark.reliability),
]


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("count", "settled_s"), COUNTS)
@pytest.mark.parametrize("phase", PHASES)
def test_who_goes_leaves_nothing_behind(
    phase: str, count: int, settled_s: float, device: Replica, figures: Figures
) -> None:
    leave_often(device, figures, phase=phase, count=count, settled_s=settled_s)


def test_a_service_that_keeps_reservations_is_found(figures: Figures) -> None:
    with (
        serving("fixed_device,nothing_released", is_unharmed=False, **ROOM) as replica,
        # The neighbour is refused, and may be hung up on while it still sends.
        pytest.raises((AssertionError, OSError), match=r"the neighbour got|not given back|Broken pipe|reset by peer"),
    ):
        leave_often(replica, figures, phase="in-body", count=100, settled_s=20)
