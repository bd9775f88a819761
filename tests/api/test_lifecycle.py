"""Leaving: what the service still does after SIGTERM."""

import contextlib
import json
import signal
import socket
import time

import httpx

from tests import server as processes
from tests.calls import EXAMPLE, evaluate, post
from tests.conftest import StartServer
from tests.server import Server

DRAIN_DELAY_S = 3


def test_terminated_service_is_not_ready_but_answers_until_it_ends(start_server: StartServer) -> None:
    """A second SIGTERM, sent when the block ends, changes nothing: the exit code is still 0."""
    with start_server(device="cpu", drain_delay=DRAIN_DELAY_S) as server, httpx.Client(base_url=server.url) as client:
        before = evaluate(client, EXAMPLE)
        server.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + DRAIN_DELAY_S / 2
        while client.get("/readyz").status_code == httpx.codes.OK:
            assert time.monotonic() < deadline, "readiness did not drop"
        answer = post(client, EXAMPLE)
        assert json.loads(answer.content) == before
        assert answer.headers["connection"] == "close"
        assert client.get("/livez").status_code == 200


HALF = (
    b"POST /v1/cross-entropy HTTP/1.1\r\nhost: localhost\r\n"
    b"content-type: application/json\r\ncontent-length: 99\r\n\r\n{"
)


def has_stopped_listening(server: Server) -> bool:
    with contextlib.suppress(ConnectionRefusedError), server_connection(server):
        return False
    return True


def server_connection(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def test_what_is_not_finished_in_time_is_told_so(start_server: StartServer) -> None:
    with start_server(device="cpu", shutdown_timeout=1) as server, server_connection(server) as connection:
        connection.sendall(HALF)
        server.process.send_signal(signal.SIGTERM)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nconnection: close" in head
    assert b"\r\nretry-after: " in head
    assert json.loads(body)["code"] == "draining"


def test_a_second_interrupt_forces_the_end() -> None:
    server = processes.start(device="cpu")
    with server_connection(server) as connection:
        connection.sendall(HALF)
        server.process.send_signal(signal.SIGINT)
        while not has_stopped_listening(server):
            assert not processes.server_ended_within(server, 0.05), "it does not wait for what was accepted"
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(timeout=10) == 130
