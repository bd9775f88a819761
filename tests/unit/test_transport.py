"""How answers leave: gathered writes, and clients that don't read."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from service.api.body import MIN_BYTES_PER_S
from service.api.gathering import GATHERED_BYTES, GatheringTransport
from service.api.protocol import READ_INTERVAL_S, HttpProtocol


class Socket:
    """Records the writes a transport is given; keeps `unread` bytes of them."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.unread = 0
        self.is_closed = self.is_aborted = False

    def writelines(self, parts: list[bytes]) -> None:
        assert not self.is_closed
        self.writes.append(b"".join(parts))

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_aborted = True

    def is_closing(self) -> bool:
        return self.is_closed or self.is_aborted

    def get_write_buffer_size(self) -> int:
        return self.unread


def gathering(socket: Socket) -> GatheringTransport:
    return GatheringTransport(cast(asyncio.Transport, socket), asyncio.get_running_loop())


async def turn() -> None:
    await asyncio.sleep(0)
    await asyncio.sleep(0)


def test_what_is_written_in_one_turn_leaves_in_one_write_each_connection() -> None:
    async def scenario() -> None:
        one, other = Socket(), Socket()
        first, second = gathering(one), gathering(other)
        for transport in (first, second, first):
            transport.write(b"head ")
        assert one.writes == other.writes == []
        await turn()
        assert (one.writes, other.writes) == ([b"head head "], [b"head "])
        first.write(b"again")
        await turn()
        assert one.writes[1:] == [b"again"]

    asyncio.run(scenario())


def test_large_writes_leave_at_once_and_in_order() -> None:
    async def scenario() -> None:
        socket = Socket()
        transport = gathering(socket)
        transport.write(b"head")
        transport.write(memoryview(bytes(GATHERED_BYTES)))
        assert [len(write) for write in socket.writes] == [4 + GATHERED_BYTES]
        transport.write(b"tail")
        await turn()
        assert socket.writes[1:] == [b"tail"]

    asyncio.run(scenario())


def test_closing_writes_what_is_there_and_a_closed_connection_takes_no_more() -> None:
    async def scenario() -> None:
        socket = Socket()
        transport = gathering(socket)
        transport.write(b"answer")
        transport.close()
        assert (socket.writes, socket.is_closed) == ([b"answer"], True)
        transport.write(b"too late")
        await turn()
        assert socket.writes == [b"answer"]

    asyncio.run(scenario())


ENOUGH = int(READ_INTERVAL_S * MIN_BYTES_PER_S)


@pytest.mark.parametrize(
    ("read", "is_aborted"),
    [
        pytest.param(0, True, id="nothing"),
        pytest.param(ENOUGH - 1, True, id="less"),
        pytest.param(ENOUGH, False, id="enough"),
    ],
)
def test_who_reads_too_slowly_is_hung_up_on(read: int, *, is_aborted: bool) -> None:
    """Measured by what has left: between two looks the buffer may be filled up again."""

    async def scenario() -> None:
        socket = Socket()
        protocol: Any = HttpProtocol.__new__(HttpProtocol)
        protocol.transport = gathering(socket)
        later: list[Any] = []
        protocol.loop = SimpleNamespace(call_later=lambda delay, call, *args: later.append((call, args)))
        protocol.flow = SimpleNamespace(pause_writing=lambda: None, write_paused=True)
        protocol.transport.write(bytes(10 * ENOUGH))
        socket.unread = 10 * ENOUGH
        protocol.pause_writing()
        protocol.pause_writing()
        assert len(later) == 1
        protocol.transport.write(bytes(5 * ENOUGH))
        socket.unread = 15 * ENOUGH - read
        call, args = later.pop()
        call(*args)
        assert (socket.is_aborted, len(later)) == (is_aborted, 0 if is_aborted else 1)
        protocol.flow.write_paused = False
        for call, args in later[:]:
            call(*args)
        assert len(later) == (0 if is_aborted else 1), "nothing is watched that isn't paused"

    asyncio.run(scenario())
