"""HTTP without TLS over the standard library: httpcore copies every piece of a body, which large ones feel."""

import contextlib
import http.client
import io
import socket
import time
from collections import defaultdict
from typing import Any

import httpx

from .exchange import Timeouts

_PIECE_BYTES, _STEP_BYTES = 1 << 16, 1 << 26
"""A body's buffer grows by steps, for its announced length may be a lie."""


class DirectTransport(httpx.HTTPTransport):
    """Sends views as they are and reads an answer into one bytearray. What is not http goes httpx's own way."""

    def __init__(self, limits: httpx.Limits) -> None:
        super().__init__(limits=limits)
        self._keepalive_s = limits.keepalive_expiry or 0.0
        self._idle: defaultdict[bytes, list[tuple[float, http.client.HTTPConnection]]] = defaultdict(list)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Exchanges a request for its whole answer."""
        if request.url.scheme != "http":
            return super().handle_request(request)
        connection = self._take(request.url)
        try:
            response, body = _exchange(connection, request, request.extensions["timeout"])
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            self._close_idle()  # what ended this connection may have ended those
            kind = httpx.ReadTimeout if isinstance(error, TimeoutError) else httpx.ReadError
            raise kind(repr(error), request=request) from error
        if response.will_close:
            connection.close()
        else:
            self._idle[request.url.netloc].append((time.monotonic() + self._keepalive_s, connection))
        stream = httpx.ByteStream(body)  # type: ignore[arg-type] # it passes on what it is given
        return httpx.Response(response.status, headers=response.getheaders(), stream=stream)

    def close(self) -> None:
        """Closes the idle connections."""
        self._close_idle()
        super().close()

    def _take(self, url: httpx.URL) -> http.client.HTTPConnection:
        """Returns the connection used last, unless it has been idle for too long; else a new one."""
        with contextlib.suppress(IndexError):  # there is none, or another thread was faster
            expiry, connection = self._idle[url.netloc].pop()
            if time.monotonic() < expiry:
                return connection
            connection.close()
        return http.client.HTTPConnection(url.host, url.port or 80)  # it looks for a port in ::1

    def _close_idle(self) -> None:
        for idle in [*self._idle.values()]:
            with contextlib.suppress(IndexError):
                while True:
                    idle.pop()[1].close()


class _TimedReader(io.RawIOBase):
    """Poses as a socket to be read: each receiving takes no longer than the call has left, however little comes."""

    def __init__(self, sock: socket.socket, timeouts: Timeouts) -> None:
        # A file, because the connection closes its socket before an answer that ends with it is read.
        self._file, self._sock, self._timeouts = sock.makefile("rb", buffering=0), sock, timeouts

    def makefile(self, _: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:  # noqa: ANN401 - a buffer
        self._timeouts.check()
        self._sock.settimeout(self._timeouts["read"])
        return self._file.readinto(buffer)

    def close(self) -> None:
        self._file.close()
        super().close()


def _exchange(
    connection: http.client.HTTPConnection, request: httpx.Request, timeouts: Timeouts
) -> tuple[http.client.HTTPResponse, bytearray]:
    if connection.sock is None:
        connection.timeout = timeouts["connect"]
        connection.connect()
    sock, parts = connection.sock, request.extensions.get("parts") or ()
    connection.putrequest(request.method, request.url.raw_path.decode(), skip_host=True, skip_accept_encoding=True)
    for name, value in request.headers.raw:
        connection.putheader(name, value)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # who hangs up may have answered before
        sock.settimeout(timeouts["write"])
        connection.endheaders(None if parts else request.content)
        for part in parts:
            sock.settimeout(timeouts["write"])
            sock.sendall(part)
    reader: Any = _TimedReader(sock, timeouts)
    make: Any = lambda _, **options: http.client.HTTPResponse(reader, **options)  # noqa: E731 - typed as a class
    connection.response_class = make
    with connection.getresponse() as response:
        if response.chunked:
            return response, _read_chunked(response)
        if response.length is None:  # also in a head that was cut, which http.client takes for a whole one
            raise http.client.HTTPException(f"an answer of status {response.status} without its length")
        return response, _read_sized(response, response.length)


def _read_chunked(response: http.client.HTTPResponse) -> bytearray:
    body = bytearray()
    while piece := response.read1(_PIECE_BYTES):  # without a number it allocates what a chunk announces
        body += piece
    return body


def _read_sized(response: http.client.HTTPResponse, length: int) -> bytearray:
    body, start = bytearray(min(length + 1, _STEP_BYTES)), 0  # with room for a byte too many
    while start < length:
        if start == len(body):
            body += bytes(min(length + 1 - start, _STEP_BYTES))
        with memoryview(body) as view:
            count = response.fp.readinto1(view[start:])
        if not count:
            raise http.client.IncompleteRead(b"", length - start)
        start += count
    if start > length:
        raise http.client.HTTPException("the answer is longer than its Content-Length")
    del body[length:]
    return body
