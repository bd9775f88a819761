"""uvicorn's server with the lifecycle of a replica behind a load balancer.

The exit status is 0 after SIGTERM or SIGINT; 1 when the address or the device can't be had, 2 for a wrong setting, 3
when the warm-up fails; 70 when the device was lost or hangs; 130 when a second SIGINT forced the end.
"""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import cast

import uvicorn

from .api.health import Health
from .api.protocol import HttpProtocol
from .app import Application
from .settings import Settings

EXIT_FAILED = os.EX_SOFTWARE
EXIT_FORCED = 128 + signal.SIGINT
SETTLING_S = 0.05
"""For the loop to read what lies in the sockets, before those that look idle are closed."""
ACCEPTS_PER_TURN = 8
"""uvloop accepts one a turn from each listener; where turns are long, most connections would wait in the backlog."""
LOST_TIMEOUT_S = 5
"""To answer those who wait, when nothing will be computed any more."""


class Server(uvicorn.Server):
    """Drains on SIGTERM: not ready at once, serving for the delay, then finishing what was accepted.

    A second SIGTERM changes nothing. SIGINT skips the delay, and a second one forces the end. When the device is lost,
    the server ends by itself.
    """

    def __init__(self, config: uvicorn.Config, health: Health, *, drain_delay_s: float) -> None:
        super().__init__(config)
        self._health = health
        self._drain_delay_s = drain_delay_s
        self._is_interrupted = False

    @property
    def exit_status(self) -> int:
        """What the process should tell whoever started it."""
        if self.force_exit:
            return EXIT_FORCED
        return EXIT_FAILED if self._health.batcher.has_failed else 0

    @property
    def is_stuck(self) -> bool:
        """Whether the device still has a batch, whose thread Python would wait for."""
        return self._health.batcher.is_running

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handles signals while the server runs, and SIGTERM until the process has ended, too: it changes nothing."""
        signal.signal(signal.SIGTERM, self.handle_exit)  # which uvicorn takes for what was there before
        with super().capture_signals():
            yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handles SIGTERM and SIGINT; unlike uvicorn, doesn't raise them again: a wanted end is exit status 0."""
        del frame
        if sig == signal.SIGINT:
            self.force_exit, self._is_interrupted = self._is_interrupted, True
            self.should_exit = True
        elif not self._health.is_draining:
            asyncio.get_running_loop().call_later(self._drain_delay_s, self._stop)
        self._health.is_draining = True

    async def on_tick(self, counter: int) -> bool:
        """Ends the server, too, when the device is lost."""
        if self._health.is_lost:
            self._health.is_draining = self.should_exit = True
            self.config.timeout_graceful_shutdown = LOST_TIMEOUT_S
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens on each socket several times."""
        await super().startup([listener.dup() for listener in sockets or [] for _ in range(ACCEPTS_PER_TURN)])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stops accepting, and finishes whatever had been sent by then: uvicorn drops what it hasn't read yet."""
        # With TLS, nothing can have been sent on a connection that was not accepted.
        listeners = [] if self.config.is_ssl else sockets or []
        for server in self.servers:
            server.close()
        accepted = [connection for listener in listeners for connection in _backlog(listener)]
        for listener in sockets or []:
            listener.close()
        loop = asyncio.get_running_loop()
        for connection in accepted:
            await loop.connect_accepted_socket(self._protocol, connection)
        await asyncio.sleep(SETTLING_S)
        await super().shutdown(sockets)

    def _protocol(self) -> asyncio.Protocol:
        make = cast(Callable[..., asyncio.Protocol], self.config.http_protocol_class)
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    def _stop(self) -> None:
        self.should_exit = True


def _backlog(listener: socket.socket) -> list[socket.socket]:
    """Accepts the connections that the kernel has; it would reset them when the listener is closed."""
    connections = []
    while True:
        try:
            connections.append(listener.accept()[0])
        except OSError:  # there are no more, or no more descriptors
            return connections


def bind(settings: Settings) -> list[socket.socket]:
    """Takes the addresses, before anything slow happens; they are listened on when the service is ready.

    Raises:
        OSError: One is in use, or not an address of this machine; its `filename` says which.
    """
    ports = [settings.port] if settings.metrics_port is None else [settings.port, settings.metrics_port]
    return [_bind(settings.host, port) for port in ports]


def _bind(host: str, port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        error.filename = f"{host}:{port}"
        raise
    return bound


def build(app: Application, settings: Settings) -> Server:
    """Configures the server: uvloop, httptools, no access log (there is one line a request already).

    Raises:
        ValueError: The certificate can't be used.
    """
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=partial(HttpProtocol, settings=settings, early_refusal=app.early_refusal),  # type: ignore[arg-type]  # anything that makes one
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=settings.forwarded_allow_ips is not None,
        forwarded_allow_ips=settings.forwarded_allow_ips,
        ssl_certfile=settings.ssl_certfile,
        ssl_keyfile=settings.ssl_keyfile,
        server_header=False,
        timeout_keep_alive=settings.keep_alive_timeout,
        timeout_graceful_shutdown=settings.shutdown_timeout,
    )
    try:
        config.load()
    except OSError as error:
        raise ValueError(f"--ssl-certfile, --ssl-keyfile: {error}") from error
    return Server(config, app.health, drain_delay_s=settings.drain_delay)
