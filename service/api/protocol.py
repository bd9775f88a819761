"""uvicorn's HTTP/1.1 protocol, with bounds on size and time, its own refusals as problem documents, offers declined."""

import asyncio
import math
import uuid
from typing import Any, Literal

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from ..errors import HeadersTooLarge, MalformedRequest, Overloaded, ServiceError
from ..settings import Settings
from .early_refusal import EarlyRefusal, Headers, Refusal
from .gathering import GatheringTransport
from .middleware.observation import EVERY_ANSWER
from .problems import answer, status_of

_FRAMING = (b"content-length", b"transfer-encoding")


class _NothingMore(Exception):  # noqa: N818 - not an error
    """The answer is out, and the connection ends behind it."""


class HttpProtocol(HttpToolsProtocol):
    """Answers what is not HTTP before any application sees it, and waits for nobody without end.

    A connection has one timer, uvicorn's: for a head, for what is left of a body whose answer is out, or between two
    requests. A body in time is the application's business.
    """

    transport: GatheringTransport  # type: ignore[assignment]  # what uvicorn uses of one
    _phase: Literal["idle", "head", "body"] = "idle"
    _unused_bytes = 0
    """Came since the head began or the last piece of the body; a head, trailers, or extensions of chunks."""
    _ignored_bytes = 0
    _keeps_alive = True
    _is_resuming = False
    _is_refused = False
    """Whether the request being read has its answer already, and its body is dropped."""
    _due_error: ServiceError | None = None
    """Ends the connection, behind the answers to earlier requests."""
    _reader_timer: asyncio.TimerHandle

    def __init__(
        self,
        *args: Any,  # noqa: ANN401 - uvicorn's
        settings: Settings,
        early_refusal: EarlyRefusal | None,
        **kwargs: Any,  # noqa: ANN401 - uvicorn's
    ) -> None:
        super().__init__(*args, **kwargs)
        self._settings = settings
        self._early_refusal = early_refusal

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn's own is narrower
        """Puts a gathering transport between the protocol and the socket."""
        gathering = GatheringTransport(transport, self.loop, linger_s=self._settings.linger_timeout)
        super().connection_made(gathering)  # type: ignore[arg-type]  # all that is used of one
        if self.server is not None and self.server[1] == self._settings.metrics_port:
            self._early_refusal = None  # nothing is computed there
        transport.set_write_buffer_limits(high=1)  # whatever the other side doesn't read is noticed; 0 confuses TLS
        self._close_after(self._settings.header_timeout)
        if len(self.connections) > self._settings.max_connections:
            self._refuse(Overloaded(f"{self._settings.max_connections} connections are open, as many as may be."))

    def data_received(self, data: bytes) -> None:
        """Parses what came; an offer to upgrade the protocol is ignored, as RFC 9110, section 7.8, allows."""
        if self._due_error is not None or self.transport.is_closing():
            self._ignore(data)
            return
        self._unused_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._decline_upgrade(data[offer.args[0] :])
        except httptools.HttpParserError as error:
            reason = error.__context__  # what a callback raised
            if not isinstance(reason, _NothingMore):
                self._fail(reason if isinstance(reason, ServiceError) else MalformedRequest("This is not HTTP/1.1."))
        else:
            if self._phase != "idle":
                self._await_rest()

    def on_message_begin(self) -> None:
        """Starts counting."""
        if self._is_resuming:
            return
        if len(self.pipeline) >= self._settings.max_pipelined:
            raise MalformedRequest(f"More than {self._settings.max_pipelined} requests came ahead of their answers.")
        if self.scope:  # the time of the first request runs from the opening of the connection
            self._unset_keepalive_if_required()
        super().on_message_begin()
        self._phase = "head"
        self._unused_bytes = 0

    def on_url(self, url: bytes) -> None:
        """Takes a piece of the target."""
        if not self._is_resuming:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Takes a header; trailers, which come after the body, are dropped (RFC 9110, section 6.5.1)."""
        if self._phase == "head":
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Starts the request."""
        if self._is_resuming:
            return
        size = len(self.url) + sum([len(name) + len(value) for name, value in self.headers])
        if size > self._settings.max_header_bytes or len(self.headers) > self._settings.max_headers:
            raise self._too_large()
        # RFC 9112, section 3.2. Nothing here depends on the host, but two who disagree about it can be played off.
        if [name for name, _ in self.headers].count(b"host") != 1 and self.parser.get_http_version() == "1.1":
            raise MalformedRequest("A request has one Host header.")
        self._unset_keepalive_if_required()
        refusal = self._refused_early()
        if refusal is None:
            super().on_headers_complete()
        self._phase = "body"
        if refusal is not None:
            self._answer_early(refusal)

    def on_body(self, body: bytes) -> None:
        """Keeps a piece of the body as it is, so that taking it is no copy; what comes before it is taken joins it."""
        self._unused_bytes = 0
        if self._is_refused or self.cycle.response_complete:
            return
        if not self.cycle.body:
            self.cycle.body = body  # type: ignore[assignment]
            body = b""
        elif type(self.cycle.body) is not bytearray:  # which grows without copying what it has
            self.cycle.body = bytearray(self.cycle.body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Ends the request, unless the parser only stopped at an offer to upgrade."""
        if self.parser.should_upgrade():
            return
        self._phase = "idle"
        if self._is_refused:
            self._is_refused = self.transport.lingers = False
            self._close_after(self.timeout_keep_alive)
            return
        if self.transport.lingers:
            self.transport.lingers = False
            if self.cycle.response_complete:
                self._close_after(self.timeout_keep_alive)
            elif not self.cycle.response_started:
                self.cycle.keep_alive = self._keeps_alive
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Goes on with the next request, or waits for it."""
        super().on_response_complete()
        if self.timeout_keep_alive_task is None:  # the next one has begun, or there will be none
            return
        if self._due_error is not None:
            self._refuse(self._due_error)
        elif self._phase != "idle":
            self._close_after(getattr(self._settings, "linger_timeout" if self._phase == "body" else "header_timeout"))

    def pause_writing(self) -> None:
        """Begins to watch how fast the client reads."""
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        """Ends the watch, as everything has left."""
        super().resume_writing()
        self._reader_timer.cancel()

    def _watch_reader(self, left_before: float = -math.inf) -> None:
        """Hangs up on a client that keeps an answer in our memory by not reading it."""
        seconds, left = self._settings.send_timeout, self.transport.left_bytes
        if left - left_before < seconds * self._settings.min_bytes_per_s:
            self.transport.reset()
        else:
            self._reader_timer = self.loop.call_later(seconds, self._watch_reader, left)

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends every watch."""
        self.transport.forget()
        self._unset_keepalive_if_required()
        if self.flow.write_paused:
            self._reader_timer.cancel()
        super().connection_lost(exc)

    def _close_after(self, seconds: float) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _await_rest(self) -> None:
        """Bounds what a request that is not complete may still cost."""
        if self._unused_bytes > self._settings.max_header_bytes:
            self._fail(self._too_large())
        elif self._phase == "head":
            if self.timeout_keep_alive_task is None and self._is_answered():
                self._close_after(self._settings.header_timeout)
        elif self._is_refused:
            if self.timeout_keep_alive_task is None:
                self._close_after(self._settings.linger_timeout)
        elif not self.transport.lingers:
            self.transport.lingers = True
            # An answer that comes before the end of a long body says that the connection will not be used again.
            self._keeps_alive = self.cycle.keep_alive
            self.cycle.keep_alive &= self._announced_bytes() <= self._settings.linger_bytes

    def _announced_bytes(self) -> float:
        return next((int(value) for name, value in self.headers if name == b"content-length"), math.inf)

    def _ignore(self, data: bytes) -> None:
        """Reads on for a while behind a refusal, since closing on unread bytes resets the connection and loses it."""
        self._ignored_bytes += len(data)
        if self._ignored_bytes > self._settings.linger_bytes:
            self.transport.pause_reading()

    def _is_answered(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is None or cycle.response_complete

    def _too_large(self) -> HeadersTooLarge:
        limits = self._settings
        return HeadersTooLarge(f"At most {limits.max_headers} headers and {limits.max_header_bytes} bytes are taken.")

    def _fail(self, error: ServiceError) -> None:
        """Refuses the request being read: at once, or behind the answers to earlier ones; never a second time."""
        is_next = self._is_answered()
        if self._phase == "body":
            is_next = not self.pipeline
            if not is_next:
                self.pipeline.popleft()  # itself
            elif self.cycle.response_started:
                self.transport.close()
                return
            else:  # the application hears that nobody waits for its answer
                self.cycle.disconnected = True
                self.cycle.message_event.set()
        if is_next:
            self._refuse(error)
        else:
            self._due_error = error
            self.flow.pause_reading()

    def _refused_early(self) -> Refusal | None:
        early, parser = self._early_refusal, self.parser
        if early is None or early.is_idle or parser.should_upgrade():
            return None
        # One for each turn of the loop: more, or one whose answer would wait to be read, have the long way's patience.
        if not self._is_answered() or not self.transport.is_flushed:
            return None
        keeps_alive = parser.get_http_version() != "1.0" and parser.should_keep_alive()
        return early.consider(parser.get_method(), self.url, self.headers, keeps_alive=keeps_alive)

    def _answer_early(self, refusal: Refusal) -> None:
        self._is_refused = True
        self._write(refusal.status, refusal.headers, refusal.body)
        self.transport.lingers = True
        if refusal.closes:
            self.transport.close()
            if not refusal.drains:
                self.transport.pause_reading()
            raise _NothingMore

    def _refuse(self, error: ServiceError) -> None:
        request_id = uuid.uuid4().hex
        headers, body = answer(error, request_id)
        headers += [*EVERY_ANSWER, (b"connection", b"close"), (b"x-request-id", request_id.encode())]
        self._write(status_of(error), headers, body)
        self.transport.lingers = True
        self.transport.close()

    def _write(self, status: int, headers: Headers, body: bytes) -> None:
        lines = [b"%b: %b\r\n" % header for header in (*self.server_state.default_headers, *headers)]
        self.transport.write(b"".join([STATUS_LINE[status], *lines, b"\r\n", body]))

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
