"""The end of the server, at the one moment that no test from outside can hit."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from typing import cast

import pytest
import uvloop
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from service import server as lifecycle
from service.api.health import Health
from service.app import Application
from service.engine.batch_plan import BatchLimits
from service.engine.batcher import Batcher, DeviceLost
from service.errors import NotReady
from service.server import Server
from service.settings import Settings
from tests.unit.fakes import FakeClock, FakeDevice, an_evaluation, outcome

REQUEST = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"


class Bench:
    """A server in this event loop that greets whoever asks."""

    def __init__(self, **settings: int) -> None:
        self.device = FakeDevice()
        self.batcher = Batcher(self.device, BatchLimits(100, 10), clock=FakeClock())
        configured = Settings.model_validate({"port": 0, **settings})
        app = Application(self.greet, cast(FastAPI, None), Health(self.batcher, is_warm=True))
        [self.listener] = lifecycle.bind(configured)
        self.address = self.listener.getsockname()
        self.server: Server = lifecycle.build(app, configured)

    async def greet(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for step in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{step}.complete"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"hello"})

    async def start(self) -> None:
        self.batcher.start()
        self.server.config.load()
        self.server.lifespan = self.server.config.lifespan_class(self.server.config)
        await self.server.startup(sockets=[self.listener])

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=10)


def run(scenario: Callable[[Bench], Awaitable[None]], **settings: int) -> None:
    async def main() -> None:
        bench = Bench(**settings)
        try:
            await scenario(bench)
        finally:
            bench.listener.close()
            await bench.batcher.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(main(), 20))


@pytest.mark.parametrize("new_connections", [0, 1, 20])
def test_what_was_sent_before_the_listener_closed_is_answered(new_connections: int) -> None:
    """Between the loop's last look at its sockets and the close: on new connections, and on one that had been idle."""

    async def scenario(bench: Bench) -> None:
        await bench.start()
        with bench.connect() as kept, bench.connect() as silent:
            kept.sendall(REQUEST)
            assert (await asyncio.to_thread(kept.recv, 4096)).endswith(b"hello")
            with contextlib.ExitStack() as stack:
                used = [kept, *(stack.enter_context(bench.connect()) for _ in range(new_connections))]
                for connection in used:
                    connection.sendall(REQUEST)
                await bench.server.shutdown(sockets=[bench.listener])
                for connection in used:
                    assert connection.recv(4096).endswith(b"hello")
                    assert connection.recv(4096) == b"", "it is closed thereafter"
                assert silent.recv(4096) == b""
            with pytest.raises(ConnectionRefusedError):
                bench.connect()

    run(scenario)


def test_a_lost_device_ends_the_server_with_a_status_of_its_own() -> None:
    async def scenario(bench: Bench) -> None:
        serving = asyncio.ensure_future(bench.server._serve([bench.listener]))
        bench.batcher.start()
        bench.device.fails = lambda _: DeviceLost("device-side assert triggered")
        bench.device.gate.set()
        caller = bench.batcher.submit(an_evaluation(), deadline=60.0)
        assert isinstance(await outcome(caller), NotReady)
        await serving
        assert bench.server.exit_status == lifecycle.EXIT_FAILED == os.EX_SOFTWARE

    run(scenario)


def signalled(*signals: signal.Signals) -> Server:
    servers: list[Server] = []

    async def scenario(bench: Bench) -> None:
        for one in signals:
            bench.server.handle_exit(one, None)
        servers.append(bench.server)

    run(scenario, drain_delay=300)
    return servers[0]


@pytest.mark.parametrize(
    ("signals", "ends", "is_forced", "status"),
    [
        pytest.param("t", False, False, 0, id="SIGTERM waits for the delay"),
        pytest.param("tt", False, False, 0, id="a second one changes nothing"),
        pytest.param("i", True, False, 0, id="SIGINT does not wait"),
        pytest.param("ti", True, False, 0, id="SIGINT skips the rest of the delay"),
        pytest.param("it", True, False, 0, id="SIGTERM after it changes nothing"),
        pytest.param("ii", True, True, 130, id="two SIGINT force the end"),
        pytest.param("titi", True, True, 130, id="whatever else came"),
    ],
)
def test_signals(signals: str, ends: bool, is_forced: bool, status: int) -> None:
    server = signalled(*(signal.SIGTERM if one == "t" else signal.SIGINT for one in signals))
    assert (server.should_exit, server.force_exit, server.exit_status) == (ends, is_forced, status)
    assert server._health.is_draining
