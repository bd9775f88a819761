"""Metrics on a port of their own, so that whoever reaches the service needn't see them."""

from starlette.types import ASGIApp, Receive, Scope, Send

from ...errors import NotFound

PATH = "/metrics"


class MetricsListener:
    """Answers nothing but metrics on their port, and no metrics elsewhere."""

    def __init__(self, app: ASGIApp, *, port: int) -> None:
        self.app = app
        self._port = port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on what belongs to the port that the request came in by, which no header can change."""
        if scope["type"] == "http" and (scope["path"] == PATH) != (scope["server"][1] == self._port):
            where = "are" if scope["path"] == PATH else "alone are here; everything else is"
            raise NotFound(f"Metrics {where} on another port (METRICS_PORT).")
        await self.app(scope, receive, send)
