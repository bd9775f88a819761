"""uvicorn's server with the lifecycle of a replica behind a load balancer."""

import asyncio
import signal
import socket
from functools import partial
from types import FrameType

import uvicorn

from .api.health import Health
from .api.protocol import HttpProtocol
from .app import Application
from .settings import Settings


class Server(uvicorn.Server):
    """Drains on SIGTERM: not ready at once, serving for the delay, then finishing what was accepted.

    A second SIGTERM changes nothing. SIGINT skips the delay, and a second one forces the end.
    """

    def __init__(self, config: uvicorn.Config, health: Health, *, drain_delay_s: float) -> None:
        super().__init__(config)
        self._health = health
        self._drain_delay_s = drain_delay_s
        self._is_interrupted = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handles SIGTERM and SIGINT; unlike uvicorn, doesn't raise them again: a wanted end is exit status 0."""
        del frame
        if sig == signal.SIGINT:
            self.force_exit, self._is_interrupted = self._is_interrupted, True
            self.should_exit = True
        elif not self._health.is_draining:
            asyncio.get_running_loop().call_later(self._drain_delay_s, self._stop)
        self._health.is_draining = True

    def _stop(self) -> None:
        self.should_exit = True


def bind(settings: Settings) -> socket.socket:
    """Takes the address, before anything slow happens; it is listened on when the service is ready.

    Raises:
        OSError: It is in use, or not an address of this machine.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((settings.host, settings.port))
    return bound


def build(app: Application, settings: Settings) -> Server:
    """Configures the server: uvloop, httptools, no access log (there is one line a request already)."""
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=partial(HttpProtocol, settings=settings),  # type: ignore[arg-type]  # anything that makes one
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=settings.keep_alive_timeout,
        timeout_graceful_shutdown=settings.shutdown_timeout,
    )
    return Server(config, app.health, drain_delay_s=settings.drain_delay)
