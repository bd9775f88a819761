"""uvicorn's HTTP/1.1 protocol, with a bound on headers, its own refusals as problem documents, and offers declined."""

import asyncio
import math
import uuid

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from .. import __version__
from ..errors import HeadersTooLarge, MalformedRequest, ServiceError
from .body import MIN_BYTES_PER_S
from .gathering import GatheringTransport
from .problems import MEDIA_TYPE, document, status_of

MAX_HEADER_BYTES = 64 * 1024
"""Names, values and the URL of one request together; four times what nginx and node take."""
READ_INTERVAL_S = 10.0
_FRAMING = (b"content-length", b"transfer-encoding")


class HttpProtocol(HttpToolsProtocol):
    """Answers what is not HTTP before any application sees it."""

    _header_bytes = 0
    _are_headers_complete = False
    _is_resuming = False
    _is_reader_watched = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn's own is narrower
        """Puts a gathering transport between the protocol and the socket."""
        super().connection_made(GatheringTransport(transport, self.loop))  # type: ignore[arg-type]  # all that is used of one

    def data_received(self, data: bytes) -> None:
        """Parses what came; an offer to upgrade the protocol is ignored, as RFC 9110, section 7.8, allows."""
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._decline_upgrade(data[offer.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")

    def on_message_begin(self) -> None:
        """Starts counting."""
        if not self._is_resuming:
            super().on_message_begin()
            self._header_bytes = 0
            self._are_headers_complete = False

    def on_url(self, url: bytes) -> None:
        """Counts the target."""
        if not self._is_resuming:
            super().on_url(url)
            self._header_bytes += len(url)  # looked at with the first header, of which HTTP/1.1 has one

    def on_header(self, name: bytes, value: bytes) -> None:
        """Counts a header; trailers, which come after the body, are dropped (RFC 9110, section 6.5.1)."""
        if not self._are_headers_complete:
            super().on_header(name, value)
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > MAX_HEADER_BYTES:
            raise OverflowError  # the parser stops, and `send_400_response` follows

    def on_headers_complete(self) -> None:
        """Starts the request."""
        if not self._is_resuming:
            self._are_headers_complete = True
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Keeps a piece of the body as it is, so that taking it is no copy; what comes before it is taken joins it."""
        if not self.cycle.body:
            self.cycle.body = body  # type: ignore[assignment]
            body = b""
        elif type(self.cycle.body) is not bytearray:  # which grows without copying what it has
            self.cycle.body = bytearray(self.cycle.body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Ends the request, unless the parser only stopped at an offer to upgrade."""
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def pause_writing(self) -> None:
        """Begins to watch how fast the client reads."""
        super().pause_writing()
        if not self._is_reader_watched:
            self._watch_reader(-math.inf)

    def _watch_reader(self, left_before: float) -> None:
        """Hangs up on a client that keeps an answer in our memory by not reading it."""
        self._is_reader_watched = self.flow.write_paused and not self.transport.is_closing()
        if not self._is_reader_watched:
            return
        left: int = self.transport.left_bytes  # type: ignore[attr-defined]
        if left - left_before < READ_INTERVAL_S * MIN_BYTES_PER_S:
            self.transport.abort()
        else:
            self.loop.call_later(READ_INTERVAL_S, self._watch_reader, left)

    def send_400_response(self, msg: str) -> None:
        """Refuses what the parser can't go on with, and closes the connection."""
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and cycle.response_started and cycle.more_body:
            self.transport.close()  # the request has its answer; what follows is the rest of its body
        elif self._header_bytes > MAX_HEADER_BYTES:
            self._refuse(HeadersTooLarge(f"The headers have more than {MAX_HEADER_BYTES} bytes."))
        else:
            self._refuse(MalformedRequest(msg))

    def _decline_upgrade(self, rest: bytes) -> None:
        """Goes on with the body of a request at whose headers the parser stopped.

        Java's HTTP client offers h2c with every request. The parser takes the offer as accepted and drops the body, so
        that another one, which has seen the same framing and no offer, has to go on.
        """
        framing = b"".join(b"%s: %s\r\n" % (name, value) for name, value in self.headers if name in _FRAMING)
        self.parser = httptools.HttpRequestParser(self)
        self._is_resuming = True
        self.parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + b"\r\n")
        self._is_resuming = False
        self.data_received(rest)

    def _refuse(self, error: ServiceError) -> None:
        request_id = uuid.uuid4().hex
        body = document(error, request_id)
        headers = {
            "content-type": MEDIA_TYPE,
            "content-length": len(body),
            "connection": "close",
            "cache-control": "no-store",
            "x-request-id": request_id,
            "x-service-version": __version__,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.transport.write(STATUS_LINE[status_of(error)] + lines.encode() + b"\r\n" + body)
        self.transport.close()
