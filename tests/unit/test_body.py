"""Reading bodies and interrupting tasks, with a loop whose time is the test's."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from service.api.body import ClientGone, Interruption, abandoned_when_gone, read_body
from service.errors import DeadlineExceeded, RequestTimeout

Message = dict[str, object]


def receiving(*messages: Message) -> Callable[[], Awaitable[Message]]:
    """ASGI's receive: the messages, then nothing for ever."""
    left = iter(messages)

    async def receive() -> Message:
        try:
            return next(left)
        except StopIteration:
            return await asyncio.Future()

    return receive


def part(body: bytes, *, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


async def read(*messages: Message, timeout_s: float = 60, caller_timeout_s: float = 60, limit: int = 100) -> bytes:
    def check(size: int) -> None:
        if size > limit:
            raise OverflowError

    with Interruption() as interruption:
        limits = {"timeout_s": timeout_s, "caller_timeout_s": caller_timeout_s}
        return bytes(await read_body(receiving(*messages), interruption, check, **limits))


def test_a_body_is_joined_from_its_parts() -> None:
    assert asyncio.run(read(part(b"a"))) == b"a"
    assert asyncio.run(read(part(b"ab", more=True), part(b"", more=True), part(b"c"))) == b"abc"


def test_the_size_is_checked_before_a_part_is_kept() -> None:
    assert len(asyncio.run(read(part(b"a" * 60, more=True), part(b"b" * 40)))) == 100
    with pytest.raises(OverflowError):
        asyncio.run(read(part(b"a" * 60, more=True), part(b"b" * 41)))


@pytest.mark.parametrize(
    ("timeout_s", "caller_timeout_s", "error"),
    [
        (0.01, 60, RequestTimeout),
        (60, 0.01, DeadlineExceeded),
        (60, 1e-9, DeadlineExceeded),
        (0.01, 0.01, RequestTimeout),
    ],
)
def test_whose_limit_it_was_decides_the_error(
    timeout_s: float, caller_timeout_s: float, error: type[Exception]
) -> None:
    with pytest.raises(error, match="1 bytes came in"):
        asyncio.run(read(part(b"a", more=True), timeout_s=timeout_s, caller_timeout_s=caller_timeout_s))


def test_a_caller_that_goes_ends_the_reading() -> None:
    with pytest.raises(ClientGone):
        asyncio.run(read(part(b"a", more=True), {"type": "http.disconnect"}))


def test_a_caller_that_goes_stops_the_work() -> None:
    async def scenario() -> None:
        receive = receiving({"type": "http.disconnect"})
        with Interruption() as interruption, abandoned_when_gone(receive, interruption):
            await asyncio.Future()

    with pytest.raises(ClientGone):
        asyncio.run(asyncio.wait_for(scenario(), 10))


def test_a_cancellation_of_somebody_else_stays_one() -> None:
    async def scenario() -> None:
        async def work() -> None:
            with Interruption():
                await asyncio.Future()

        task = asyncio.ensure_future(work())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
