"""Reading a body: bounded in size and in time, and noticing when the caller goes."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.types import Receive

from ..errors import RequestTimeout

GRACE_S = 5.0
MIN_BYTES_PER_S = 64 * 1024
WATCH_AFTER_S = 0.01
"""Most answers are there sooner; only for the others is it worth a task to watch the connection."""


class ClientGone(Exception):  # noqa: N818 - not an error of anybody's
    """The caller closed the connection; there is nobody to answer."""


async def read_body(receive: Receive, check_size: Callable[[int], None], *, timeout_s: float) -> bytes | bytearray:
    """Reads the whole body; `check_size` is asked before more of it is kept, and raises when it is too much.

    Raises:
        RequestTimeout: It came slower than 64 KiB/s after 5 seconds, or took longer than `timeout_s`.
        ClientGone: The caller went.
    """
    now = asyncio.get_running_loop().time
    started = now()
    body: bytes | bytearray = b""
    try:
        async with asyncio.timeout(min(GRACE_S, timeout_s)) as patience:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                chunk: bytes = message.get("body", b"")
                check_size(len(body) + len(chunk))
                is_last = not message.get("more_body", False)
                if is_last and not body:
                    return chunk
                body = body or bytearray()
                body += chunk
                if is_last:
                    return body
                patience.reschedule(started + min(GRACE_S + len(body) / MIN_BYTES_PER_S, timeout_s))
    except TimeoutError:
        took = f"{len(body)} bytes came in {now() - started:.1f} s"
        rule = f"send at least 64 KiB/s after 5 s, and everything within {timeout_s:g} s"
        raise RequestTimeout(f"{took}; {rule}.") from None


@contextmanager
def abandoned_when_gone(receive: Receive) -> Iterator[None]:
    """Interrupts the block when the caller closes the connection.

    Raises:
        ClientGone: In the block's place.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    watcher: asyncio.Task[None] | None = None
    is_gone = False

    async def watch() -> None:
        nonlocal is_gone
        while (await receive())["type"] != "http.disconnect":
            pass
        is_gone = True
        if task is not None:
            task.cancel()

    def start() -> None:
        nonlocal watcher
        watcher = loop.create_task(watch(), name="disconnect watcher")

    timer = loop.call_later(WATCH_AFTER_S, start)
    try:
        yield
    except asyncio.CancelledError:
        if is_gone and task is not None and task.uncancel() == 0:
            raise ClientGone from None
        raise
    finally:
        timer.cancel()
        if watcher is not None:
            watcher.cancel()
