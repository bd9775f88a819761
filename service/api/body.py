"""Reading a body: bounded in size and in time, and noticing when the caller goes."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.types import Receive

from ..errors import LimitExceeded, RequestTimeout

GRACE_S = 5.0
MIN_BYTES_PER_S = 64 * 1024
WATCH_AFTER_S = 0.01
"""Most answers are there sooner; only for the others is it worth a task to watch the connection."""


class ClientGone(Exception):  # noqa: N818 - not an error of anybody's
    """The caller closed the connection; there is nobody to answer."""


async def read_body(receive: Receive, *, limit: int, limit_name: str, timeout_s: float) -> bytes | bytearray:
    """Reads the whole body.

    Raises:
        LimitExceeded: It has more than `limit` bytes.
        RequestTimeout: It took longer than `timeout_s`, or came slower than 64 KiB/s after 5 seconds.
        ClientGone: The caller went.
    """
    loop = asyncio.get_running_loop()
    started = loop.time()
    body: bytes | bytearray = b""
    try:
        async with asyncio.timeout(min(GRACE_S, timeout_s)) as patience:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                chunk: bytes = message.get("body", b"")
                if len(body) + len(chunk) > limit:
                    raise too_large(limit_name, limit, len(body) + len(chunk))
                if not message.get("more_body", False) and not body:
                    return chunk
                if not body:
                    body = bytearray()
                body += chunk
                if not message.get("more_body", False):
                    return body
                patience.reschedule(started + min(GRACE_S + len(body) / MIN_BYTES_PER_S, timeout_s))
    except TimeoutError:
        detail = f"{len(body)} bytes came in {loop.time() - started:.1f} s; send at least 64 KiB/s after 5 s."
        raise RequestTimeout(detail) from None


def too_large(limit_name: str, limit: int, actual: int) -> LimitExceeded:
    """Builds the refusal of a body beyond a limit."""
    advice = "Split the batch: with reduction=sum, loss_sum and normalizer of the parts add up to the whole."
    return LimitExceeded(limit_name, limit, actual, advice)


@contextmanager
def abandoned_when_gone(receive: Receive) -> Iterator[None]:
    """Interrupts the block when the caller closes the connection.

    Raises:
        ClientGone: In the block's place.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
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
