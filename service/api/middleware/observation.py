"""The outermost layer: names every request, and writes down what became of it."""

import time
from typing import Any, Protocol

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ... import __version__
from ...telemetry.metrics import Metrics
from ..record import RequestRecord, request_id_of

_COMMON = [(b"x-service-version", __version__.encode())]
_QUIET_ROUTES = frozenset({"/livez", "/readyz", "/metrics"})


class Draining(Protocol):
    """Whether answers should close their connections."""

    is_draining: bool


class Observation:
    """Adds the headers every answer carries; records metrics and one log line when it is sent."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, health: Draining) -> None:
        self.app = app
        self._metrics = metrics
        self._health = health
        self._log: Any = structlog.get_logger("losseval")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = RequestRecord(request_id_of(scope), time.perf_counter())
        scope.setdefault("state", {})["record"] = record
        is_draining = self._health.is_draining

        async def send_observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                headers = message["headers"] = [*message["headers"], *_COMMON]
                headers.append((b"x-request-id", record.request_id.encode()))
                if not any(name == b"cache-control" for name, _ in headers):
                    headers.append((b"cache-control", b"no-store"))
                if is_draining:
                    headers.append((b"connection", b"close"))
            else:
                record.sent_bytes += len(message.get("body", b""))
            await send(message)

        self._metrics.http_in_flight.inc()
        try:
            await self.app(scope, receive, send_observed)
        finally:
            self._metrics.http_in_flight.dec()
            self._finish(scope, record)

    def _finish(self, scope: Scope, record: RequestRecord) -> None:
        seconds = time.perf_counter() - record.started
        route = record.route if record.route != "other" else getattr(scope.get("route"), "path", "other")
        self._metrics.response(
            method=scope["method"],
            route=route,
            code=record.status,
            seconds=seconds,
            received=record.received_bytes,
            sent=record.sent_bytes,
        )
        log = self._log.debug if route in _QUIET_ROUTES else self._log.info
        log("request", **_line(scope, record, route, seconds))


def _line(scope: Scope, record: RequestRecord, route: str, seconds: float) -> dict[str, object]:
    line: dict[str, object] = {
        "request_id": record.request_id,
        "method": scope["method"][:16],
        "route": route,
        "status": record.status,
        "duration_ms": round(seconds * 1e3, 3),
        "received_bytes": record.received_bytes,
        "sent_bytes": record.sent_bytes,
    }
    if record.code is not None:
        line["code"] = record.code
    if record.wire is not None:
        line |= {"wire": record.wire, "rows": record.rows, "classes": record.classes}
        line |= {f"{name}_ms": round(value * 1e3, 3) for name, value in record.stages.items()}
        line |= {"batch_requests": record.batch_requests, "batch_rows": record.batch_rows}
    return line
