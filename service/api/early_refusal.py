"""The short way to a refusal: under overload, goodput is what refusing leaves of the processor."""

import asyncio
import os
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import structlog

from ..engine.admission import Admission
from ..errors import DeadlineExceeded, Overloaded, ServiceError
from ..keys import KeyRing
from ..telemetry.metrics import Metrics
from ..telemetry.record import RequestRecord
from .health import Health
from .middleware.authentication import holder
from .middleware.observation import EVERY_ANSWER, REQUEST_ID
from .negotiation import BodyLimits, Head
from .problems import MEDIA_TYPE, document, status_of

LOG_INTERVAL_S = 1.0
DRAINED = 64
"""Of the long bodies that are refused within that time, the beginnings of so many are read; see `Refusal.drains`."""
Headers = Sequence[tuple[bytes, bytes]]
_HEADERS = (*EVERY_ANSWER, (b"content-type", MEDIA_TYPE.encode()))
_DOCUMENTS = {
    kind: re.sub("DETAIL|REQUEST_ID|[0-9a-f-]{36}", "%s", document(kind("DETAIL"), "REQUEST_ID").decode())
    for kind in (Overloaded, DeadlineExceeded)
}
"""With room for a detail, an instance and a request id."""
_log = structlog.get_logger("losseval")


class Refusal(NamedTuple):
    """A whole answer; where it `closes` the connection, one of the headers says so.

    `drains`: whether to read on behind it. Otherwise a client that sends a long body to its end before it reads may
    find the connection reset, and no answer. To read of hundreds a second would take more than to answer does.
    """

    status: int
    headers: Headers
    body: bytes
    closes: bool
    drains: bool


class EarlyRefusal:
    """Refuses what admission refuses where there is little room, before there is a task for it.

    The answer is the one the long way gives, mostly written beforehand. It is counted in the metrics like any other, as
    taking no time; in the log, the refusals of a second are one line for each code.
    """

    def __init__(  # noqa: PLR0913 - what the long way asks one after the other
        self,
        path: str,
        *,
        keys: KeyRing | None,
        admission: Admission,
        limits: BodyLimits,
        ignored_bytes: int,
        metrics: Metrics,
        health: Health,
    ) -> None:
        """Refuses a POST to `path`; behind a body of up to `ignored_bytes` its connection goes on."""
        self._path = path.encode()
        self._keys = keys
        self._admission = admission
        self._limits = limits
        self._ignored_bytes = ignored_bytes
        self._metrics = metrics
        self._health = health
        self._full = Overloaded(admission.full_detail)
        self._unlogged: Counter[str] = Counter()

    @property
    def is_idle(self) -> bool:
        """Whether there is so much room that nothing need be considered."""
        return self._admission.is_relaxed

    def consider(self, method: bytes, target: bytes, headers: Headers, *, keeps_alive: bool) -> Refusal | None:
        """Returns the refusal of a request, or None for what the long way has to decide."""
        if method != b"POST" or target.partition(b"?")[0] != self._path:
            return None
        if not self._health.computes or (self._keys is not None and holder(headers, self._keys) is None):
            return None
        try:
            head = Head.of(headers, timeout_s=self._limits.timeout_s)
            size = head.content_length
            if size is None:
                return None
            self._limits.check(head.wire, size)
        except ServiceError:
            return None
        error = self._error(head, size)
        if error is None:
            return None
        named = dict(headers)
        comes = b"expect" not in named
        closes = not keeps_alive or size > self._ignored_bytes or self._health.is_draining or not comes
        drains = not comes or size <= self._ignored_bytes or self._unlogged.total() < DRAINED
        return self._refusal(error, head, named.get(b"x-request-id", b""), closes=closes, drains=drains)

    def _error(self, head: Head, size: int) -> Overloaded | DeadlineExceeded | None:
        if self._admission.is_full_for(head.wire, size):  # the usual reason, without the cost of an exception
            self._metrics.rejected("queue_time")
            return self._full
        try:
            self._admission.check_queue(head.wire, size, remaining_s=head.timeout_s)
            self._admission.reserve(head.wire, size).release()
        except (Overloaded, DeadlineExceeded) as error:
            return error
        return None

    def _refusal(
        self, error: Overloaded | DeadlineExceeded, head: Head, name: bytes, *, closes: bool, drains: bool
    ) -> Refusal:
        token = os.urandom(16).hex()
        instance = f"{token[:8]}-{token[8:12]}-4{token[13:16]}-8{token[17:20]}-{token[20:]}"
        request_id = name.decode() if REQUEST_ID.fullmatch(name) else token
        body = (_DOCUMENTS[type(error)] % (error.detail, instance, request_id)).encode()
        headers = [*_HEADERS, (b"content-length", b"%d" % len(body)), (b"x-request-id", request_id.encode())]
        if isinstance(error, Overloaded):
            headers.append((b"retry-after", b"%d" % self._admission.retry_after_s))
        if closes:
            headers.append((b"connection", b"close"))
        refusal = Refusal(status_of(error), headers, body, closes, drains)
        self._note(refusal, error.code, head.wire)
        return refusal

    def _note(self, refusal: Refusal, code: str, wire: str) -> None:
        record = RequestRecord("", "POST", 0.0, self._path.decode(), status=refusal.status, code=code, wire=wire)
        record.sent_bytes = len(refusal.body)
        self._metrics.request(record)
        if not self._unlogged:
            asyncio.get_running_loop().call_later(LOG_INTERVAL_S, self._write_log)
        self._unlogged[code] += 1

    def _write_log(self) -> None:
        for code, count in self._unlogged.items():
            _log.info("requests refused", count=count, code=code)
        self._unlogged.clear()
