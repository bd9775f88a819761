"""The service, over a socket and in this process, and either client of it, called the same way."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from losseval import AsyncClient, Client
from tests import server as processes

Call = Callable[..., Any]


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    """The address of a real service."""
    server = processes.start(device="cpu")
    yield server.url
    assert server.stop() == 0


@pytest.fixture(scope="session")
def loop() -> Iterator[asyncio.Runner]:
    """One event loop for all tests: connections of an asynchronous client belong to one."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="session")
def client(url: str) -> Iterator[Client]:
    with Client(url) as open_client:
        yield open_client


@pytest.fixture(scope="session")
def async_client(url: str, loop: asyncio.Runner) -> Iterator[AsyncClient]:
    open_client = AsyncClient(url)
    yield open_client
    loop.run(open_client.aclose())


@pytest.fixture(scope="session")
def local_client() -> Iterator[Client]:
    with Client.local(device="cpu") as open_client:
        yield open_client


@pytest.fixture(scope="session")
def local_async_client(loop: asyncio.Runner) -> Iterator[AsyncClient]:
    open_client = AsyncClient.local(device="cpu")
    yield open_client
    loop.run(open_client.aclose())


WAYS = [
    pytest.param(("client", "binary"), id="socket"),
    pytest.param(("client", "json"), id="socket-json"),
    pytest.param(("async_client", "binary"), id="socket-async"),
    pytest.param(("async_client", "json"), id="socket-async-json"),
    pytest.param(("local_client", "binary"), id="local"),
    pytest.param(("local_async_client", "binary"), id="local-async"),
]


@pytest.fixture(params=WAYS)
def call(request: pytest.FixtureRequest, loop: asyncio.Runner) -> Call:
    """``call("cross_entropy", logits, labels, …)`` on a client of each kind."""
    name, wire = request.param
    used: Any = request.getfixturevalue(name).with_options(wire=wire)

    def perform(method: str, *args: Any, **options: Any) -> Any:
        returned = getattr(used, method)(*args, **options)
        if method == "evaluate_many":
            return list(returned) if isinstance(used, Client) else loop.run(_collected(returned))
        return returned if isinstance(used, Client) else loop.run(returned)

    return perform


async def _collected(results: Any) -> list[Any]:
    return [result async for result in results]
