"""HTTP without TLS over the standard library: httpcore copies every piece of a body, which large ones feel."""

import contextlib
import http.client
import time
from collections import defaultdict
from collections.abc import Mapping

import httpx


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
        return http.client.HTTPConnection(url.host, url.port)

    def _close_idle(self) -> None:
        for idle in [*self._idle.values()]:
            with contextlib.suppress(IndexError):
                while True:
                    idle.pop()[1].close()


def _exchange(
    connection: http.client.HTTPConnection, request: httpx.Request, timeouts: Mapping[str, float]
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
    sock.settimeout(timeouts["read"])
    response = connection.getresponse()
    if response.length is None:
        return response, bytearray(response.read())
    body, start = bytearray(response.length), 0
    while start < len(body):
        sock.settimeout(timeouts["read"])
        # Not the response's own readinto, which goes on until all is there, each time with the whole timeout.
        count = response.fp.readinto1(memoryview(body)[start:])
        if not count:
            raise http.client.IncompleteRead(b"", len(body) - start)
        start += count
    response.close()
    return response, body
