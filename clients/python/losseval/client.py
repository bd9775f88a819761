"""The synchronous client: the core, and httpx's synchronous I/O."""

from __future__ import annotations

import time
import urllib.request
from collections import deque
from typing import TYPE_CHECKING, Any

from . import operations
from .base import BaseClient, http_options, parse_url, reply_of
from .bulk import CHUNK_BYTES, Evaluation, Progress, arguments_of
from .exchange import Attempt, Call, R, Reply, exchange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import httpx
    from typing_extensions import Self, Unpack

    from .arrays import Array, TensorLike
    from .bulk import Batch
    from .operations import Options
    from .results import CrossEntropyResult


class Client(BaseClient["httpx.Client"]):
    """A client of the service. It can be shared by threads; close it, or use it in a `with` block."""

    _sleep = staticmethod(time.sleep)

    def cross_entropy(self, logits: TensorLike, labels: TensorLike, **options: Unpack[Options]) -> CrossEntropyResult:
        """Evaluates a batch.

        Args:
            logits: (C), (N, C) or (N, C, d1…dk) of float32, float64, float16 or bfloat16; lists are float32.
            labels: Class indices, one rank below; or class probabilities in the logits' shape.
            options: See `Options`.

        Raises:
            APIConnectionError, APIStatusError: See `losseval.errors`.
            TypeError: There is no such option, or a dtype can't be sent.
        """
        call = operations.cross_entropy(logits, labels, self._config.wire, options)
        return self._run(call, options.get("timeout")).with_ids(options.get("ids"))

    def evaluate_many(
        self, batches: Iterable[Batch], *, max_in_flight: int = 4, **options: Unpack[Options]
    ) -> Iterator[CrossEntropyResult]:
        """Evaluates batches concurrently; yields results in order and never holds more than `max_in_flight`.

        Args:
            batches: Pairs of logits and labels, or mappings of arguments of `cross_entropy`.
            max_in_flight: Requests at a time, each in a thread.
            options: For all batches; see `Options`.
        """
        from concurrent.futures import Future, ThreadPoolExecutor  # noqa: PLC0415 - few need it, all would wait

        pending: deque[Future[CrossEntropyResult]] = deque()
        with ThreadPoolExecutor(max_in_flight, "losseval") as threads:
            try:
                for batch in batches:
                    pending.append(threads.submit(self.cross_entropy, **{**options, **arguments_of(batch)}))
                    if len(pending) == max_in_flight:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()

    def evaluate_arrays(
        self,
        logits: TensorLike,
        labels: TensorLike,
        *,
        chunk_bytes: int = CHUNK_BYTES,
        max_in_flight: int = 2,
        out: Mapping[str, Array] | None = None,
        progress: Callable[[Progress], None] | None = None,
        **options: Unpack[Options],
    ) -> CrossEntropyResult:
        """Evaluates arrays of any size, memory-mapped files too, in requests of some rows; waits while it is refused.

        Args:
            logits: (N, C) or (N, C, d1…dk).
            labels: As in `cross_entropy`.
            chunk_bytes: About how many bytes of logits a request has.
            max_in_flight: Requests at a time.
            out: Arrays to write outputs to, by name, e.g. a memory-mapped file for `gradients`.
            progress: Called after each answer.
            options: See `Options`; `timeout` is that of each request.
        """
        arguments = {**options, "logits": logits, "labels": labels}
        whole = Evaluation(arguments, chunk_bytes=chunk_bytes, out=out, progress=progress)
        patient = self.with_options(is_patient=True)
        for part in patient.evaluate_many(whole.parts(), max_in_flight=max_in_flight):
            whole.add(part)
        return whole.result()

    def info(self) -> dict[str, Any]:
        """Returns the service's version, device, limits, dtypes, and what `include` may name."""
        return self._run(operations.INFO)

    def ready(self) -> bool:
        """Asks whether the service takes requests. APIConnectionError: nobody answers."""
        return self._run(operations.READY)

    def close(self) -> None:
        """Closes the connections, those of clients made by `with_options` too."""
        for http in self._pool.close():
            http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, call: Call[R], timeout: float | None = None) -> R:
        http, budget = self._pool.get()
        config = self._config if timeout is None else self.with_options(timeout=timeout)._config
        steps = exchange(call, config, budget)
        step = next(steps)
        try:
            while True:
                if isinstance(step, Attempt):
                    step = steps.send(self._send(http, step))
                else:
                    self._sleep(step)
                    step = next(steps)
        except StopIteration as end:
            result: R = end.value
            return result

    @staticmethod
    def _send(http: httpx.Client, attempt: Attempt) -> Reply | Exception:
        import httpx  # noqa: PLC0415

        method, url, headers, parts, timeouts = attempt
        content: Any = b"".join(parts) if attempt.is_small else attempt.pieces()
        extensions = {"timeout": timeouts, "parts": None if attempt.is_small else parts}
        body = bytearray()
        try:
            request = http.build_request(method, parse_url(url), headers=headers, content=content, extensions=extensions)
            response = http.send(request, stream=True)
            try:
                for piece in response.iter_bytes():
                    timeouts.check()
                    # The direct transport reads an answer whole.
                    body = piece if isinstance(piece, bytearray) else body + piece
            finally:
                response.close()
        except (httpx.RequestError, TimeoutError) as error:
            return error
        return reply_of(response, body)

    @staticmethod
    def _open(transport: httpx.BaseTransport | None) -> httpx.Client:
        import httpx  # noqa: PLC0415

        from .transport import DirectTransport  # noqa: PLC0415 - imports httpx

        options = http_options()
        if transport is None and not urllib.request.getproxies():
            transport = DirectTransport(options["limits"])
        return httpx.Client(transport=transport, **options)
