"""The asynchronous client: the core, and httpx's asynchronous I/O."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import httpx

from . import operations
from .bulk import Batch, BulkOptions, Evaluation, arguments_of
from .client import BaseClient, check_framing, http_options
from .exchange import Attempt, Call, R, Reply, exchange
from .wire import Part

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from .arrays import TensorLike
    from .operations import Options
    from .results import CrossEntropyResult


class AsyncClient(BaseClient[httpx.AsyncClient]):
    """`Client` for asyncio, method for method, on one event loop; `aclose` it, or use it in an ``async with`` block."""

    _sleep: Callable[[float], Any] = staticmethod(asyncio.sleep)

    async def cross_entropy(
        self, logits: TensorLike, labels: TensorLike, **options: Unpack[Options]
    ) -> CrossEntropyResult:
        """Evaluates a batch; see `Client.cross_entropy`."""
        call = operations.cross_entropy(logits, labels, self._config.wire, options)
        return (await self._run(call)).with_ids(options.get("ids"))

    async def evaluate_many(
        self, batches: Iterable[Batch], *, max_in_flight: int = 4, **options: Unpack[Options]
    ) -> AsyncIterator[CrossEntropyResult]:
        """Evaluates batches concurrently, each in a task; see `Client.evaluate_many`."""
        pending: deque[asyncio.Task[CrossEntropyResult]] = deque()
        try:
            for call in arguments_of(batches, options):
                pending.append(asyncio.create_task(self.cross_entropy(**call)))
                if len(pending) == max_in_flight:
                    yield await pending.popleft()
            while pending:
                yield await pending.popleft()
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    async def evaluate_arrays(
        self, logits: TensorLike, labels: TensorLike, *, max_in_flight: int = 2, **options: Unpack[BulkOptions]
    ) -> CrossEntropyResult:
        """Evaluates arrays of any size in requests of some rows; see `Client.evaluate_arrays`."""
        whole = Evaluation(logits, labels, options)
        patient = self.with_options(is_patient=True)
        async for part in patient.evaluate_many(whole.parts(), max_in_flight=max_in_flight, **whole.options):
            whole.add(part)
        return whole.result()

    async def info(self) -> dict[str, Any]:
        """Returns what the service is; see `Client.info`."""
        return await self._run(operations.INFO)

    async def ready(self) -> bool:
        """Asks whether the service takes requests; see `Client.ready`."""
        return await self._run(operations.READY)

    async def aclose(self) -> None:
        """Closes the connections; see `Client.close`."""
        for http in self._opened():
            await http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _run(self, call: Call[R]) -> R:
        http, budget = self._open()
        steps, outcome = exchange(call, self._config, budget), None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as end:
                result: R = end.value
                return result
            outcome = await self._send(http, step) if isinstance(step, Attempt) else await self._sleep(step)

    async def _send(self, http: httpx.AsyncClient, attempt: Attempt) -> Reply | Exception:
        try:
            # Nothing else bounds headers that come byte by byte.
            return await asyncio.wait_for(self._perform(http, attempt), attempt.timeouts["read"])
        except asyncio.TimeoutError:  # in Python 3.10 not the built-in one
            return TimeoutError("the time budget is used up")
        except (httpx.RequestError, httpx.InvalidURL) as error:
            return error

    @staticmethod
    async def _perform(http: httpx.AsyncClient, attempt: Attempt) -> Reply:
        method, url, headers, parts, timeouts = attempt
        content: Any = b"".join(parts) if attempt.is_small else _asynchronous(attempt.pieces())
        body, extensions = bytearray(), {"timeout": timeouts}
        async with http.stream(method, url, headers=headers, content=content, extensions=extensions) as response:
            check_framing(response)
            async for piece in response.aiter_bytes():
                timeouts.check()
                body += piece
        return Reply(response.status_code, response.headers, body)

    def _make_http(self, transport: Any) -> httpx.AsyncClient:  # noqa: ANN401
        return httpx.AsyncClient(**http_options(transport))


async def _asynchronous(pieces: Iterator[Part]) -> AsyncIterator[Part]:
    for piece in pieces:
        yield piece
