"""Heavy work on the event loop, one piece at a time, with the sockets looked after in between.

What holds the interpreter's lock throughout gains nothing from a thread. But a batch makes many ready at once, and all of
them in one turn of the loop would stop everything else: the loop accepts one connection a turn, and a body arrives in
as many turns as it has pieces, so that a tenth of a second a turn is ten seconds for whoever comes last.
"""

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable

QUIET_S = float(os.environ.get("QUIET", 1e-4))
"""A turn shorter than this had next to nothing to do."""
PATIENCE_S = float(os.environ.get("PATIENCE", 1e-2))
"""So long may the sockets keep the next piece waiting: as long as a usual one takes, so that they get half of the time."""


class Turnstile:
    """Lets one at a time pass; the next one when the loop has nothing else to do, or soon after."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_free = True

    async def enter(self) -> None:
        """Waits for its turn; what the caller does then, until it waits for something else, is one piece."""
        loop = asyncio.get_running_loop()
        if self._is_free:
            self._is_free = False
            loop.call_soon(self._look, self._clock())
        else:
            waiter = loop.create_future()
            self._waiting.append(waiter)
            await waiter

    def _look(self, before: float, until: float | None = None) -> None:
        loop, now = asyncio.get_running_loop(), self._clock()
        until = now + PATIENCE_S if until is None else until
        if now - before > QUIET_S and now < until:
            loop.call_soon(self._look, now, until)
            return
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():  # cancelled
                waiter.set_result(None)
                loop.call_soon(self._look, now)  # behind the piece
                return
        self._is_free = True
