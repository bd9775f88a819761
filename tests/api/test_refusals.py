"""What becomes of a connection on which a request was refused at its headers, for want of room."""

import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest

from tests.api.test_raw_socket import head, read_response
from tests.api.test_transport_limits import GET, read_all, statuses
from tests.calls import JSON, PATH, check_problem
from tests.conftest import StartServer
from tests.server import Server, find_free_port

BUDGET = 1 << 20
IGNORED = 50_000
LIMITS = {
    "max_inflight_bytes": BUDGET,
    "linger_bytes": IGNORED,
    "linger_timeout": 1,
    "header_timeout": 1,
    "body_grace": 3600,
}
LENGTH = 20_000
"""Times 20, more than the quarter of the budget that an endless upload leaves."""
BODY = b"x" * LENGTH
REFUSED = head(f"Content-Length: {LENGTH}")


@pytest.fixture(scope="module")
def metrics_port() -> int:
    return find_free_port()


@pytest.fixture(scope="module")
def full(start_server: StartServer, metrics_port: int) -> Iterator[Server]:
    """A service of whose bytes an upload holds most."""
    with (
        start_server(device="cpu", metrics_port=metrics_port, **LIMITS) as running,
        socket.create_connection(("127.0.0.1", running.port)) as upload,
        httpx.Client(base_url=f"http://127.0.0.1:{metrics_port}") as client,
    ):
        upload.sendall(head(f"Content-Length: {BUDGET}") + b"{")
        while "http_requests_in_flight 2.0" not in client.get("/metrics").text:
            time.sleep(0.01)
        yield running


def test_where_nothing_is_computed_nothing_is_refused_for_it(full: Server, metrics_port: int) -> None:
    for port, status, code in ((full.port, 503, "overloaded"), (metrics_port, 404, "not_found")):
        answer = httpx.post(f"http://127.0.0.1:{port}{PATH}", content=BODY, headers=JSON)
        check_problem(answer, status, code)


@pytest.fixture
def connection(full: Server) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", full.port), timeout=20) as opened:
        yield opened


def check_refused(connection: socket.socket) -> httpx.Response:
    response = read_response(connection)
    check_problem(response, 503, "overloaded")
    assert response.headers["retry-after"]
    return response


def check_alive(connection: socket.socket) -> None:
    assert read_response(connection).json() == {"status": "alive"}


def seconds_to_the_end(connection: socket.socket) -> float:
    """Waits until the service hangs up."""
    started = time.monotonic()
    with suppress(ConnectionError):
        assert connection.recv(1) == b""
    return time.monotonic() - started


def test_a_connection_goes_on_behind_a_refused_request(connection: socket.socket) -> None:
    for _ in range(3):
        connection.sendall(REFUSED + BODY)
        assert "connection" not in check_refused(connection).headers
        connection.sendall(GET)
        check_alive(connection)


def test_a_body_that_comes_behind_its_refusal_is_dropped(connection: socket.socket) -> None:
    connection.sendall(REFUSED)
    check_refused(connection)
    for start in range(0, LENGTH, 5000):
        connection.sendall(BODY[start : start + 5000])
        time.sleep(0.05)
    connection.sendall(GET)
    check_alive(connection)


@pytest.mark.parametrize("sent", [b"", b"x"], ids=["nothing", "a-little"])
def test_a_body_that_does_not_come_behind_its_refusal_is_not_waited_for(sent: bytes, connection: socket.socket) -> None:
    connection.sendall(REFUSED + sent)
    check_refused(connection)
    assert seconds_to_the_end(connection) < 10


def test_a_slow_head_behind_a_refused_request_is_not_waited_for(connection: socket.socket) -> None:
    connection.sendall(REFUSED + BODY + GET[:10])
    check_refused(connection)
    assert seconds_to_the_end(connection) < 10


@pytest.mark.parametrize(
    ("lines", "body"),
    [
        pytest.param([f"Content-Length: {IGNORED + 1}"], b"x" * (IGNORED + 1), id="long-body"),
        pytest.param([f"Content-Length: {LENGTH}", "Expect: 100-continue"], b"", id="body-held-back"),
        pytest.param([f"Content-Length: {LENGTH}", "Connection: close"], BODY, id="last-request"),
    ],
)
def test_a_connection_that_can_not_go_on_ends(lines: list[str], body: bytes, connection: socket.socket) -> None:
    connection.sendall(head(*lines) + body + GET)
    assert check_refused(connection).headers["connection"] == "close"
    assert connection.recv(1) == b"", "the request behind it has an answer"


def test_pipelined_requests_are_answered_in_order_around_a_refusal(connection: socket.socket) -> None:
    last = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    connection.sendall(GET + REFUSED + BODY + GET + REFUSED + BODY + REFUSED + BODY + last)
    assert statuses(read_all(connection)) == [200, 503, 200, 503, 503, 200]


def test_a_small_request_still_fits(connection: socket.socket) -> None:
    connection.sendall(head("Content-Length: 2") + b"{}")
    check_problem(read_response(connection), 422, "missing_field")
