"""HEAD and OPTIONS as HTTP has them (RFC 9110, sections 9.3.2 and 9.3.7)."""

from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

_ALWAYS = ("OPTIONS",)


def allowed_methods(scope: Scope) -> list[str]:
    """Returns the methods the request's path takes, none where there is nothing at it."""
    found: set[str] = set()
    for route in scope["app"].routes:
        if route.matches(scope)[0] is not Match.NONE:
            found |= set(getattr(route, "methods", None) or {"GET"})
    if "GET" in found:
        found.add("HEAD")
    return sorted({*found, *_ALWAYS}) if found else []


class MethodSemantics:
    """Answers OPTIONS with Allow, and HEAD as GET; the server leaves the body of a HEAD out."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers OPTIONS, and passes everything else on."""
        if scope["type"] == "http":
            if scope["method"] == "OPTIONS" and (scope["path"] == "*" or allowed_methods(scope)):
                allow = ", ".join(allowed_methods(scope)) or "GET, HEAD, OPTIONS, POST"
                headers = [(b"allow", allow.encode())]
                await send({"type": "http.response.start", "status": 204, "headers": headers})
                await send({"type": "http.response.body", "body": b""})
                return
            if scope["method"] == "HEAD":
                # A copy: the server looks at its own scope to know that the body must be left out.
                as_get = {**scope, "method": "GET"}
                try:
                    await self.app(as_get, receive, send)
                finally:
                    scope["route"] = as_get.get("route")
                return
        await self.app(scope, receive, send)
