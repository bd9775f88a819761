"""The way past the framework for the one operation that must be fast."""

from starlette.types import ASGIApp, Receive, Scope, Send


class Shortcut:
    """Leads a method and an exact path straight to their endpoint; everything else goes through the framework.

    The framework's own layers (two error handlers, a body limit, an exit stack, the router) cost more than a small
    evaluation, and do nothing for an endpoint that reads its own body and raises only what `ProblemAnswers` knows.
    """

    def __init__(self, app: ASGIApp, *, method: str, path: str, endpoint: ASGIApp) -> None:
        self.app = app
        self._method = method
        self._path = path
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Chooses the way."""
        is_fast = scope.get("path") == self._path and scope.get("method") == self._method
        await (self._endpoint if is_fast else self.app)(scope, receive, send)
