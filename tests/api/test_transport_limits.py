"""What a connection may cost: headers, time, bytes behind a refusal, requests ahead of their answers."""

import json
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import httpx
import numpy as np
import pytest

from tests.api.test_raw_socket import BODY, head, read_response
from tests.calls import check_problem
from tests.conftest import StartServer
from tests.server import Server
from tests.wire import encode_tensors

MAX_CONNECTIONS = 20
LIMITS = {
    "max_connections": MAX_CONNECTIONS,
    "max_pipelined": 5,
    "max_headers": 20,
    "max_header_bytes": 2000,
    "header_timeout": 0.5,
    "body_grace": 0.5,
    "send_timeout": 0.5,
    "linger_timeout": 0.5,
    "linger_bytes": 10_000,
    "keep_alive_timeout": 1,
}
GET = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
POST = head(f"Content-Length: {len(BODY)}") + BODY
CHUNKED = head("Transfer-Encoding: chunked")
PIECES = 200
"""So many pieces, a twentieth of a second apart, would take ten seconds."""


@pytest.fixture(scope="module")
def strict(start_server: StartServer) -> Iterator[Server]:
    with start_server(device="cpu", **LIMITS) as running:
        yield running


@contextmanager
def connect(server: Server) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as opened:
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield opened


@pytest.fixture
def connection(strict: Server) -> Iterator[socket.socket]:
    with connect(strict) as opened:
        yield opened


def read_all(connection: socket.socket) -> bytes:
    """Read until the server closes; a reset ends it too."""
    received = b""
    with suppress(ConnectionError):
        while piece := connection.recv(1 << 16):
            received += piece
    return received


def statuses(received: bytes) -> list[int]:
    """Return the statuses of the answers in a stream, of which none lies within another."""
    found = []
    while received:
        top, _, rest = received.partition(b"\r\n\r\n")
        assert top.startswith(b"HTTP/1.1 "), received[:200]
        lines = top.lower().split(b"\r\n")
        length = next(int(line[16:]) for line in lines if line.startswith(b"content-length: "))
        json.loads(rest[:length])
        found.append(int(top[9:12]))
        received = rest[length:]
    return found


def send_all(connection: socket.socket, data: bytes) -> None:
    """Send as much as the server takes."""
    with suppress(ConnectionError):
        connection.sendall(data)


def trickle(connection: socket.socket, data: bytes) -> bytes:
    """Send byte after byte until something comes back, and return all of that."""
    connection.settimeout(0.05)
    for number in range(PIECES):
        with suppress(TimeoutError):
            connection.recv(1, socket.MSG_PEEK)
            break
        connection.sendall(data[number : number + 1])
    else:
        pytest.fail("it never ended")
    connection.settimeout(20)
    return read_all(connection)


def test_a_connection_on_which_nothing_comes_is_closed(connection: socket.socket) -> None:
    assert connection.recv(1) == b""


@pytest.mark.parametrize("before", [pytest.param(b"", id="first"), pytest.param(GET, id="later")])
def test_headers_that_trickle_are_cut_off(before: bytes, connection: socket.socket) -> None:
    if before:
        connection.sendall(before)
        assert read_response(connection).status_code == 200
    assert trickle(connection, b"GET /livez HTTP/1.1\r\nHost: a\r\nX: " + b"a" * PIECES) == b""


def test_headers_begun_behind_another_request_have_their_time_from_its_answer(connection: socket.socket) -> None:
    connection.sendall(POST + GET[:20])
    assert statuses(read_all(connection)) == [200]


@pytest.mark.parametrize("line", [b"", b"\r\n"])
def test_an_idle_connection_is_closed_and_blank_lines_are_no_request(line: bytes, connection: socket.socket) -> None:
    connection.sendall(GET)
    assert read_response(connection).status_code == 200
    assert trickle(connection, line * PIECES) == b""


def test_a_connection_in_use_stays(connection: socket.socket) -> None:
    """Longer than any of the times."""
    connection.settimeout(0.1)
    for _ in range(15):
        connection.sendall(GET)
        assert read_response(connection).status_code == 200
        with pytest.raises(TimeoutError):
            connection.recv(1)


@pytest.mark.parametrize(("fields", "status"), [(19, 200), (20, 431)])
def test_headers_are_counted(fields: int, status: int, connection: socket.socket) -> None:
    lines = b"".join(b"X-%d: a\r\n" % number for number in range(fields))
    connection.sendall(b"GET /livez HTTP/1.1\r\nHost: a\r\n" + lines + b"\r\n")
    assert read_response(connection).status_code == status


@pytest.mark.parametrize(("size", "status"), [(2000, 200), (2001, 431)])
@pytest.mark.parametrize("pieces", [1, 3])
def test_headers_are_measured(size: int, status: int, pieces: int, connection: socket.socket) -> None:
    """The target, names and values."""
    value = b"a" * (size - len("/livez" + "Host" + "a" + "X"))
    request = b"GET /livez HTTP/1.1\r\nHost: a\r\nX: " + value + b"\r\n\r\n"
    for start in range(0, len(request), -(-len(request) // pieces)):
        connection.sendall(request[start : start + -(-len(request) // pieces)])
    response = read_response(connection)
    assert response.status_code == status
    if status == 431:
        check_problem(response, 431, "headers_too_large")


ENDLESS = [
    pytest.param(b"GET /" + b"a" * (1 << 20), id="target"),
    pytest.param(b"GET /livez HTTP/1.1\r\nX: " + b"a" * (1 << 20), id="value"),
    pytest.param(b"GET /livez HTTP/1.1\r\n" + b"a" * (1 << 20), id="name"),
    pytest.param(b"GET /livez HTTP/1.1\r\n" + b"a: b\r\n" * (1 << 17), id="headers"),
    pytest.param(CHUNKED + b"1;" + b"a" * (1 << 20), id="extension"),
    pytest.param(CHUNKED + b"0\r\nX: " + b"a" * (1 << 20), id="trailer"),
    pytest.param(CHUNKED + b"0\r\n" + b"a: b\r\n" * (1 << 17), id="trailers"),
]


@pytest.mark.parametrize("flood", ENDLESS)
def test_what_never_ends_is_refused(flood: bytes, connection: socket.socket) -> None:
    send_all(connection, flood)
    check_problem(read_response(connection), 431, "headers_too_large")


@pytest.mark.parametrize("rest", [9_000, 300_000, 1 << 26])
@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_a_refusal_reaches_a_client_that_is_still_sending(rest: int, framing: str, strict: Server) -> None:
    lines = [f"Content-Length: {2**40}" if framing == "length" else "Transfer-Encoding: chunked"]
    for _ in range(10 if rest < 1 << 20 else 1):
        with connect(strict) as connection:
            media_type = "application/json" if framing == "length" else "text/plain"
            send_all(connection, head(*lines, content_type=media_type) + b"10000000\r\n")
            send_all(connection, bytes(rest))
            response = read_response(connection)
            assert response.status_code == (413 if framing == "length" else 415)
            assert response.headers["connection"] == "close"
            assert read_all(connection) == b""


def test_what_comes_behind_a_refusal_resets_nothing(connection: socket.socket) -> None:
    """Some systems take an answer back when a reset comes behind it."""
    connection.sendall(head(f"Content-Length: {2**40}"))
    assert read_response(connection).status_code == 413
    for _ in range(10):
        connection.sendall(bytes(900))
    connection.shutdown(socket.SHUT_WR)
    assert connection.recv(1) == b""


def test_a_refused_body_that_is_short_leaves_the_connection_open(connection: socket.socket) -> None:
    connection.sendall(head("Content-Length: 10000", content_type="text/plain") + bytes(5000))
    response = read_response(connection)
    check_problem(response, 415, "unsupported_media_type")
    assert "connection" not in response.headers
    connection.sendall(bytes(5000) + POST)
    assert read_response(connection).json()["loss"] == pytest.approx(1.2130, abs=5e-5)
    connection.settimeout(0.1)
    for _ in range(8):  # the time for the rest of the body is over, and doesn't count any more
        connection.sendall(GET)
        assert read_response(connection).status_code == 200
        with pytest.raises(TimeoutError):
            connection.recv(1)


def test_a_refused_body_that_does_not_come_ends_the_connection(connection: socket.socket) -> None:
    connection.sendall(head("Content-Length: 10000", content_type="text/plain") + bytes(5000))
    assert statuses(read_all(connection)) == [415]


@pytest.mark.parametrize("trickles", [False, True])
def test_a_body_that_is_too_slow_times_out(*, trickles: bool, connection: socket.socket) -> None:
    connection.sendall(head("Content-Length: 10000"))
    received = trickle(connection, b" " * PIECES) if trickles else read_all(connection)
    assert statuses(received) == [408]


def big_request() -> bytes:
    arrays = {"logits": np.zeros((500_000, 4), np.float32), "labels": np.zeros(500_000, np.int8)}
    body = encode_tensors(arrays)
    path = "/v1/cross-entropy?include=gradients,probabilities"
    return head(f"Content-Length: {len(body)}", path=path, content_type="application/x-safetensors") + body


def test_a_client_that_does_not_read_is_hung_up_on(strict: Server) -> None:
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(20)
        connection.connect(("127.0.0.1", strict.port))
        connection.sendall(big_request())
        poll = select.poll()
        poll.register(connection, 0)
        assert poll.poll(20_000), "neither closed nor reset"
        assert len(read_all(connection)) < 16_000_000


def test_a_malformed_request_is_answered_behind_those_before_it(connection: socket.socket) -> None:
    connection.sendall(POST + GET + b"garbage\r\n\r\n" + GET)
    assert statuses(read_all(connection)) == [200, 200, 400]


def test_a_malformed_body_is_answered_behind_the_requests_before_it(connection: socket.socket) -> None:
    connection.sendall(POST + GET + CHUNKED + b"xyz\r\n" + GET)
    assert statuses(read_all(connection)) == [200, 200, 400]


def test_a_malformed_body_has_one_answer(connection: socket.socket) -> None:
    """The first piece is on its way through the application when the second turns out to be none."""
    connection.sendall(CHUNKED + b"2\r\n{}\r\n")
    connection.sendall(b"xyz\r\n" + GET)
    assert statuses(read_all(connection)) == [400]


def test_a_malformed_rest_of_a_refused_body_has_no_answer(connection: socket.socket) -> None:
    connection.sendall(head("Transfer-Encoding: chunked", content_type="text/plain"))
    assert read_response(connection).status_code == 415
    send_all(connection, b"xyz\r\n" + GET)
    assert read_all(connection) == b""


@pytest.mark.parametrize(("count", "expected"), [(6, [200] * 6), (7, [200] * 6 + [400]), (5000, [200] * 6 + [400])])
def test_requests_ahead_of_their_answers_are_counted(
    count: int, expected: list[int], connection: socket.socket
) -> None:
    connection.sendall(GET * count)
    assert statuses(read_all(connection)) == expected


def test_more_connections_are_refused_and_forgotten(strict: Server) -> None:
    with ExitStack() as opened:
        for _ in range(MAX_CONNECTIONS):
            opened.enter_context(connect(strict))
        response = read_response(opened.enter_context(connect(strict)))
        check_problem(response, 503, "overloaded")
        assert int(response.headers["retry-after"]) >= 1
    with httpx.Client(base_url=strict.url, timeout=20) as client:
        while client.get("/livez").status_code == 503:
            client.get("/livez")
