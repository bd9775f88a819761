"""How answers leave: gathered writes, and clients that don't read."""

import asyncio
import select
import socket
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
import uvicorn
from uvicorn.server import ServerState

from service.api.gathering import GATHERED_BYTES, GatheringTransport
from service.api.protocol import HttpProtocol
from service.settings import Settings


class Socket:
    """Records the writes a transport is given; keeps `unread` bytes of them."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.unread = 0
        self.is_closed = self.is_aborted = self.is_half_closed = False

    def writelines(self, parts: list[bytes]) -> None:
        assert not self.is_closed
        self.writes.append(b"".join(parts))

    def close(self) -> None:
        self.is_closed = True

    def resume_reading(self) -> None:
        assert not self.is_closed

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.is_half_closed = True

    def get_extra_info(self, name: str) -> SimpleNamespace | None:
        address = lambda: ("127.0.0.1", 1)  # noqa: E731
        fake = SimpleNamespace(setsockopt=lambda *_: None, getsockname=address, getpeername=address)
        return fake if name == "socket" else None

    def set_write_buffer_limits(self, high: int) -> None:
        del high

    def abort(self) -> None:
        self.is_aborted = True

    def is_closing(self) -> bool:
        return self.is_closed or self.is_aborted

    def get_write_buffer_size(self) -> int:
        return self.unread


def gathering(socket: Socket) -> GatheringTransport:
    return GatheringTransport(cast(asyncio.Transport, socket), asyncio.get_running_loop(), linger_s=0.01)


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


def test_a_connection_that_lingers_says_its_last_word_and_waits() -> None:
    async def scenario() -> None:
        socket = Socket()
        transport = gathering(socket)
        transport.lingers = True
        transport.write(b"refusal")
        transport.close()
        transport.close()
        transport.write(b"second answer")
        assert (socket.writes, socket.is_half_closed, socket.is_closed) == ([b"refusal"], True, False)
        assert transport.is_closing()
        while not socket.is_closed:
            await turn()
        assert socket.writes == [b"refusal"]

    asyncio.run(asyncio.wait_for(scenario(), 10))


LIMITS = Settings(send_timeout=2, min_bytes_per_s=1000)
ENOUGH = 2000


@pytest.mark.parametrize(
    ("read", "is_aborted"),
    [
        pytest.param(0, True, id="nothing"),
        pytest.param(ENOUGH - 1, True, id="less"),
        pytest.param(ENOUGH, False, id="enough"),
    ],
)
def test_who_reads_too_slowly_is_hung_up_on(read: int, *, is_aborted: bool) -> None:
    """Measured by what has left since the buffer filled up."""

    async def scenario() -> None:
        socket = Socket()
        protocol: Any = HttpProtocol.__new__(HttpProtocol)
        protocol._settings = LIMITS
        protocol.transport = gathering(socket)
        later: list[Any] = []

        def call_later(delay: float, call: Any, *args: object) -> SimpleNamespace:  # noqa: ANN401
            later.append((delay, call, args))
            return SimpleNamespace(cancel=later.clear)

        protocol.loop = SimpleNamespace(call_later=call_later)
        protocol.flow = SimpleNamespace(pause_writing=lambda: None, resume_writing=lambda: None)
        protocol.transport.write(bytes(10 * ENOUGH))
        await turn()
        socket.unread = 10 * ENOUGH
        protocol.pause_writing()
        socket.unread = 10 * ENOUGH - read
        delay, call, args = later.pop()
        call(*args)
        assert (delay, socket.is_aborted, len(later)) == (2, is_aborted, 0 if is_aborted else 1)
        protocol.resume_writing()
        assert not later, "nothing is watched that isn't paused"

    asyncio.run(scenario())


@pytest.mark.parametrize("error", [None, ConnectionResetError()], ids=["closed", "reset"])
def test_a_connection_that_is_lost_leaves_no_timer(error: Exception | None) -> None:
    async def scenario() -> None:
        config = uvicorn.Config(answer_at_length, ws="none", lifespan="off", log_config=None)
        protocol = HttpProtocol(config, ServerState(), {}, settings=Settings(keep_alive_timeout=75), early_refusal=None)
        transport = Socket()
        protocol.connection_made(cast(asyncio.Transport, transport))
        timers = [protocol.timeout_keep_alive_task]
        protocol.transport.lingers = True
        protocol.transport.close()
        timers.append(protocol.transport._lingering)
        protocol.connection_lost(error)
        assert all(timer is not None and timer.cancelled() for timer in timers)

    asyncio.run(scenario())


async def answer_at_length(_: object, __: object, send: Any) -> None:  # noqa: ANN401 - ASGI's send
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"60000")]})
    await send({"type": "http.response.body", "body": bytes(60_000)})


def test_a_few_bytes_that_nobody_reads_are_not_kept() -> None:
    """The whole answer is written, and waits in our memory, as the system's buffers are small."""
    listener, client = socket.socket(), socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    listener.bind(("127.0.0.1", 0))
    poll = select.poll()
    poll.register(client, 0)

    async def scenario() -> None:
        protocol = partial(HttpProtocol, settings=Settings(send_timeout=0.1), early_refusal=None)
        options: Any = {"http": protocol, "ws": "none", "lifespan": "off", "log_config": None}
        server = uvicorn.Server(uvicorn.Config(answer_at_length, timeout_keep_alive=1, **options))
        serving = asyncio.ensure_future(server.serve(sockets=[listener]))
        while not server.started:
            await turn()
        client.connect(listener.getsockname())
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        was_reset = await asyncio.to_thread(poll.poll, 5000)
        server.should_exit = server.force_exit = True
        await serving
        assert was_reset

    with listener, client:
        asyncio.run(asyncio.wait_for(scenario(), 20))
