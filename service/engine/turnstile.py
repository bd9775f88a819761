"""Heavy work on the event loop, one piece at a time, with turns of the loop in between.

What holds the interpreter's lock throughout gains nothing from a thread. But a batch makes many pieces ready at once,
and all of them in one turn of the loop would hold up everything else: connections are accepted and bodies arrive a
piece a turn, so that with a tenth of a second a turn whoever comes last waits for ten seconds.
"""

import asyncio


class Turnstile:
    """Lets tasks pass one at a time, every other turn of the loop.

    With more turns in between, `/livez` would be quicker under overload, and less time left for answers.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def enter(self) -> None:
        """Waits until the caller may do a piece of work: what it does until it waits for something."""
        await self._lock.acquire()
        asyncio.get_running_loop().call_soon(self._lock.release)  # by then the piece is done
