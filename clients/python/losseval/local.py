"""The service in this process: httpx's ASGI transport, on an event loop in a thread of its own."""

import asyncio
import concurrent.futures
import importlib
import importlib.util
import logging
import os
import threading
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx


class LocalTransport(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Hands requests of either client to the application, which starts with the first, in every process anew."""

    def __init__(self, settings: Mapping[str, object]) -> None:
        packages = (name for name in ("losseval_service", "service") if importlib.util.find_spec(name))
        self._package = next(packages, None)
        if self._package is None:
            raise ImportError("the service is not here; pip install losseval-service")
        self._settings = settings
        self._lock = threading.Lock()
        self._applications: dict[int, _Application] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._settings,)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Answers a request; waits no longer than its timeout."""
        answer = self._application().answer(request)
        try:
            return answer.result(request.extensions["timeout"]["read"])
        except concurrent.futures.TimeoutError:
            answer.cancel()
            raise httpx.ReadTimeout("no answer yet", request=request) from None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answers a request; waits no longer than its timeout."""
        application = await asyncio.to_thread(self._application)
        try:
            answer = asyncio.wrap_future(application.answer(request))
            return await asyncio.wait_for(answer, request.extensions["timeout"]["read"])
        except asyncio.TimeoutError:
            raise httpx.ReadTimeout("no answer yet", request=request) from None

    def close(self) -> None:
        """Stops the application."""
        with self._lock:
            for application in [self._applications.pop(os.getpid(), None)]:
                if application: application.close()

    async def aclose(self) -> None:
        """Stops the application."""
        await asyncio.to_thread(self.close)

    def _application(self) -> "_Application":
        with self._lock:
            process = os.getpid()
            if process not in self._applications:
                self._applications[process] = _Application(str(self._package), self._settings)
            return self._applications[process]


class _Application:
    """The application between its startup and its shutdown (ASGI lifespan protocol)."""

    def __init__(self, package: str, settings: Mapping[str, object]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="losseval-local", daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(package, settings), self._loop).result()

    def answer(self, request: httpx.Request) -> "concurrent.futures.Future[httpx.Response]":
        return asyncio.run_coroutine_threadsafe(self._answer(request), self._loop)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._turn("shutdown"), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self, package: str, settings: Mapping[str, object]) -> None:
        structlog = importlib.import_module("structlog")
        if not structlog.is_configured():  # else it would write a line a request to standard output
            structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
        service = importlib.import_module(f"{package}.app")
        app = service.create_app(service.Settings(**settings))
        self._transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self._to_app: asyncio.Queue[Any] = asyncio.Queue()
        self._from_app: asyncio.Queue[Any] = asyncio.Queue()
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        self._lifespan = asyncio.ensure_future(app(scope, self._to_app.get, self._from_app.put))
        await self._turn("startup")

    async def _turn(self, name: str) -> None:
        await self._to_app.put({"type": f"lifespan.{name}"})
        answer = await self._from_app.get()
        if answer["type"] != f"lifespan.{name}.complete":
            raise RuntimeError(f"the service failed at its {name}: {answer.get('message')}")

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        stream = _Stream(request.stream)
        asked = httpx.Request(request.method, request.url, headers=request.headers, stream=stream)
        response = await self._transport.handle_async_request(asked)
        return httpx.Response(response.status_code, headers=response.headers, content=await response.aread())


class _Stream(httpx.AsyncByteStream):
    """A body of either kind, read asynchronously."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if isinstance(self._stream, httpx.AsyncByteStream):
            async for piece in self._stream:
                yield piece
        else:
            for piece in self._stream:
                yield piece
