"""Heavy work on the event loop, one piece at a time, with turns of the loop in between.

What holds the interpreter's lock throughout gains nothing from a thread. But a batch makes many pieces ready at once,
and all of them in one turn of the loop would hold up everything else: connections are accepted and bodies arrive a
piece a turn, so that with a tenth of a second a turn whoever comes last waits for ten seconds.
"""

import asyncio
from collections import deque

TURNS_BETWEEN = 1
"""More of them make `/livez` quicker under overload, and leave less time for answers."""


class Turnstile:
    """Lets tasks pass one at a time."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_free = True

    async def enter(self) -> None:
        """Waits until the caller may do a piece of work: what it does until it waits for something."""
        loop = asyncio.get_running_loop()
        if self._is_free:
            self._is_free = False
            loop.call_soon(self._turn, TURNS_BETWEEN)
        else:
            waiter = loop.create_future()
            self._waiting.append(waiter)
            await waiter

    def _turn(self, turns_left: int) -> None:
        """Counts the turns after a piece, and lets the next one pass."""
        loop = asyncio.get_running_loop()
        if turns_left > 1:
            loop.call_soon(self._turn, turns_left - 1)
            return
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():  # not cancelled
                waiter.set_result(None)
                # The piece is done in the next turn, before this is called.
                loop.call_soon(self._turn, TURNS_BETWEEN + 1)
                return
        self._is_free = True
