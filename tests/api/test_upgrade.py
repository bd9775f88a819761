"""Offers to upgrade the protocol, which Java's HTTP client makes with every request, are declined."""

import json
import socket
from http.client import HTTPResponse

import pytest

from tests.calls import EXAMPLE
from tests.server import Server

OFFER = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
BODY = json.dumps(EXAMPLE).encode()
CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)


def head(framing: str) -> bytes:
    fields = f"Host: a\r\nContent-Type: application/json\r\n{OFFER}{framing}\r\n\r\n"
    return f"POST /v1/cross-entropy HTTP/1.1\r\n{fields}".encode()


def read_loss(connection: socket.socket) -> float:
    response = HTTPResponse(connection)
    response.begin()
    loss: float = json.loads(response.read())["loss"]
    return loss


@pytest.mark.parametrize(
    ("parts"),
    [
        pytest.param([head(f"Content-Length: {len(BODY)}") + BODY], id="at-once"),
        pytest.param([head(f"Content-Length: {len(BODY)}"), BODY[:20], BODY[20:]], id="in-parts"),
        pytest.param([head("Transfer-Encoding: chunked") + CHUNKED], id="chunked"),
        pytest.param([head("Transfer-Encoding: chunked"), CHUNKED[:9], CHUNKED[9:]], id="chunked-in-parts"),
    ],
)
def test_a_body_after_an_offer_is_read_and_the_connection_goes_on(parts: list[bytes], server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(3):
            for part in parts:
                connection.sendall(part)
            assert read_loss(connection) == pytest.approx(1.2130, abs=5e-5)
        plain = head(f"Content-Length: {len(BODY)}").replace(OFFER.encode(), b"")
        connection.sendall(plain + BODY)
        assert read_loss(connection) == pytest.approx(1.2130, abs=5e-5)


def test_a_reading_request_may_offer_too(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        for _ in range(2):
            connection.sendall(f"GET /livez HTTP/1.1\r\nHost: a\r\n{OFFER}\r\n".encode())
            response = HTTPResponse(connection)
            response.begin()
            assert (response.status, json.loads(response.read())) == (200, {"status": "alive"})
