"""Who may compute."""

from collections.abc import Iterable, Sequence

from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

from ...errors import AuthenticationRequired
from ...keys import KeyRing
from .observation import record_of

_SCHEME = b"bearer "


class Authentication:
    """Asks every POST for a key: whatever computes is one, and no spelling of a path or a Host leads around a method.

    What isn't there passes, since 404 and 405 come before 401.
    """

    def __init__(self, app: ASGIApp, *, keys: KeyRing, routes: Sequence[BaseRoute]) -> None:
        self.app = app
        self._keys = keys
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on with the name of its key, never the key, in its record."""
        if scope.get("method") == "POST":
            record = record_of(scope)
            record.key = holder(scope["headers"], self._keys)
            if record.key is None:
                for route in self._routes:
                    if route.matches(scope)[0] is Match.FULL:
                        record.route = getattr(route, "path", record.route)
                        record.client = str((scope.get("client") or ("",))[0])[:64]
                        raise AuthenticationRequired(
                            "Send Authorization: Bearer <key>, or X-API-Key: <key>, with a key that this service knows."
                        )
        await self.app(scope, receive, send)


def holder(headers: Iterable[tuple[bytes, bytes]], keys: KeyRing) -> str | None:
    """Returns who holds the key in either header; of several alike the last counts, so two are hashed at most."""
    bearer = key = None
    for name, value in headers:
        if name == b"authorization" and value[: len(_SCHEME)].lower() == _SCHEME:
            bearer = value[len(_SCHEME) :].strip()
        elif name == b"x-api-key":
            key = value
    for candidate in (bearer, key):
        if candidate and (name_of_key := keys.holder_of(candidate)):
            return name_of_key
    return None
