"""What arrives when the client does not speak HTTP, or not well."""

import socket
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPResponse

import httpx
import pytest

from tests.calls import EXAMPLE, PATH, check_problem, post
from tests.server import Server
from tests.wire import encode

BODY = encode(EXAMPLE)


def head(*lines: str, method: str = "POST", path: str = PATH, content_type: str = "application/json") -> bytes:
    """Request head with the fields every request has."""
    fixed = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Type: {content_type}"]
    return ("\r\n".join([*fixed, *lines]) + "\r\n\r\n").encode("latin-1")


@pytest.fixture
def connection(server: Server) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as opened:
        yield opened


def read_response(connection: socket.socket) -> httpx.Response:
    """Read one response, whatever the request was."""
    raw = HTTPResponse(connection)
    raw.begin()
    return httpx.Response(raw.status, headers=raw.getheaders(), content=raw.read())


GARBAGE = [
    pytest.param(b"garbage\r\n\r\n", id="one-word"),
    pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), id="tls-client-hello"),
    pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="http-2"),
    pytest.param(b"GET /livez HTTP/9.9\r\nHost: a\r\n\r\n", id="version-of-the-future"),
    pytest.param(b"GET /li vez HTTP/1.1\r\nHost: a\r\n\r\n", id="blank-in-the-path"),
    pytest.param(b"GET /livez HTTP/1.1\r\nno colon\r\n\r\n", id="header-without-colon"),
    pytest.param(b"GET /livez HTTP/1.1\r\nHost: a\r\nX : b\r\n\r\n", id="blank-before-the-colon"),
    pytest.param(b"GET /livez HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n", id="nul-in-a-header"),
    pytest.param(head("Content-Length: ten") + BODY, id="content-length-no-number"),
    pytest.param(head("Content-Length: -1") + BODY, id="content-length-negative"),
    pytest.param(head("Content-Length: +5") + BODY, id="content-length-signed"),
    pytest.param(head("Content-Length: 5", "Content-Length: 6") + BODY, id="two-content-lengths"),
    pytest.param(head("Content-Length: 99999999999999999999999") + BODY, id="content-length-beyond-64-bits"),
    pytest.param(head("Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n", id="length-and-chunks"),
    pytest.param(head("Transfer-Encoding: chunked") + b"xyz\r\n{}\r\n0\r\n\r\n", id="chunk-size-no-number"),
    pytest.param(head("Transfer-Encoding: chunked") + b"1\r\n{}\r\n0\r\n\r\n", id="chunk-longer-than-said"),
]
SMUGGLED = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKS = b"0\r\n\r\n" + SMUGGLED


def ending(*lines: bytes) -> bytes:
    """Request head with other ends of lines than it should have."""
    return b"POST /livez HTTP/1.1\r\nHost: a" + b"".join(lines)


VECTORS = [
    pytest.param(head("Content-Length: 5", "Transfer-Encoding: chunked") + CHUNKS, id="length-and-chunks"),
    pytest.param(head("Transfer-Encoding: chunked", "Content-Length: 5") + CHUNKS, id="chunks-and-length"),
    pytest.param(head("Content-Length: 0", "Content-Length: 43") + SMUGGLED, id="two-lengths"),
    pytest.param(head("Content-Length: 0", "Content-Length: 0") + SMUGGLED, id="the-same-length-twice"),
    pytest.param(head("Content-Length: 0, 43") + SMUGGLED, id="list-of-lengths"),
    pytest.param(head("Content-Length: +43") + SMUGGLED, id="signed-length"),
    pytest.param(head("Content-Length: 4 3") + SMUGGLED, id="blank-in-the-length"),
    pytest.param(head("Content-Length: 0x2b") + SMUGGLED, id="hexadecimal-length"),
    pytest.param(head("Content-Length:") + SMUGGLED, id="empty-length"),
    pytest.param(head("Content-Length : 43") + SMUGGLED, id="blank-before-the-colon-of-a-length"),
    pytest.param(head("Transfer-Encoding : chunked") + CHUNKS, id="blank-before-the-colon-of-an-encoding"),
    pytest.param(head("Transfer-Encoding: xchunked") + CHUNKS, id="xchunked"),
    pytest.param(head("Transfer-Encoding: identity") + CHUNKS, id="identity"),
    pytest.param(head("Transfer-Encoding: chunked, identity") + CHUNKS, id="chunked-not-last"),
    pytest.param(head("Transfer-Encoding: chunked", "Transfer-Encoding: x") + CHUNKS, id="two-encodings"),
    pytest.param(head("Transfer-Encoding: \x0bchunked") + CHUNKS, id="control-in-an-encoding"),
    pytest.param(head("X: a", " Transfer-Encoding: chunked") + CHUNKS, id="obsolete-folding"),
    pytest.param(ending(b"\nTransfer-Encoding: chunked\r\n\r\n") + CHUNKS, id="bare-line-feed"),
    pytest.param(ending(b"\rTransfer-Encoding: chunked\r\n\r\n") + CHUNKS, id="bare-carriage-return"),
    pytest.param(ending(b"\n\n") + SMUGGLED, id="head-that-ends-with-line-feeds"),
    pytest.param(head("Transfer-Encoding: chunked") + b"0\n\n" + SMUGGLED, id="chunk-that-ends-with-line-feeds"),
    pytest.param(head("Transfer-Encoding: chunked") + b"0;a\nb\r\n\r\n" + SMUGGLED, id="line-feed-in-an-extension"),
    pytest.param(head("Transfer-Encoding: chunked") + b"-0\r\n\r\n" + SMUGGLED, id="signed-chunk-size"),
    pytest.param(head("Transfer-Encoding: chunked") + b"0x0\r\n\r\n" + SMUGGLED, id="prefix-of-a-chunk-size"),
    pytest.param(head("Transfer-Encoding: chunked") + b"1%016x\r\n" % 0 + SMUGGLED, id="chunk-beyond-64-bits"),
    pytest.param(head("Transfer-Encoding: chunked") + b"0\r\nContent-Length: 5\r\n\r\n" + SMUGGLED, id="length-behind"),
    pytest.param(b"GET /livez HTTP/1.1\r\n\r\n" + SMUGGLED, id="no-host"),
    pytest.param(b"GET /livez HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n" + SMUGGLED, id="two-hosts"),
    pytest.param(b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n" + SMUGGLED, id="tunnel"),
]


@pytest.mark.parametrize("sent", VECTORS)
def test_what_two_parsers_could_read_differently_has_one_answer_and_ends_the_connection(
    sent: bytes, connection: socket.socket
) -> None:
    connection.sendall(sent)
    check_problem(read_response(connection), 400, "malformed_request")
    assert connection.recv(1) == b""


@pytest.mark.parametrize("target", ["/livez", "http://evil/livez", "http://user:key@evil:80/livez"])
@pytest.mark.parametrize("host", ["localhost", "evil/v1/info?", "", "a b", "[::1", "127.0.0.1:99999999"])
def test_the_path_alone_decides_whatever_host_is_named(target: str, host: str, connection: socket.socket) -> None:
    connection.sendall(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert read_response(connection).json() == {"status": "alive"}


@pytest.mark.parametrize("sent", GARBAGE)
def test_what_is_not_http_is_a_problem_document(sent: bytes, connection: socket.socket, client: httpx.Client) -> None:
    connection.sendall(sent)
    response = read_response(connection)
    check_problem(response, 400, "malformed_request")
    assert connection.recv(1) == b"", "the connection is closed after it"
    assert post(client, EXAMPLE).json()["loss"] == pytest.approx(1.2130, abs=5e-5)


def test_headers_without_end_are_too_large(connection: socket.socket, client: httpx.Client) -> None:
    flood = b"".join(b"X-%d: %s\r\n" % (number, b"a" * 1000) for number in range(1024))
    with suppress(ConnectionError):  # refused before the last byte was sent; the answer still lies in our buffer
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: a\r\n" + flood + b"\r\n")
    check_problem(read_response(connection), 431, "headers_too_large")
    assert client.get("/livez").status_code == 200


def test_chunked_body_is_read(connection: socket.socket) -> None:
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (BODY[:7], BODY[7:8], BODY[8:]))
    connection.sendall(head("Transfer-Encoding: chunked") + chunks + b"0\r\n\r\n")
    assert read_response(connection).json()["loss"] == pytest.approx(1.2130, abs=5e-5)


def test_pipelined_requests_are_answered_in_order(connection: socket.socket) -> None:
    first = head(f"Content-Length: {len(BODY)}", "X-Request-Id: first") + BODY
    second = head("X-Request-Id: second", method="GET", path="/v1/info")
    third = head("Content-Length: 1", "X-Request-Id: third") + b"{"
    connection.sendall(first + second + third)
    received = b""
    while received.count(b"HTTP/1.1") < 3:
        received += connection.recv(65536)
    places = [received.lower().index(b"x-request-id: " + name) for name in (b"first", b"second", b"third")]
    assert places == sorted(places)


def test_expected_continue_comes_before_the_body(connection: socket.socket) -> None:
    connection.sendall(head(f"Content-Length: {len(BODY)}", "Expect: 100-continue"))
    assert connection.recv(65536).startswith(b"HTTP/1.1 100 ")
    connection.sendall(BODY)
    assert read_response(connection).json()["loss"] == pytest.approx(1.2130, abs=5e-5)


@pytest.mark.parametrize(
    ("lines", "status", "code"),
    [
        pytest.param(["Content-Encoding: gzip", "Content-Length: 9"], 415, "unsupported_content_encoding", id="415"),
        pytest.param(["Accept: image/png", "Content-Length: 9"], 406, "not_acceptable", id="406"),
        pytest.param([f"Content-Length: {2**30}"], 413, "limit_exceeded", id="413"),
    ],
)
def test_refusal_comes_instead_of_the_continue(
    lines: list[str], status: int, code: str, connection: socket.socket
) -> None:
    connection.sendall(head("Expect: 100-continue", *lines))
    assert connection.recv(12, socket.MSG_PEEK) == b"HTTP/1.1 %d" % status
    check_problem(read_response(connection), status, code)
