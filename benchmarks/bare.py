"""The floor: a bare ASGI app that reads the same bytes and answers as many as the service does.

`?bytes=N` says how many. Nothing is parsed and nothing computed, so what remains is the cost of
uvicorn, of the sockets and of the operating system.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from functools import lru_cache
from typing import Any

Message = MutableMapping[str, Any]


@lru_cache(maxsize=8)
def answer(query: bytes) -> tuple[Message, Message]:
    """Returns the two messages of the answer that the query string asks for."""
    size = int(query.removeprefix(b"bytes=") or 2)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % size)]
    start = {"type": "http.response.start", "status": 200, "headers": headers}
    return start, {"type": "http.response.body", "body": b"0" * size}


async def app(
    scope: MutableMapping[str, Any],
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
) -> None:
    """Reads the body to its end, then answers; serves HTTP only (run with `--lifespan off`)."""
    while (await receive()).get("more_body"):
        pass
    for message in answer(scope["query_string"]):
        await send(message)
