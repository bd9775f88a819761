"""The service in this process: httpx's ASGI transport, on an event loop in a thread of its own."""

import asyncio
import concurrent.futures
import importlib
import importlib.util
import logging
import threading
from collections.abc import Coroutine, Mapping
from typing import Any

import httpx


class LocalTransport(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """The application from its startup to its shutdown, for either kind of client.

    Raises:
        ImportError: The service is not here.
    """

    def __init__(self, settings: Mapping[str, object]) -> None:
        found = [name for name in ("losseval_service", "service") if importlib.util.find_spec(name)]
        if not found:
            raise ImportError("the service is not in this Python: pip install losseval-service")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="losseval", daemon=True)
        self._thread.start()
        self._submit(self._start(found[0], settings)).result()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Answers a request; the application itself keeps to X-Request-Timeout."""
        request.read()
        response: httpx.Response = self._submit(self._answer(request)).result()
        return response

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answers a request; the application itself keeps to X-Request-Timeout."""
        await request.aread()
        response: httpx.Response = await asyncio.wrap_future(self._submit(self._answer(request)))
        return response

    def close(self) -> None:
        """Shuts the application down."""
        self._submit(self._turn("shutdown")).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def aclose(self) -> None:
        """Shuts the application down."""
        await asyncio.to_thread(self.close)

    def _submit(self, coroutine: Coroutine[Any, Any, Any]) -> "concurrent.futures.Future[Any]":
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def _start(self, package: str, settings: Mapping[str, object]) -> None:
        structlog = importlib.import_module("structlog")
        if not structlog.is_configured():  # or each request would be a line on standard output
            structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
        service = importlib.import_module(f"{package}.app")
        app = service.create_app(service.Settings(**settings))
        self._transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self._to_app: asyncio.Queue[Any] = asyncio.Queue()
        self._from_app: asyncio.Queue[Any] = asyncio.Queue()
        # httpx's transport leaves the lifespan out, and with it the warm-up.
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        self._lifespan = asyncio.ensure_future(app(scope, self._to_app.get, self._from_app.put))
        await self._turn("startup")

    async def _turn(self, name: str) -> None:
        await self._to_app.put({"type": f"lifespan.{name}"})
        answer = await self._from_app.get()
        if answer["type"] != f"lifespan.{name}.complete":
            raise RuntimeError(f"the {name} of the service failed: {answer.get('message')}")

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        response = await self._transport.handle_async_request(request)
        return httpx.Response(response.status_code, headers=response.headers, content=await response.aread())
