"""Heavy pieces of work and the turns of the event loop."""

import asyncio
import itertools

from service.engine.turnstile import Turnstile


class Turns:
    """Counts the turns of the running loop."""

    def __init__(self) -> None:
        self.count = 0
        self._loop = asyncio.get_running_loop()
        self._next()

    def _next(self) -> None:
        self.count += 1
        self._handle = self._loop.call_soon(self._next)

    def stop(self) -> None:
        self._handle.cancel()


async def turns_of(pieces: int, *, cancelled: tuple[int, ...] = (), at_turn: int = 1) -> list[int]:
    """Returns in which turns of the loop the pieces were done, all ready in the first, less those cancelled."""
    turns, turnstile = Turns(), Turnstile()
    done: list[int] = []

    async def work() -> None:
        await turnstile.enter()
        done.append(turns.count)

    tasks = [asyncio.create_task(work()) for _ in range(pieces)]
    while turns.count < at_turn:  # noqa: ASYNC110 - turns are what is counted
        await asyncio.sleep(0)
    for index in cancelled:
        tasks[index].cancel()
    await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), timeout=5)
    turns.stop()
    return done


def test_pieces_that_are_ready_together_are_done_with_turns_between_them() -> None:
    done = asyncio.run(turns_of(4))
    assert len(done) == 4
    assert all(later - earlier > 1 for earlier, later in itertools.pairwise(done)), done


def test_those_who_do_not_wait_any_more_let_the_next_one_pass() -> None:
    assert len(asyncio.run(turns_of(4, cancelled=(1, 2), at_turn=2))) == 2


def test_one_who_goes_when_it_is_its_turn_lets_the_next_one_pass() -> None:
    for at_turn in range(2, 12):
        done = asyncio.run(turns_of(4, cancelled=(1,), at_turn=at_turn))
        assert len(done) in {3, 4}, at_turn


def test_after_a_pause_a_piece_is_done_at_once() -> None:
    async def run() -> bool:
        turnstile = Turnstile()
        await turnstile.enter()
        for _ in range(4):
            await asyncio.sleep(0)
        entering = turnstile.enter()
        try:
            entering.send(None)
        except StopIteration:
            return True
        return False

    assert asyncio.run(run())
