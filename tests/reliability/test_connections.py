"""Connections that are slow, endless or ambiguous: they end, and nobody else notices."""

import contextlib
import http.client
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.api.test_raw_socket import BODY, head
from tests.calls import BINARY, PATH
from tests.reliability.conftest import Figures
from tests.reliability.load import offer, offering
from tests.reliability.replicas import GOLDEN_BODY, Replica, exchange, patiently, serving
from tests.wire import encode_tensors

RATE = 50
LOGITS = np.zeros((4000, 1000), np.float32)
BIG = encode_tensors({"logits": LOGITS, "labels": np.zeros(4000, np.uint8)})
Open = Callable[[socket.socket], None]


@pytest.fixture(scope="module")
def plain_replica() -> Iterator[Replica]:
    with serving(max_queue_ms=60_000) as running:  # so that nobody is refused who is to be slow later
        yield running


@pytest.fixture
def replica(plain_replica: Replica) -> Iterator[Replica]:
    yield plain_replica
    plain_replica.check_unharmed()


# Slow


def begin_headers(connection: socket.socket) -> None:
    connection.sendall(b"POST /v1/cross-entropy HTTP/1.1\r\nHost: a\r\nX-Slow: ")


def begin_body(connection: socket.socket) -> None:
    connection.sendall(head("Content-Length: 1000000") + b"{")


def begin_answer(connection: socket.socket) -> None:
    """Ask for 16 MB, of which next to nothing is ever read."""
    path = f"{PATH}?include=gradients"
    connection.settimeout(60)
    connection.sendall(head(f"Content-Length: {len(BIG)}", path=path, content_type=BINARY["content-type"]) + BIG)


def nothing(connection: socket.socket) -> None:
    """Open a connection and leave it at that."""


@contextlib.contextmanager
def connected(port: int, count: int, begin: Open) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        opened = []
        for _ in range(count):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            connection.connect(("127.0.0.1", port))
            begin(connection)
            opened.append(connection)
        yield opened


def open_at(port: int) -> set[int]:
    """Ports of the clients whose connections the service still holds; the kernel may keep what it has let go."""
    found = set()
    for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
        _, here, there, _, _, _, _, _, _, inode, *_ = line.split()
        if int(here.rpartition(":")[2], 16) == port and int(inode):
            found.add(int(there.rpartition(":")[2], 16))
    return found


def closing_times(replica: Replica, connections: list[socket.socket], *, drip: bytes, limit_s: float) -> list[float]:
    """Sends a little every half second, and returns when the service let go of each connection."""
    started = time.monotonic()
    by_port = {connection.getsockname()[1]: connection for connection in connections}
    times: list[float] = []
    while by_port and time.monotonic() - started < limit_s:
        time.sleep(0.5)
        for port in set(by_port) - open_at(replica.port):
            times.append(time.monotonic() - started)
            del by_port[port]
        for connection in by_port.values() if drip else ():
            with contextlib.suppress(OSError):
                connection.send(drip)
    return times


SLOW = {
    "headers": (begin_headers, b"a", 200, 10.5),
    "first-byte": (nothing, b"", 200, 10.5),
    "body": (begin_body, b" ", 100, 30.0),
    "reader": (begin_answer, b"", 50, 30.0),
}


def be_slow(replica: Replica, figures: Figures, *, kind: str, count: int, limit_s: float, slower: float = 10) -> None:
    """Opens slow connections beside a quick client, and waits until all of them are closed."""
    begin, drip, _, _ = SLOW[kind]
    alone = offer(replica.port, GOLDEN_BODY, rate=RATE, seconds=min(limit_s, 3) / 2, warmup_s=0.2)
    with connected(replica.port, count, begin) as connections:
        with offering(replica.port, GOLDEN_BODY, rate=RATE, seconds=min(limit_s, 8) / 2, warmup_s=0.2) as generator:
            times = closing_times(replica, connections, drip=drip, limit_s=limit_s + 0.5)
            beside = generator.outcome()
        figures(
            closed=f"{len(times)} of {count}",
            last_after_s=max(times, default=float("nan")),
            bar_s=limit_s,
            alone_p99_ms=alone.p99_s * 1e3,
            beside_p99_ms=beside.p99_s * 1e3,
        )
    assert len(times) == count, f"{count - len(times)} of {count} connections are still open after {limit_s} s"
    assert beside.ok == beside.sent
    assert beside.p99_s <= slower * alone.p99_s + 0.02, "the quick client was held up"


@pytest.mark.reliability
@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", SLOW)
def test_slow_connections_are_closed_and_hold_nobody_up(kind: str, replica: Replica, figures: Figures) -> None:
    _, _, count, limit_s = SLOW[kind]
    patiently(lambda: be_slow(replica, figures, kind=kind, count=count, limit_s=limit_s, slower=2))


HASTY: dict[str, Any] = {"header_timeout": 1, "body_grace": 1, "send_timeout": 1}
PATIENT: dict[str, Any] = {"header_timeout": 3600, "body_grace": 3600, "send_timeout": 3600}


@pytest.fixture(scope="module")
def hasty() -> Iterator[Replica]:
    with serving(**HASTY) as running:
        yield running


@pytest.mark.parametrize("kind", SLOW)
def test_slow_connections_are_closed_at_shorter_limits(kind: str, hasty: Replica, figures: Figures) -> None:
    be_slow(hasty, figures, kind=kind, count=10, limit_s=4)
    hasty.check_unharmed()


@pytest.mark.parametrize("kind", ["headers", "body", "reader"])
def test_a_service_with_patience_is_found(kind: str, figures: Figures) -> None:
    with (
        serving(is_unharmed=False, **PATIENT) as patient,
        pytest.raises(AssertionError, match="still open"),
    ):
        be_slow(patient, figures, kind=kind, count=5, limit_s=2)


# Endless


def flood(replica: Replica) -> tuple[int, int]:
    """Sends 8 MiB of headers, and returns how much was taken and the status of the answer, 0 for none."""
    line, taken = b"X-Flood: " + b"a" * 8000 + b"\r\n", 0
    with socket.create_connection(("127.0.0.1", replica.port), timeout=2) as connection:
        try:
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: a\r\n")
            for _ in range(1000):
                connection.sendall(line)
                taken += len(line)
        except OSError:
            pass
        try:
            answer = connection.recv(1 << 16)
        except OSError:
            answer = b""
    return taken, int(answer[9:12]) if answer else 0


def flood_often(replica: Replica, figures: Figures, *, times: int = 5) -> None:
    before = replica.resident_bytes()
    replica.forget_peak()
    found = [flood(replica) for _ in range(times)]
    growth = replica.peak_bytes() - before
    statuses = sorted({status for _, status in found})
    figures(most_taken_mib=max(found)[0] / 2**20, statuses=statuses, growth_mib=growth / 2**20)
    assert set(statuses) <= {0, 431}, f"a flood of headers was answered with {statuses}"
    assert growth <= 4 << 20, f"a flood of headers took {growth >> 20} MiB"
    assert max(found)[0] < 8_000_000, "8 MB of headers were read"


def test_a_flood_of_headers_is_refused_before_it_takes_memory(replica: Replica, figures: Figures) -> None:
    flood_often(replica, figures)


def test_a_service_that_reads_endless_headers_is_found(figures: Figures) -> None:
    with (
        serving(is_unharmed=False, max_header_bytes=1 << 30, max_headers=1 << 20) as endless,
        pytest.raises(AssertionError, match="of headers"),
    ):
        flood_often(endless, figures, times=2)


def test_a_hundred_pipelined_requests_are_answered_in_order(replica: Replica) -> None:
    requests = []
    for number in range(100):
        name = f"X-Request-Id: number-{number}"
        match number % 3:
            case 0:
                requests.append(head(f"Content-Length: {len(BODY)}", name) + BODY)
            case 1:
                requests.append(head(name, method="GET", path="/v1/info"))
            case _:
                requests.append(head("Content-Length: 1", name) + b"{")
    with socket.create_connection(("127.0.0.1", replica.port), timeout=20) as connection:
        connection.sendall(b"".join(requests))
        received = b""
        while received.lower().count(b"x-request-id: number-") < 100:
            received += connection.recv(1 << 16)
    order = [int(number) for number in re.findall(rb"x-request-id: number-(\d+)", received, re.IGNORECASE)]
    assert order == list(range(100))


# Ambiguous

SECOND = b"GET /second HTTP/1.1\r\nHost: a\r\n\r\n"


def request(*lines: bytes, body: bytes = b"", line: bytes = b"POST /first HTTP/1.1") -> bytes:
    return b"\r\n".join([line, b"Host: a", *lines, b"", b""]) + body


SMUGGLING = {
    "length-and-chunks": request(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
    "chunks-and-length": request(b"Transfer-Encoding: chunked", b"Content-Length: 5", body=b"0\r\n\r\n"),
    "two-lengths": request(b"Content-Length: 0", b"Content-Length: 5", body=b"hello"),
    "list-of-lengths": request(b"Content-Length: 0, 5", body=b"hello"),
    "signed-length": request(b"Content-Length: +0"),
    "hexadecimal-length": request(b"Content-Length: 0x0"),
    "length-with-a-blank": request(b"Content-Length: 1 0", body=b"0123456789"),
    "blank-before-the-colon": request(b"Transfer-Encoding : chunked", body=b"0\r\n\r\n"),
    "folded-encoding": request(b"Transfer-Encoding:\r\n chunked", b"Content-Length: 5", body=b"0\r\n\r\n"),
    "unknown-encoding": request(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n"),
    "chunked-not-last": request(b"Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n"),
    "encoding-with-a-control": request(b"Transfer-Encoding: chunked\x0b", body=b"0\r\n\r\n"),
    "bare-line-feeds": b"POST /first HTTP/1.1\nHost: a\nContent-Length: 0\n\n",
    "bare-carriage-return": request(b"X: a\rTransfer-Encoding: chunked", body=b"0\r\n\r\n"),
    "nul-in-a-name": request(b"Transfer-\x00Encoding: chunked", body=b"0\r\n\r\n"),
    "chunk-size-with-0x": request(b"Transfer-Encoding: chunked", body=b"0x0\r\n\r\n"),
    "chunk-size-negative": request(b"Transfer-Encoding: chunked", body=b"-1\r\n\r\n"),
    "chunk-size-wraps": request(b"Transfer-Encoding: chunked", body=b"10000000000000000\r\n\r\n"),
    "chunk-size-with-a-blank": request(b"Transfer-Encoding: chunked", body=b"5 \r\nhello\r\n0\r\n\r\n"),
    "chunk-longer-than-said": request(b"Transfer-Encoding: chunked", body=b"5\r\nhelloXX0\r\n\r\n"),
    "length-in-the-trailers": request(b"Transfer-Encoding: chunked", body=b"0\r\nContent-Length: 99\r\n\r\n"),
    "chunk-extension-of-a-line-feed": request(b"Transfer-Encoding: chunked", body=b"5;a\nhello\r\n0\r\n\r\n"),
}
PLAIN = {
    "a-get-with-a-body": (request(b"Content-Length: 5", body=b"hello", line=b"GET /first HTTP/1.1"), 2),
    "equal-lengths": (request(b"Content-Length: 5", b"X: a", body=b"hello"), 2),
    "chunks": (request(b"Transfer-Encoding: chunked", body=b"5\r\nhello\r\n0\r\n\r\n"), 2),
    "a-trailer": (request(b"Transfer-Encoding: chunked", body=b"0\r\nX-Second: GET /\r\n\r\n"), 2),
}


def answers_to(replica: Replica, sent: bytes) -> list[int]:
    """Returns the statuses of all answers, until the connection is closed or nothing comes for a while."""
    received = b""
    with socket.create_connection(("127.0.0.1", replica.port), timeout=0.3) as connection:
        connection.sendall(sent)
        with contextlib.suppress(TimeoutError, ConnectionError):
            while part := connection.recv(1 << 16):
                received += part
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d\d\d) ", received)]


def smuggle(replica: Replica, figures: Figures) -> None:
    """What two servers could read differently is one refusal; what they can't, as many answers as requests."""
    statuses = {name: answers_to(replica, vector + SECOND) for name, vector in SMUGGLING.items()}
    figures(vectors=len(SMUGGLING), statuses=sorted({one for found in statuses.values() for one in found}))
    assert {name: found for name, found in statuses.items() if found != [400]} == {}, "smuggled"
    for name, (vector, count) in PLAIN.items():
        assert len(answers_to(replica, vector + SECOND)) == count, name


def test_an_ambiguous_request_has_one_answer_and_nothing_behind_it_has_any(replica: Replica, figures: Figures) -> None:
    smuggle(replica, figures)


def test_a_sloppy_parser_is_found(figures: Figures) -> None:
    with serving("sloppy_parser", is_unharmed=False) as sloppy, pytest.raises(AssertionError, match="smuggled"):
        smuggle(sloppy, figures)


HOSTS = ["evil.example", "evil.example/v1/livez", "127.0.0.1:1@evil", "a" * 5000, "", "[::1]:99999", "%00"]
ELSEWHERE = [
    "//v1/cross-entropy",
    "/v1/cross-entropy/",
    "/v1//cross-entropy",
    "/v1/./cross-entropy",
    "/v1/../v1/cross-entropy",
    "/v1/cross-entropy;a=b",
    "/v1/cross-entropy%00",
    "/V1/cross-entropy",
    "/docs/../v1/cross-entropy",
    "/livez/../v1/cross-entropy",
]


def test_no_host_and_no_spelling_of_a_path_leads_past_the_path(replica: Replica) -> None:
    for host in HOSTS:
        reply = exchange(replica.port, GOLDEN_BODY, {"Content-Type": "application/json", "Host": host})
        assert reply.status in {200, 400}, host
        assert b"evil" not in reply.content
        assert "evil" not in str(reply.headers)
    for path in ELSEWHERE:
        reply = exchange(replica.port, GOLDEN_BODY, path=path)
        assert reply.status == http.client.NOT_FOUND, path
        assert "location" not in reply.headers
    sent = request(b"Content-Length: 2", body=b"{}", line=b"POST http://evil.example/livez HTTP/1.1")
    assert answers_to(replica, sent + SECOND)[0] in {400, 404, 405}
