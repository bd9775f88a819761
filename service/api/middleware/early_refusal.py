"""The short way to a refusal: under overload, goodput is what refusing leaves of the processor."""

import asyncio
import os
import re
from collections import Counter

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from ... import __version__
from ...engine.admission import Admission, Wire
from ...errors import DeadlineExceeded, Overloaded, ServiceError
from ...telemetry.metrics import Metrics
from ...telemetry.record import RequestRecord
from ..health import Health
from ..negotiation import BodyLimits, Head
from ..problems import MEDIA_TYPE, document, status_of
from .authentication import Authentication
from .observation import REQUEST_ID

LOG_INTERVAL_S = 1.0
_HEADERS = (
    (b"content-type", MEDIA_TYPE.encode()),
    (b"x-service-version", __version__.encode()),
    (b"cache-control", b"no-store"),
)
_DOCUMENTS = {
    kind: re.sub("DETAIL|REQUEST_ID|[0-9a-f-]{36}", "%s", document(kind("DETAIL"), "REQUEST_ID").decode())
    for kind in (Overloaded, DeadlineExceeded)
}
"""With room for a detail, an instance and a request id."""
_log = structlog.get_logger("losseval")


class EarlyRefusal:
    """Refuses, before all other layers, what admission refuses where there is little room; passes on everything else.

    The answer is the one the long way gives, mostly written beforehand. It is counted in the metrics like any other, as
    taking no time; in the log, the refusals of a second are one line for each code.
    """

    def __init__(  # noqa: PLR0913 - what the long way asks one after the other
        self,
        app: ASGIApp,
        *,
        path: str,
        authentication: Authentication | None = None,
        admission: Admission,
        limits: BodyLimits,
        metrics: Metrics,
        health: Health,
    ) -> None:
        self.app = app
        self._authentication = authentication
        self._path = path
        self._admission = admission
        self._limits = limits
        self._metrics = metrics
        self._health = health
        self._full = Overloaded(admission.full_detail)
        self._unlogged: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuses the request or passes it on."""
        refused = None
        if not self._admission.is_relaxed and scope.get("path") == self._path and scope["method"] == "POST":
            refused = self._refused(scope)
        if refused is None:
            await self.app(scope, receive, send)
        else:
            await self._refuse(dict(scope["headers"]), *refused, send)

    def _refused(self, scope: Scope) -> tuple[Wire, Overloaded | DeadlineExceeded] | None:
        if not self._health.computes:
            return None
        if self._authentication is not None and self._authentication.holder(scope["headers"]) is None:
            return None
        try:
            head = Head.of(scope["headers"], timeout_s=self._limits.timeout_s)
            size = head.content_length or 0
            self._limits.check(head.wire, size)
        except ServiceError:
            return None  # the long way says so
        if self._admission.is_full_for(head.wire, size):  # the usual reason, without the cost of an exception
            self._metrics.rejected("queue_time")
            return head.wire, self._full
        try:
            self._admission.check_queue(head.wire, size, remaining_s=head.timeout_s)
            self._admission.reserve(head.wire, size).release()
        except (Overloaded, DeadlineExceeded) as error:
            return head.wire, error
        return None

    async def _refuse(
        self, given: dict[bytes, bytes], wire: Wire, error: Overloaded | DeadlineExceeded, send: Send
    ) -> None:
        token = os.urandom(16).hex()
        instance = f"{token[:8]}-{token[8:12]}-4{token[13:16]}-8{token[17:20]}-{token[20:]}"
        named = given.get(b"x-request-id", b"")
        request_id = named.decode() if REQUEST_ID.fullmatch(named) else token
        body = (_DOCUMENTS[type(error)] % (error.detail, instance, request_id)).encode()
        headers = [*_HEADERS, (b"content-length", b"%d" % len(body)), (b"x-request-id", request_id.encode())]
        if isinstance(error, Overloaded):
            headers.append((b"retry-after", b"%d" % self._admission.retry_after_s))
        if self._health.is_draining or b"expect" in given:
            headers.append((b"connection", b"close"))
        status = status_of(error)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        record = RequestRecord("", "POST", 0.0, self._path, status=status, code=error.code, wire=wire)
        record.sent_bytes = len(body)
        self._metrics.request(record)
        if not self._unlogged:
            asyncio.get_running_loop().call_later(LOG_INTERVAL_S, self._write_log)
        self._unlogged[error.code] += 1

    def _write_log(self) -> None:
        for code, count in self._unlogged.items():
            _log.info("requests refused", count=count, code=code)
        self._unlogged.clear()
