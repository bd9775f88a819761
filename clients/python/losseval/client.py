"""The synchronous client, and what the asynchronous one shares with it."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from . import __version__, operations
from .bulk import Batch, BulkOptions, Evaluation, arguments_of
from .comparison import compare
from .exchange import Attempt, Call, Config, R, Reply, RetryBudget, exchange

if TYPE_CHECKING:
    import httpx
    from typing_extensions import Self, Unpack

    from .arrays import TensorLike
    from .operations import Options
    from .results import CrossEntropyResult

Http = TypeVar("Http")
_KEEPALIVE_S = 71.0
"""Four seconds less than the service keeps an idle connection, so that it isn't the one to close first."""


class BaseClient(Generic[Http]):
    """A client of the service; connects when it is first used. A pickle of it holds the API key.

    Args:
        base_url: By default LOSSEVAL_URL, else http://127.0.0.1:8000; without user information or a query.
        api_key: By default LOSSEVAL_API_KEY, else none.
        timeout: Seconds a call may take, retries included; the service is told how many are left.
        max_attempts: Requests a call may take if connections fail or the answer is 429, 502, 503 or 504.
        wire: `json` for reading along; the numbers are the same.
        http_client: An httpx client of your own; it is not closed, and can't be forked or pickled.
        transport: An httpx transport of your own, or a function that makes one in every process anew.

    Raises:
        ValueError: `base_url`, `api_key` or `timeout` can't be used.
    """

    compare = staticmethod(compare)
    _make_http: Callable[[Any], Http]

    def __init__(  # noqa: PLR0913 - options by name
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
        max_attempts: int = 3,
        wire: Literal["binary", "json"] = "binary",
        http_client: Http | None = None,
        transport: Any = None,  # noqa: ANN401 - httpx.BaseTransport or AsyncBaseTransport
    ) -> None:
        url = base_url or os.environ.get("LOSSEVAL_URL") or "http://127.0.0.1:8000"
        self._config = Config(url, api_key or os.environ.get("LOSSEVAL_API_KEY"), timeout, max_attempts, wire)
        self._http_client, self._transport = http_client, transport
        self._by_process: dict[int, tuple[Http, RetryBudget]] = {}

    @classmethod
    def local(cls, **settings: object) -> Self:
        """Starts the service in this process, without a socket; `settings` are its own, e.g. ``device="cpu"``.

        Raises:
            ImportError: losseval-service is not installed.
        """
        from .local import LocalTransport  # noqa: PLC0415 - imports httpx

        client = cls("http://localhost", transport=functools.partial(LocalTransport, settings))
        client._open()
        return client

    def with_options(self, **options: Any) -> Self:  # noqa: ANN401 - those named below
        """Returns a client that shares everything, its connections too, but for these.

        Args:
            options: `api_key`, `timeout`, `max_attempts`, `wire`; `is_patient`: time alone bounds the retries.
        """
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, _config=dataclasses.replace(self._config, **options))
        return other

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._config.base_url!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_by_process": {}}

    def _open(self) -> tuple[Http, RetryBudget]:
        """Returns what a process needs to call: made when first needed, by a fork or a pickle anew."""
        process = os.getpid()
        if process not in self._by_process:
            http = self._http_client or self._make_http(self._transport)
            self._by_process.setdefault(process, (http, RetryBudget()))
        return self._by_process[process]

    def _opened(self) -> list[Http]:
        """Forgets what was opened and returns what of it to close: nothing that was given from outside."""
        http, _ = self._by_process.pop(os.getpid(), (None, None))
        return [] if http is None or http is self._http_client else [http]


def http_options(transport: Any) -> dict[str, Any]:  # noqa: ANN401
    """Returns the arguments of an httpx client."""
    import httpx  # noqa: PLC0415 - takes longer to import than all the rest

    limits = httpx.Limits(max_connections=100, max_keepalive_connections=100, keepalive_expiry=_KEEPALIVE_S)
    headers = {"User-Agent": f"losseval-python/{__version__}", "Accept-Encoding": "identity"}
    return {"transport": transport() if callable(transport) else transport, "limits": limits, "headers": headers}


def check_framing(response: httpx.Response) -> None:
    """Raises RemoteProtocolError for an answer that ends with its connection: a part of one would look the same."""
    import httpx  # noqa: PLC0415

    is_http_1 = response.extensions.get("http_version", b"").startswith(b"HTTP/1")  # later ones end every answer
    if is_http_1 and not response.headers.keys() & {"content-length", "transfer-encoding"}:
        raise httpx.RemoteProtocolError(f"an answer of status {response.status_code} without its length")


class Client(BaseClient["httpx.Client"]):
    """A client of the service, see `BaseClient`. Threads can share it; close it, or use it in a ``with`` block."""

    _sleep: Callable[[float], Any] = staticmethod(time.sleep)

    def cross_entropy(self, logits: TensorLike, labels: TensorLike, **options: Unpack[Options]) -> CrossEntropyResult:
        """Evaluates a batch.

        Args:
            logits: (C), (N, C) or (N, C, d1…dk), of float32, float64, float16 or bfloat16; lists are float32.
            labels: Class indices, one rank below; or class probabilities in the logits' shape.
            options: See `Options`.

        Raises:
            APIConnectionError, APIStatusError: See `losseval.errors`.
            TypeError: There is no such option, or a dtype can't be sent.
        """
        call = operations.cross_entropy(logits, labels, self._config.wire, options)
        return self._run(call).with_ids(options.get("ids"))

    def evaluate_many(
        self, batches: Iterable[Batch], *, max_in_flight: int = 4, **options: Unpack[Options]
    ) -> Iterator[CrossEntropyResult]:
        """Evaluates batches concurrently; yields results in order and holds no more than `max_in_flight` batches.

        Args:
            batches: Pairs of logits and labels, or mappings of arguments of `cross_entropy`.
            max_in_flight: Requests at a time, each in a thread.
            options: Of all batches; see `Options`. A `request_id` is followed by the batch's number.
        """
        from concurrent.futures import Future, ThreadPoolExecutor  # noqa: PLC0415 - few need it, all would wait

        pending: deque[Future[CrossEntropyResult]] = deque()
        with ThreadPoolExecutor(max_in_flight, "losseval") as threads:
            try:
                for call in arguments_of(batches, options):
                    pending.append(threads.submit(self.cross_entropy, **call))
                    if len(pending) == max_in_flight:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()

    def evaluate_arrays(
        self, logits: TensorLike, labels: TensorLike, *, max_in_flight: int = 2, **options: Unpack[BulkOptions]
    ) -> CrossEntropyResult:
        """Evaluates arrays of any size, memory-mapped files too, in requests of some rows each.

        Args:
            logits: (N, C) or (N, C, d1…dk).
            labels: As in `cross_entropy`.
            max_in_flight: Requests at a time. While they are refused, they wait.
            options: See `BulkOptions`; `timeout` is that of each request.
        """
        whole = Evaluation(logits, labels, options)
        patient = self.with_options(is_patient=True)
        for part in patient.evaluate_many(whole.parts(), max_in_flight=max_in_flight, **whole.options):
            whole.add(part)
        return whole.result()

    def info(self) -> dict[str, Any]:
        """Returns the service's version, device, limits, dtypes, and what `include` may name."""
        return self._run(operations.INFO)

    def ready(self) -> bool:
        """Asks whether the service takes requests. APIConnectionError: nobody answers."""
        return self._run(operations.READY)

    def close(self) -> None:
        """Closes the connections, which clients made by `with_options` share."""
        for http in self._opened():
            http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, call: Call[R]) -> R:
        http, budget = self._open()
        steps, outcome = exchange(call, self._config, budget), None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as end:
                result: R = end.value
                return result
            outcome = self._send(http, step) if isinstance(step, Attempt) else self._sleep(step)

    @staticmethod
    def _send(http: httpx.Client, attempt: Attempt) -> Reply | Exception:
        import httpx  # noqa: PLC0415

        method, url, headers, parts, timeouts = attempt
        content: Any = b"".join(parts) if attempt.is_small else attempt.pieces()
        body, extensions = bytearray(), {"timeout": timeouts, "parts": None if attempt.is_small else parts}
        try:
            with http.stream(method, url, headers=headers, content=content, extensions=extensions) as response:
                check_framing(response)
                pieces: Iterator[bytes | bytearray] = response.iter_bytes()
                for piece in pieces:
                    timeouts.check()
                    # The direct transport has read the answer whole.
                    body = piece if isinstance(piece, bytearray) else body + piece
            # Response and stream refer to each other, and the request's arrays would stay until a garbage collection.
            response.stream = httpx.ByteStream(b"")
        except (httpx.RequestError, httpx.InvalidURL, TimeoutError) as error:
            return error
        return Reply(response.status_code, response.headers, body)

    def _make_http(self, transport: Any) -> httpx.Client:  # noqa: ANN401
        import urllib.request  # noqa: PLC0415 - as httpx

        import httpx  # noqa: PLC0415

        from .transport import DirectTransport  # noqa: PLC0415 - imports httpx

        options = http_options(transport)
        if transport is None and not urllib.request.getproxies().keys() - {"no"}:  # those are httpx's business
            options["transport"] = DirectTransport(options["limits"])
        return httpx.Client(**options)
