"""A real server for every test that needs one."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import httpx
import pytest
import structlog

from tests import kernel
from tests import server as processes
from tests.server import Server

StartServer = Callable[..., AbstractContextManager[Server]]


@pytest.fixture(autouse=True)
def unconfigured_logs() -> Iterator[None]:
    """Capturing logs leaves structlog configured, which whoever runs the service in a process of their own can tell."""
    yield
    structlog.reset_defaults()


@contextmanager
def run_server(**settings: object) -> Iterator[Server]:
    """Service with settings of its own; it must end cleanly."""
    server = processes.start(**settings)
    try:
        yield server
    finally:
        exit_code = server.stop()
    assert exit_code == 0, f"the service ended with exit code {exit_code}"


@pytest.fixture(scope="session")
def start_server() -> StartServer:
    return run_server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with run_server(device="cpu") as running:
        yield running


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as open_client:
        yield open_client


@pytest.fixture(scope="session")
def kernel_over_http(client: httpx.Client) -> None:
    kernel.connect(client)
