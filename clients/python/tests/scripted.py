"""A TCP server that answers by a script, one step a request, and writes down what it saw."""

import contextlib
import dataclasses
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Self

import numpy as np
import safetensors.numpy

_NUMBERS = {"loss": 0.5, "loss_sum": 1.0, "normalizer": 2.0}
ANSWER: bytes = safetensors.numpy.save(
    {name: np.array(number) for name, number in _NUMBERS.items()}
    | {"count": np.array(2), "ignored": np.array(0), "losses": np.array([0.25, 0.75], np.float32)},
    {"warnings": "[]"},
)


@dataclasses.dataclass
class Exchange:
    """One request and the socket it came by."""

    connection: int
    head: str
    read_body: Callable[[], int]
    sock: socket.socket

    def header(self, name: str) -> str:
        """Value of a header, or an empty string."""
        lines = (line.partition(": ") for line in self.head.split("\r\n")[1:])
        return next((value for key, _, value in lines if key.lower() == name), "")


Step = Callable[[Exchange], bool]
"""Answers; says whether the connection stays open."""


def message(status: int, body: bytes, **headers: str) -> bytes:
    """Response as it goes over the wire."""
    given = {"content_length": str(len(body)), **headers}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in given.items())
    return f"HTTP/1.1 {status} X\r\n{lines}\r\n".encode() + body


def answer(*, status: int = 200, body: bytes = ANSWER, **headers: str) -> Step:
    """Answer properly."""
    given = {"content_type": "application/x-safetensors", **headers}

    def step(exchange: Exchange) -> bool:
        exchange.read_body()
        exchange.sock.sendall(message(status, body, **given))
        return True

    return step


def problem(status: int, code: str, **headers: str) -> Step:
    """Refuse with a problem document."""
    document = json.dumps({"status": status, "code": code, "detail": "No."}).encode()
    return answer(status=status, body=document, content_type="application/problem+json", **headers)


def refuse_early(exchange: Exchange) -> bool:
    """Refuse at the headers and hang up while the body is still coming."""
    document = json.dumps({"status": 413, "code": "limit_exceeded", "detail": "Too large."}).encode()
    exchange.sock.sendall(message(413, document, content_type="application/problem+json", connection="close"))
    exchange.sock.shutdown(socket.SHUT_WR)
    with contextlib.suppress(OSError):
        while exchange.sock.recv(1 << 16):  # so that the answer is not lost to a reset
            pass
    return False


def hang_up(exchange: Exchange) -> bool:
    """Close without a word."""
    exchange.read_body()
    return False


def reset(exchange: Exchange) -> bool:
    """Close the hard way."""
    exchange.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return False


def truncate(exchange: Exchange) -> bool:
    """Promise more than comes."""
    exchange.read_body()
    exchange.sock.sendall(message(200, ANSWER[:40], content_length="999", content_type="application/x-safetensors"))
    return False


def cut(whole: bytes, count: int) -> Step:
    """Send the first bytes of an answer, and close."""

    def step(exchange: Exchange) -> bool:
        exchange.read_body()
        exchange.sock.sendall(whole[:count])
        return False

    return step


def until_closed(chunk: bytes = b"") -> Step:
    """Send nothing, or a little now and then, until the client has had enough."""

    def step(exchange: Exchange) -> bool:
        exchange.read_body()
        if chunk:
            exchange.sock.sendall(message(200, b"", content_length="999999", content_type="application/x-safetensors"))
        exchange.sock.settimeout(0.02)
        for _ in range(1000):
            with contextlib.suppress(TimeoutError):
                if not exchange.sock.recv(1):
                    return False
            if chunk:
                exchange.sock.sendall(chunk)
        return False

    return step


class Server:
    """Steps are taken in the order of the requests; after the last every request is answered."""

    def __init__(self, *steps: Step) -> None:
        self.exchanges: list[Exchange] = []
        self.connections = 0
        self._steps = iter(steps)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self.connections += 1
                self._sockets.append(sock)
                thread = threading.Thread(target=self._serve, args=(sock, self.connections), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, sock: socket.socket, connection: int) -> None:
        with sock, contextlib.suppress(OSError):
            for exchange in _requests(sock, connection):
                self.exchanges.append(exchange)
                if not next(self._steps, answer())(exchange):
                    return


def _requests(sock: socket.socket, connection: int) -> Iterator[Exchange]:
    received = bytearray()

    def receive() -> int:
        piece = sock.recv(1 << 16)
        received.extend(piece)
        return len(piece)

    def read_body() -> int:
        length = int(exchange.header("content-length") or 0)
        while len(received) < length:
            if not receive():
                raise OSError("the client hung up")
        del received[:length]
        return length

    while True:
        while b"\r\n\r\n" not in received:
            if not receive():
                return
        head, _, rest = bytes(received).partition(b"\r\n\r\n")
        received[:] = rest
        exchange = Exchange(connection, head.decode(), read_body, sock)
        yield exchange
