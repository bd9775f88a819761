"""Reading bodies and interrupting tasks, with a loop whose time is the test's."""

import asyncio
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.api.body import ClientGone, Interruption, abandoned_when_gone, read_body
from service.api.negotiation import BodyLimits
from service.dtypes import Buffer
from service.errors import DeadlineExceeded, MalformedRequest, RequestTimeout
from tests.unit.fakes import Message, receiving


def part(body: bytes, *, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


async def read(
    *messages: Message,
    content_length: int | None = None,
    timeout_s: float = 60,
    caller_timeout_s: float = 60,
    limit: int = 100,
) -> Buffer:
    def check(size: int) -> None:
        if size > limit:
            raise OverflowError

    with Interruption() as interruption:
        return await read_body(
            receiving(*messages),
            interruption,
            check,
            BodyLimits(1 << 30, 1 << 30, timeout_s),
            content_length=content_length,
            caller_timeout_s=caller_timeout_s,
        )


@pytest.mark.parametrize("content_length", [pytest.param(3, id="announced"), pytest.param(None, id="chunked")])
@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([b"abc"], id="whole"),
        pytest.param([b"ab", b"", b"c"], id="empty-between"),
        pytest.param([b"", b"abc"], id="empty-first"),
        pytest.param([b"a", b"bc", b""], id="empty-last"),
        pytest.param([b"a", b"b", b"c"], id="bytes"),
    ],
)
def test_a_body_is_joined_from_its_parts(parts: list[bytes], content_length: int | None) -> None:
    messages = [part(body, more=True) for body in parts[:-1]] + [part(parts[-1])]
    assert asyncio.run(read(*messages, content_length=content_length)) == b"abc"


def test_a_body_is_never_longer_than_announced_nor_filled_up_to_it() -> None:
    """A server that lets Transfer-Encoding and Content-Length stand together may hand on either length."""
    with pytest.raises(MalformedRequest):
        asyncio.run(read(part(b"ab", more=True), part(b"cd"), content_length=3))
    assert asyncio.run(read(part(b"ab", more=True), part(b"c"), content_length=50)) == b"abc"


@pytest.mark.parametrize("content_length", [0, None])
def test_a_body_may_be_empty(content_length: int | None) -> None:
    assert asyncio.run(read(part(b""), content_length=content_length)) == b""


def test_a_body_that_came_whole_is_handed_on_as_it_is() -> None:
    body = b"abc"
    assert asyncio.run(read(part(body), content_length=3)) is body


@pytest.mark.parametrize("content_length", [pytest.param(4, id="announced"), pytest.param(None, id="chunked")])
def test_a_body_in_pieces_lies_in_one_writable_buffer(content_length: int | None) -> None:
    """So that tensors can be views of it."""
    body = asyncio.run(read(part(b"ab", more=True), part(b"cd"), content_length=content_length))
    array = np.frombuffer(body, np.uint8)
    assert array.flags.writeable
    assert array.tobytes() == b"abcd"


def test_an_announced_buffer_of_any_size_costs_nothing_before_the_bytes_come() -> None:
    """Pages that are not touched are not there: a lie about the length buys no memory."""

    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident_bytes()
    asyncio.run(read(part(b"ab", more=True), part(b""), content_length=2**30))
    assert resident_bytes() - before < 2**26


@pytest.mark.parametrize("content_length", [pytest.param(100, id="announced"), pytest.param(None, id="chunked")])
def test_the_size_is_checked_before_a_part_is_kept(content_length: int | None) -> None:
    first, last, too_long = part(b"a" * 60, more=True), part(b"b" * 40), part(b"b" * 41)
    assert len(asyncio.run(read(first, last, content_length=content_length))) == 100
    with pytest.raises(OverflowError):
        asyncio.run(read(first, too_long, content_length=content_length))


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


class CountingLoop(asyncio.SelectorEventLoop):
    """Counts the timers."""

    timers = 0

    def call_at(self, *args: Any, **kwargs: Any) -> asyncio.TimerHandle:  # noqa: ANN401
        self.timers += 1
        return super().call_at(*args, **kwargs)


def test_pieces_cost_no_timers() -> None:
    loop = CountingLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        pieces = [part(b"a", more=True)] * 99_999
        assert len(runner.run(read(*pieces, part(b"a"), limit=100_000))) == 100_000
    assert loop.timers < 10


def test_a_body_that_keeps_its_rate_may_take_longer_than_the_grace() -> None:
    """Ten bytes are worth a tenth of a second; the eleventh never comes."""
    limits = BodyLimits(100, 100, 60, grace_s=0.01, min_bytes_per_s=100)

    async def scenario() -> None:
        receive = receiving(part(b"0123456789", more=True))
        with Interruption() as interruption:
            await read_body(receive, interruption, lambda _: None, limits, content_length=None, caller_timeout_s=60)

    with pytest.raises(RequestTimeout, match="10 bytes came in 0.11 s"):
        asyncio.run(scenario())


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
