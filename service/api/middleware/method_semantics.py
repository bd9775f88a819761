"""HEAD and OPTIONS as HTTP has them (RFC 9110, sections 9.3.2 and 9.3.7)."""

from collections.abc import Sequence

from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send


def allowed_methods(routes: Sequence[BaseRoute], scope: Scope) -> list[str]:
    """Returns the methods the request's path takes, none where there is nothing at it."""
    found: set[str] = set()
    for route in routes:
        if route.matches(scope)[0] is not Match.NONE:
            found |= set(getattr(route, "methods", None) or {"GET"})
    if "GET" in found:
        found.add("HEAD")
    return sorted({*found, "OPTIONS"}) if found else []


class MethodSemantics:
    """Answers OPTIONS with Allow, and HEAD as GET; the server leaves the body of a HEAD out."""

    def __init__(self, app: ASGIApp, *, routes: Sequence[BaseRoute]) -> None:
        self.app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers OPTIONS, and passes everything else on."""
        method = scope.get("method")
        allowed = allowed_methods(self._routes, scope) if method == "OPTIONS" else []
        if allowed or (method == "OPTIONS" and scope["path"] == "*"):
            allow = ", ".join(allowed or ["GET", "HEAD", "OPTIONS", "POST"])
            await send({"type": "http.response.start", "status": 204, "headers": [(b"allow", allow.encode())]})
            await send({"type": "http.response.body", "body": b""})
        elif method == "HEAD":
            # A copy: the server looks at its own scope to know that the body must be left out.
            as_get = {**scope, "method": "GET"}
            try:
                await self.app(as_get, receive, send)
            finally:
                scope["route"] = as_get.get("route")
        else:
            await self.app(scope, receive, send)
