"""The outermost layer: names every request, and writes down what became of it."""

import os
import re
import time
from collections.abc import Callable
from typing import Any, Protocol

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ... import __version__
from ...telemetry.metrics import Metrics
from ...telemetry.record import RequestRecord

EVERY_ANSWER = ((b"x-service-version", __version__.encode()), (b"cache-control", b"no-store"))
_CLOSE = (b"connection", b"close")
REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-([0-9a-f]{2})")  # W3C Trace Context
_IS_SAMPLED = 1
_QUIET_ROUTES = frozenset({"/livez", "/readyz", "/metrics"})


class Drainable(Protocol):
    """Tells whether answers should close their connections."""

    is_draining: bool


class Observation:
    """Adds the headers every answer carries; records metrics, a trace and one log line when it is sent."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        health: Drainable,
        trace: Callable[[Scope, RequestRecord], None] | None = None,
    ) -> None:
        self.app = app
        self._metrics = metrics
        self._health = health
        self._trace = trace
        self._log: Any = structlog.get_logger("losseval")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, with its record in the scope's state."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = RequestRecord("", scope["method"], time.perf_counter())
        _read_headers(scope, record)
        scope.setdefault("state", {})["record"] = record

        async def send_observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message["headers"], *self._headers(record)]
            else:
                record.sent_bytes += len(message.get("body", b""))
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                record.duration_s = time.perf_counter() - record.started

        self._metrics.in_flight += 1
        try:
            await self.app(scope, receive, send_observed)
        finally:
            self._metrics.in_flight -= 1
            self._finish(scope, record)

    def _headers(self, record: RequestRecord) -> list[tuple[bytes, bytes]]:
        headers = [*EVERY_ANSWER, (b"x-request-id", record.request_id.encode())]
        return [*headers, _CLOSE] if self._health.is_draining or record.holds_back_body else headers

    def _finish(self, scope: Scope, record: RequestRecord) -> None:
        record.duration_s = record.duration_s or time.perf_counter() - record.started  # the caller went
        if record.route == "other" and "route" in scope:
            record.route = getattr(scope["route"], "path", "other")
        is_quiet = record.route in _QUIET_ROUTES
        if self._trace is not None and not is_quiet:
            self._trace(scope, record)  # first: the others name the trace
        self._metrics.request(record)
        log = self._log.debug if is_quiet else self._log.info
        log("request", **record.line())


def record_of(scope: Scope) -> RequestRecord:
    """Returns the record of the request being answered."""
    record: RequestRecord = scope["state"]["record"]
    return record


def _read_headers(scope: Scope, record: RequestRecord) -> None:
    """Takes over the caller's X-Request-Id where it is well-formed, the trace it belongs to, and Expect."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and REQUEST_ID.fullmatch(value):
            record.request_id, record.is_named = value.decode(), True
        elif name == b"traceparent" and (parent := _TRACEPARENT.fullmatch(value)):
            record.trace_id, record.is_sampled = parent[1].decode(), bool(int(parent[2], 16) & _IS_SAMPLED)
        elif name == b"expect":
            record.holds_back_body = True
    record.request_id = record.request_id or os.urandom(16).hex()
