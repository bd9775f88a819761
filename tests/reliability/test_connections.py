"""Connections that are slow, endless or ambiguous: they end, and nobody else notices."""

import contextlib
import http.client
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.api.test_raw_socket import BODY, head
from tests.calls import BINARY, PATH
from tests.reliability.conftest import Figures
from tests.reliability.load import Offered, offer, offering
from tests.reliability.marks import MARK
from tests.reliability.replicas import GOLDEN_BODY, Replica, exchange, patiently, serving, wait_until
from tests.wire import encode, encode_tensors

RATE = 50
MARKED = encode({"logits": [[MARK, 1.0]], "labels": [0]})
LOGITS = np.zeros((4000, 1000), np.float32)
BIG = encode_tensors({"logits": LOGITS, "labels": np.zeros(4000, np.uint8)})
Open = Callable[[socket.socket], None]


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


def closing_times(
    replica: Replica, opened: Mapping[str, list[socket.socket]], *, limit_s: float
) -> tuple[list[float], Counter[str]]:
    """Sends a little every half second, and returns when connections were let go, and how many of a kind were not."""
    started = time.monotonic()
    held = {one.getsockname()[1]: (kind, one) for kind, connections in opened.items() for one in connections}
    times: list[float] = []
    while held and time.monotonic() - started < limit_s:
        time.sleep(0.5)
        for port in set(held) - open_at(replica.port):
            times.append(time.monotonic() - started)
            del held[port]
        for kind, connection in held.values():
            with contextlib.suppress(OSError):
                connection.send(SLOW[kind][1])
    return times, Counter(kind for kind, _ in held.values())


SLOW = {
    "headers": (begin_headers, b"a", 200, 10.5),
    "first-byte": (nothing, b"", 200, 10.5),
    "body": (begin_body, b" ", 100, 30.0),
    "reader": (begin_answer, b"", 50, 30.0),
}


def be_slow(replica: Replica, figures: Figures, *kinds: str, count: int, limit_s: float, seconds: float) -> Offered:
    """Opens slow connections beside a quick client, waits until all are closed, and returns how that client fared."""
    with contextlib.ExitStack() as stack:
        opened = {kind: stack.enter_context(connected(replica.port, count, SLOW[kind][0])) for kind in kinds}
        with offering(replica.port, GOLDEN_BODY, rate=RATE, seconds=seconds, warmup_s=0.2) as generator:
            times, still_open = closing_times(replica, opened, limit_s=limit_s + 0.5)
            beside = generator.outcome()
    last_s = max(times, default=float("nan"))
    figures(closed=len(times), last_after_s=last_s, bar_s=limit_s, beside_p99_ms=beside.p99_s * 1e3)
    assert not still_open, f"still open after {limit_s} s: {dict(still_open)}"
    assert beside.ok == beside.sent
    return beside


@pytest.mark.reliability
@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", SLOW)
def test_slow_connections_are_closed_and_hold_nobody_up(kind: str, plain: Replica, figures: Figures) -> None:
    _, _, count, limit_s = SLOW[kind]

    def scenario() -> None:
        alone = offer(plain.port, GOLDEN_BODY, rate=RATE, seconds=1.5, warmup_s=0.2)
        beside = be_slow(plain, figures, kind, count=count, limit_s=limit_s, seconds=4)
        figures(alone_p99_ms=alone.p99_s * 1e3)
        assert beside.p99_s <= 2 * alone.p99_s + 0.02, "the quick client was held up"

    patiently(scenario)


def test_slow_connections_are_closed_at_shorter_limits(figures: Figures) -> None:
    limits: dict[str, Any] = dict.fromkeys(("header_timeout", "body_grace", "send_timeout"), 1)
    with serving(**limits, max_queue_ms=60_000) as hasty:
        be_slow(hasty, figures, *SLOW, count=5, limit_s=20, seconds=1)


def test_a_service_with_patience_is_found(careless: Replica, figures: Figures) -> None:
    with pytest.raises(AssertionError, match="still open") as found:
        be_slow(careless, figures, *SLOW, count=5, limit_s=1, seconds=0.5)
    assert all(f"{kind!r}: 5" in str(found.value) for kind in SLOW)


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


def flood_often(replica: Replica, figures: Figures, *, times: int = 2) -> None:
    before = replica.resident_bytes()
    replica.forget_peak()
    found = [flood(replica) for _ in range(times)]
    growth = replica.peak_bytes() - before
    statuses = sorted({status for _, status in found})
    figures(most_taken_mib=max(found)[0] / 2**20, statuses=statuses, growth_mib=growth / 2**20)
    assert set(statuses) <= {0, 431}, f"a flood of headers was answered with {statuses}"
    assert growth <= 4 << 20, f"a flood of headers took {growth >> 20} MiB"
    assert max(found)[0] < 8_000_000, "8 MB of headers were read"


def test_a_flood_of_headers_is_refused_before_it_takes_memory(plain: Replica, figures: Figures) -> None:
    flood_often(plain, figures)


def test_a_service_that_reads_endless_headers_is_found(careless: Replica, figures: Figures) -> None:
    with pytest.raises(AssertionError, match="of headers"):
        flood_often(careless, figures, times=1)


def ignore_refusals(build: str, figures: Figures) -> None:
    """Asks again and again where everything is refused, and reads no answer."""
    with serving(build, max_queue_ms=1, is_unharmed=False) as replica, contextlib.ExitStack() as stack:
        for _ in range(10):
            waiting = stack.enter_context(socket.create_connection(("127.0.0.1", replica.port)))
            waiting.sendall(head(f"Content-Length: {len(MARKED)}") + MARKED)
        wait_until(lambda: replica.golden().status == http.client.SERVICE_UNAVAILABLE, seconds=5, what="filling up")
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", replica.port), timeout=5))
        requests = head("Content-Length: 0") * 1000
        replica.forget_peak()
        before, sent = replica.resident_bytes(), 0
        with contextlib.suppress(OSError):
            while sent < 100:
                connection.sendall(requests)
                sent += 1
        livez_s = replica.livez_s()
        growth = replica.peak_bytes() - before
        figures(requests_taken=1000 * sent, growth_mib=growth / 2**20, livez_ms=livez_s * 1e3)
        assert growth <= 4 << 20, f"refusals took {growth >> 20} MiB"
        assert livez_s < 2, f"/livez took {livez_s:.1f} s"


def test_refusals_that_nobody_reads_take_no_memory(figures: Figures) -> None:
    ignore_refusals("hanging_device", figures)


def test_refusals_that_are_kept_for_nobody_are_found(figures: Figures) -> None:
    with pytest.raises(AssertionError, match="refusals took"):
        ignore_refusals("hanging_device,eager_refusals", figures)


def test_a_hundred_pipelined_requests_are_answered_in_order(plain: Replica) -> None:
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
    with socket.create_connection(("127.0.0.1", plain.port), timeout=20) as connection:
        connection.sendall(b"".join(requests))
        received = b""
        while received.lower().count(b"x-request-id: number-") < 100:
            received += connection.recv(1 << 16)
    order = [int(number) for number in re.findall(rb"x-request-id: number-(\d+)", received, re.IGNORECASE)]
    assert order == list(range(100))


# Ambiguous

SECOND = b"GET /second HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


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
    """Returns the statuses of all answers, until the connection is closed or nothing comes for long."""
    received = b""
    with socket.create_connection(("127.0.0.1", replica.port), timeout=5) as connection:
        connection.sendall(sent)
        with contextlib.suppress(TimeoutError, ConnectionError):
            while part := connection.recv(1 << 16):
                received += part
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d\d\d) ", received)]


def smuggle(replica: Replica, figures: Figures) -> None:
    """What two servers could read differently is one refusal; what they can't, as many answers as requests."""
    for name, vector in SMUGGLING.items():
        statuses = answers_to(replica, vector + SECOND)
        assert statuses == [400], f"smuggled by {name}: {statuses}"
    figures(vectors=len(SMUGGLING))
    for name, (vector, count) in PLAIN.items():
        assert len(answers_to(replica, vector + SECOND)) == count, name


def test_an_ambiguous_request_has_one_answer_and_nothing_behind_it_has_any(plain: Replica, figures: Figures) -> None:
    smuggle(plain, figures)


def test_a_sloppy_parser_is_found(careless: Replica, figures: Figures) -> None:
    with pytest.raises(AssertionError, match="smuggled"):
        smuggle(careless, figures)


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


def mislead(replica: Replica) -> None:
    """Asks by strange names for what is there, and for what nearly is."""
    for host in HOSTS:
        reply = exchange(replica.port, GOLDEN_BODY, {"Content-Type": "application/json", "Host": host})
        assert reply.status in {200, 400}, host
        assert b"evil" not in reply.content
        assert "evil" not in str(reply.headers)
    for path in ELSEWHERE:
        reply = exchange(replica.port, GOLDEN_BODY, path=path)
        assert reply.status == http.client.NOT_FOUND, f"{path} is {reply.status}"
        assert "location" not in reply.headers
    sent = request(b"Content-Length: 2", body=b"{}", line=b"POST http://evil.example/livez HTTP/1.1")
    assert answers_to(replica, sent + SECOND)[0] in {400, 404, 405}


def test_no_host_and_no_spelling_of_a_path_leads_past_the_path(plain: Replica) -> None:
    mislead(plain)


@pytest.mark.reliability
def test_a_service_that_redirects_is_found() -> None:
    with serving("helpful_paths", is_unharmed=False) as replica, pytest.raises(AssertionError, match="is 307"):
        mislead(replica)
