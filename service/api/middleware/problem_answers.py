"""Where errors become answers: whatever is raised below leaves as a problem document."""

import asyncio
from collections.abc import Mapping, Sequence

import structlog
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from ...engine.admission import Reason, RejectionMetrics
from ...errors import Draining, InsufficientDeviceMemory, InternalError, NotReady, ServiceError
from ...telemetry.record import GONE
from ..problems import from_framework, send_problem
from .method_semantics import allowed_methods
from .observation import record_of

_log = structlog.get_logger("losseval")
_REASONS: Mapping[type[ServiceError], Reason] = {
    Draining: "draining",
    NotReady: "not_ready",
    InsufficientDeviceMemory: "insufficient_device_memory",
}
"""What admission does not count itself."""


class ProblemAnswers:
    """Catches errors; a bug is logged with its traceback and answered with nothing but the request id."""

    def __init__(self, app: ASGIApp, *, routes: Sequence[BaseRoute], metrics: RejectionMetrics | None = None) -> None:
        self.app = app
        self._routes = routes
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, and answers what goes wrong."""
        try:
            await self.app(scope, receive, send)
        except ServiceError as error:
            await self._answer(scope, send, error)
        except HTTPException as error:
            await self._answer(scope, send, from_framework(error, scope["path"]))
        except asyncio.CancelledError:  # the server does it to what takes longer than SHUTDOWN_TIMEOUT
            if scope["type"] != "http" or record_of(scope).status != GONE:
                raise
            await self._answer(scope, send, Draining("The service shuts down; send the request to another replica."))
        except Exception:
            if scope["type"] != "http" or record_of(scope).status != GONE:
                raise  # too late for another answer: the server closes the connection
            _log.exception("unexpected error", request_id=record_of(scope).request_id)
            await self._answer(scope, send, InternalError("The request id finds what happened in the log."))

    async def _answer(self, scope: Scope, send: Send, error: ServiceError) -> None:
        record = record_of(scope)
        record.code = error.code
        reason = _REASONS.get(type(error))
        if reason is not None and self._metrics is not None:
            self._metrics.rejected(reason)
        allow = ", ".join(allowed_methods(self._routes, scope)) if error.code == "method_not_allowed" else ""
        await send_problem(send, error, record.request_id, allow=allow)
