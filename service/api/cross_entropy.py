"""`POST /v1/cross-entropy`: from an ASGI scope to an answer, in the order in which things can be refused."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from starlette.types import Receive, Scope, Send

from ..engine.admission import Admission
from ..engine.evaluator import Evaluated, Evaluator
from ..errors import InvalidHeader, NotReady, ServiceError, UnknownField
from ..telemetry.metrics import Metrics
from ..wire import json_body
from .body import ClientGone, abandoned_when_gone, read_body, too_large
from .health import Health
from .negotiation import check_accept, check_content_encoding, check_content_type
from .record import RequestRecord, record_of
from .schemas import SCALAR_FIELDS, parse_options

PATH = "/v1/cross-entropy"


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """What a request may send, and how long it may take."""

    max_body_bytes: int
    max_json_bytes: int
    timeout_s: float


class CrossEntropy:
    """The endpoint, as plain ASGI: nothing stands between the socket and the arrays."""

    def __init__(
        self,
        evaluator: Evaluator,
        admission: Admission,
        limits: BodyLimits,
        *,
        health: Health,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._evaluator = evaluator
        self._admission = admission
        self._limits = limits
        self._health = health
        self._metrics = metrics
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        record.route, record.wire = PATH, "json"
        try:
            headers = [(b"content-type", b"application/json")]
            payload = await self._answer(scope, receive, record)
        except ClientGone:
            record.status = 499  # nginx's code for it; nobody sees it but the log
            self._metrics.evaluations.labels("json", "error").inc()
            return
        except ServiceError:
            self._metrics.evaluations.labels("json", "error").inc()
            raise
        self._metrics.evaluations.labels("json", "ok").inc()
        headers += [(b"content-length", str(len(payload)).encode()), (b"server-timing", _server_timing(record))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": payload})

    async def _answer(self, scope: Scope, receive: Receive, record: RequestRecord) -> bytes:
        request = _Headers.of(scope, self._limits)
        deadline = self._clock() + request.timeout_s
        if scope["query_string"]:
            name = scope["query_string"].decode("latin-1").partition("=")[0][:64]
            raise UnknownField.at(f"#/{name}", "options of a JSON request go into the body, not into the query")
        if not self._health.is_warm:
            detail = "The service is warming up; /readyz tells when it is ready."
            raise NotReady(detail)
        expected = request.content_length if request.content_length is not None else self._limits.max_json_bytes
        self._admission.check_queue("json", expected, remaining_s=request.timeout_s)
        with self._admission.bytes_reserved("json", expected):
            body = await self._read(receive, deadline, request)
            record.received_bytes = len(body)
            self._admission.check_queue("json", len(body), remaining_s=deadline - self._clock())
            with self._admission.queued("json", len(body)):
                return await self._evaluate(body, receive, record, deadline)

    async def _read(self, receive: Receive, deadline: float, request: "_Headers") -> bytes | bytearray:
        limit, name = request.limit(self._limits)
        try:
            return await read_body(receive, limit=limit, limit_name=name, timeout_s=deadline - self._clock())
        except ClientGone:
            self._metrics.disconnects.labels("body").inc()
            raise

    async def _evaluate(
        self, body: bytes | bytearray, receive: Receive, record: RequestRecord, deadline: float
    ) -> bytes:
        started = time.perf_counter()
        arrays, scalars = json_body.decode(body, SCALAR_FIELDS)
        options = parse_options(scalars)
        decoded = time.perf_counter()
        try:
            with abandoned_when_gone(receive):
                evaluated = await self._evaluator.evaluate(arrays, options.loss_options(), deadline=deadline)
        except ClientGone:
            self._metrics.disconnects.labels("evaluation").inc()
            raise
        computed = time.perf_counter()
        payload = json_body.encode(_response(evaluated), base64=options.encoding == "base64")
        encoded = time.perf_counter()
        self._note(record, evaluated, decode_s=decoded - started, encode_s=encoded - computed)
        work_s = (decoded - started) + (encoded - computed) + evaluated.computed.compute_share_s
        self._admission.observe("json", len(body), work_s)
        return payload

    def _note(self, record: RequestRecord, evaluated: Evaluated, *, decode_s: float, encode_s: float) -> None:
        computed, evaluation = evaluated.computed, evaluated.evaluation
        record.rows, record.classes = evaluation.rows, evaluation.classes
        record.batch_requests, record.batch_rows = computed.batch_requests, computed.batch_rows
        record.stages = {"decode": decode_s, "queue": computed.queue_s, "compute": computed.compute_s}
        if computed.transfer_s is not None:
            record.stages["transfer"] = computed.transfer_s
        record.stages["encode"] = encode_s
        for name, seconds in record.stages.items():
            self._metrics.stage(name, seconds)


@dataclass(frozen=True, slots=True)
class _Headers:
    """What the headers decide before the body is read."""

    content_length: int | None
    timeout_s: float

    @classmethod
    def of(cls, scope: Scope, limits: BodyLimits) -> "_Headers":
        """Reads and checks the headers.

        Raises:
            InvalidHeader, UnsupportedMediaType, UnsupportedContentEncoding, NotAcceptable, LimitExceeded: In this order.
        """
        found: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            found[name] = found[name] + b", " + value if name in found and name == b"accept" else value
        timeout_s = _timeout(found.get(b"x-request-timeout"), limits.timeout_s)
        check_content_encoding(found.get(b"content-encoding"))
        check_content_type(found.get(b"content-type"))
        check_accept(found.get(b"accept"))
        length = found.get(b"content-length")
        headers = cls(None if length is None else int(length), timeout_s)
        limit, name = headers.limit(limits)
        if headers.content_length is not None and headers.content_length > limit:
            raise too_large(name, limit, headers.content_length)
        return headers

    @staticmethod
    def limit(limits: BodyLimits) -> tuple[int, str]:
        """Returns the limit in force for the body, and its name."""
        if limits.max_json_bytes <= limits.max_body_bytes:
            return limits.max_json_bytes, "MAX_JSON_BYTES"
        return limits.max_body_bytes, "MAX_BODY_BYTES"


def _timeout(value: bytes | None, longest_s: float) -> float:
    if value is None:
        return longest_s
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        detail = "X-Request-Timeout must be a finite number of seconds above 0, e.g. 2.5."
        raise InvalidHeader(detail)
    return min(seconds, longest_s)


def _response(evaluated: Evaluated) -> Mapping[str, object]:
    warnings = [
        {"code": one.code, "detail": one.detail, "count": one.count, "first": one.first}
        for one in evaluated.answer.warnings
    ]
    return {**evaluated.answer.values, "warnings": warnings}


def _server_timing(record: RequestRecord) -> bytes:
    stages = ", ".join(f"{name};dur={seconds * 1e3:.3f}" for name, seconds in record.stages.items())
    return f'{stages}, batch;desc="requests={record.batch_requests} rows={record.batch_rows}"'.encode()
