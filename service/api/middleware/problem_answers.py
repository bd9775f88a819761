"""Where errors become answers: whatever is raised below leaves as a problem document."""

from typing import NoReturn

import structlog
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...errors import InternalError, ServiceError
from ..problems import from_framework, send_problem
from ..record import record_of
from .method_semantics import allowed_methods

_log = structlog.get_logger("losseval")


class ProblemAnswers:
    """Catches errors; a bug is logged with its traceback and answered with nothing but the request id."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        has_started = False

        async def send_noted(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self.app(scope, receive, send_noted)
        except ServiceError as error:
            await self._answer(scope, send, error, has_started=has_started)
        except HTTPException as error:
            await self._answer(scope, send, from_framework(error, scope["path"]), has_started=has_started)
        except Exception:
            _log.exception("unexpected error", request_id=record_of(scope).request_id)
            if has_started:
                raise
            await self._answer(
                scope, send, InternalError("The request id finds what happened in the log."), has_started=False
            )

    async def _answer(self, scope: Scope, send: Send, error: ServiceError, *, has_started: bool) -> None:
        if has_started:
            raise error
        record = record_of(scope)
        record.code = error.code
        allow = ", ".join(allowed_methods(scope)) if error.code == "method_not_allowed" else ""
        await send_problem(send, error, record.request_id, allow=allow)


async def pass_on(request: object, error: Exception) -> NoReturn:
    """Keeps the framework from answering by itself: its errors, too, become problems in `ProblemAnswers`."""
    del request
    raise error
