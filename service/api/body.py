"""Reading a body: bounded in size and in time, and noticing when the caller goes."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import numpy as np
from starlette.types import Receive

from ..dtypes import Buffer
from ..errors import DeadlineExceeded, MalformedRequest, RequestTimeout
from .negotiation import BodyLimits

WATCH_AFTER_S = 0.01
"""Most answers are there sooner; only for the others is it worth a task to watch the connection."""


class ClientGone(Exception):  # noqa: N818 - not an error of anybody's
    """The caller closed the connection; there is nobody to answer."""


class Interruption:
    """Stops the current task from outside, with an error of one's own in place of the cancellation.

    What `asyncio.timeout` is for time, for any reason, and for a fraction of its cost.
    """

    def __init__(self) -> None:
        self._task = asyncio.current_task()
        self._error: Exception | None = None

    def stop(self, error: Exception) -> None:
        """Raises the error wherever the task waits within the block."""
        self._error = error
        if self._task is not None:
            self._task.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._error is None or self._task is None or kind is not asyncio.CancelledError:
            return
        if self._task.uncancel() == 0:  # nobody else wants the task to end
            raise self._error from None


async def read_body(  # noqa: PLR0913 - what bounds it
    receive: Receive,
    interruption: Interruption,
    check_size: Callable[[int], None],
    limits: BodyLimits,
    *,
    content_length: int | None,
    caller_timeout_s: float,
) -> Buffer:
    """Reads the whole body; `check_size` is asked before more of it is kept, and raises when it is too much.

    What comes in several pieces is put into one buffer of its announced length as it comes; no page of it is touched
    before.

    Raises:
        RequestTimeout: It came slower than the limits allow.
        DeadlineExceeded: It took longer than the caller itself allows.
        MalformedRequest: It is longer than announced.
        ClientGone: The caller went.
    """
    loop = asyncio.get_running_loop()
    started = loop.time()
    buffer: bytearray | memoryview | None = None
    size = 0

    longest_s = min(limits.timeout_s, caller_timeout_s)
    timer: asyncio.TimerHandle

    def look() -> None:
        """Looks when time is up, and not at every piece, of which there can be very many."""
        nonlocal timer
        patience_s = min(limits.grace_s + size / limits.min_bytes_per_s, longest_s)
        if loop.time() < started + patience_s:
            timer = loop.call_at(started + patience_s, look)
            return
        kind = DeadlineExceeded if patience_s == caller_timeout_s < limits.timeout_s else RequestTimeout
        rule = f"send at least {limits.min_bytes_per_s} bytes/s after {limits.grace_s:g} s"
        interruption.stop(kind(f"{size} bytes came in {patience_s:.3g} s; {rule}, and all within {longest_s:g} s."))

    timer = loop.call_later(min(limits.grace_s, longest_s), look)
    try:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            chunk: bytes = message.get("body", b"")
            start, size = size, size + len(chunk)
            check_size(size)
            if content_length is not None and size > content_length:
                raise MalformedRequest("The body is longer than its Content-Length.")
            is_last = not message.get("more_body", False)
            if is_last and not start:
                return chunk
            if buffer is None:
                buffer = bytearray() if content_length is None else np.empty(content_length, np.uint8).data
            buffer[start:size] = chunk
            if is_last:
                return buffer if content_length in {None, size} else buffer[:size]
    finally:
        timer.cancel()


@contextmanager
def abandoned_when_gone(receive: Receive, interruption: Interruption) -> Iterator[None]:
    """Stops with ClientGone when the caller closes the connection meanwhile."""
    loop = asyncio.get_running_loop()
    watcher: asyncio.Task[None] | None = None

    async def watch() -> None:
        if (await receive())["type"] == "http.disconnect":  # nothing else comes after a body
            interruption.stop(ClientGone())

    def start() -> None:
        nonlocal watcher
        watcher = loop.create_task(watch(), name="disconnect watcher")

    timer = loop.call_later(WATCH_AFTER_S, start)
    try:
        yield
    finally:
        timer.cancel()
        if watcher is not None:
            watcher.cancel()
