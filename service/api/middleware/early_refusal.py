"""The short way to a 503: under overload, goodput is what refusing leaves of the processor."""

import asyncio
import os
from typing import get_args

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from ... import __version__
from ...engine.admission import Admission, Wire
from ...errors import Overloaded, ServiceError
from ...telemetry.metrics import Metrics
from ...telemetry.record import RequestRecord
from ..negotiation import BodyLimits, Head
from ..problems import MEDIA_TYPE, document, status_of
from .observation import REQUEST_ID, Drainable

LOG_INTERVAL_S = 1.0
_log = structlog.get_logger("losseval")


class EarlyRefusal:
    """Refuses, before all other layers, what admission would refuse for queue time; passes on everything else.

    The answer is the one the long way gives, written beforehand. It is counted in the metrics like any other, as taking
    no time; in the log, the refusals of a second are one line.
    """

    def __init__(  # noqa: PLR0913 - what the long way asks one after the other
        self, app: ASGIApp, *, path: str, admission: Admission, limits: BodyLimits, metrics: Metrics, health: Drainable
    ) -> None:
        self.app = app
        self._path = path
        self._admission = admission
        self._limits = limits
        self._metrics = metrics
        self._health = health
        self._unlogged = 0
        error = Overloaded(admission.full_detail)
        self._status = status_of(error)
        before, _, rest = document(error, "REQUEST_ID").decode().partition("urn:uuid:")
        self._before_instance = f"{before}urn:uuid:"
        self._before_id, _, self._after_id = rest[36:].partition("REQUEST_ID")
        self._headers = (
            (b"content-type", MEDIA_TYPE.encode()),
            (b"x-service-version", __version__.encode()),
            (b"cache-control", b"no-store"),
        )
        # One for all: what distinguishes them is in no metric.
        self._records: dict[Wire, RequestRecord] = {
            wire: RequestRecord("", "POST", 0.0, path, status=self._status, code=error.code, wire=wire)
            for wire in get_args(Wire)
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuses the request or passes it on."""
        if self._admission.is_relaxed or not (scope.get("path") == self._path and scope["method"] == "POST"):
            await self.app(scope, receive, send)
            return
        wire = self._refused_wire(scope)
        if wire is None:
            await self.app(scope, receive, send)
        else:
            await self._refuse(dict(scope["headers"]), self._records[wire], send)

    def _refused_wire(self, scope: Scope) -> Wire | None:
        try:
            head = Head.of(scope["headers"], timeout_s=self._limits.timeout_s)
            size = head.content_length or 0
            self._limits.check(head.wire, size)
        except ServiceError:
            return None  # the long way says so
        return head.wire if self._admission.is_full_for(head.wire, size) else None

    async def _refuse(self, given: dict[bytes, bytes], record: RequestRecord, send: Send) -> None:
        token = os.urandom(16).hex()
        instance = f"{token[:8]}-{token[8:12]}-4{token[13:16]}-8{token[17:20]}-{token[20:]}"
        named = given.get(b"x-request-id", b"")
        request_id = named.decode() if REQUEST_ID.fullmatch(named) else token
        body = f"{self._before_instance}{instance}{self._before_id}{request_id}{self._after_id}".encode()
        headers = [
            *self._headers,
            (b"content-length", b"%d" % len(body)),
            (b"retry-after", b"%d" % self._admission.retry_after_s),
            (b"x-request-id", request_id.encode()),
        ]
        if self._health.is_draining or b"expect" in given:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": self._status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        record.sent_bytes = len(body)
        self._metrics.request(record)
        self._metrics.rejected("queue_time")
        if not self._unlogged:
            asyncio.get_running_loop().call_later(LOG_INTERVAL_S, self._write_log)
        self._unlogged += 1

    def _write_log(self) -> None:
        _log.info("requests refused", count=self._unlogged, reason="queue_time")
        self._unlogged = 0
