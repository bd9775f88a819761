"""`POST /v1/cross-entropy`: from an ASGI scope to an answer, in the order in which things can be refused."""

import time

from starlette.types import Receive, Scope, Send

from ..engine.admission import Admission
from ..engine.evaluator import Evaluated, Evaluator
from ..errors import NotReady, UnknownField
from ..telemetry.record import RequestRecord
from ..wire import json_body
from ..wire.json_errors import pointer
from .body import ClientGone, Interruption, abandoned_when_gone, read_body
from .health import Health
from .middleware.observation import record_of
from .negotiation import BodyLimits, Head
from .schemas import SCALAR_FIELDS, parse_options

PATH = "/v1/cross-entropy"


class CrossEntropy:
    """The endpoint, as plain ASGI: nothing stands between the socket and the arrays."""

    def __init__(self, evaluator: Evaluator, admission: Admission, limits: BodyLimits, health: Health) -> None:
        self._evaluator = evaluator
        self._admission = admission
        self._limits = limits
        self._health = health

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, unless its caller goes."""
        record = record_of(scope)
        record.route, record.wire = PATH, "json"
        try:
            payload = await self._answer(scope, receive, record)
        except ClientGone:
            record.gone_in = "evaluation" if record.received_bytes else "body"
            return
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(payload)).encode()),
            (b"server-timing", record.server_timing().encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": payload})

    async def _answer(self, scope: Scope, receive: Receive, record: RequestRecord) -> bytes:
        head = Head.of(scope["headers"], self._limits)
        deadline = time.monotonic() + head.timeout_s
        if scope["query_string"]:
            name = scope["query_string"].decode("latin-1").partition("=")[0][:64]
            raise UnknownField.at(pointer((name,)), "options of a JSON request go into the body, not into the query")
        if not self._health.is_warm:
            raise NotReady("The service is warming up; /readyz tells when it is ready.")
        self._admission.check_queue("json", head.content_length, remaining_s=head.timeout_s)
        reserved = self._admission.reserve("json", head.content_length)
        try:
            with Interruption() as interruption:
                check = self._limits.check
                limits_s = {"timeout_s": self._limits.timeout_s, "caller_timeout_s": head.timeout_s}
                body = await read_body(receive, interruption, check, **limits_s)
                record.received_bytes, record.holds_back_body = len(body), False
                self._admission.check_queue("json", len(body), remaining_s=deadline - time.monotonic())
                work = self._admission.enter("json", len(body))
                try:
                    with abandoned_when_gone(receive, interruption):
                        return await self._evaluate(body, record, deadline)
                finally:
                    self._admission.leave(work)
        finally:
            self._admission.release(reserved)

    async def _evaluate(self, body: bytes | bytearray, record: RequestRecord, deadline: float) -> bytes:
        started = time.perf_counter()
        arrays, scalars = json_body.decode(body, SCALAR_FIELDS)
        options = parse_options(scalars)
        decode_s = time.perf_counter() - started
        evaluated = await self._evaluator.evaluate(arrays, options.loss_options(), deadline=deadline)
        computed = time.perf_counter()
        payload = json_body.encode(_fields(evaluated), base64=options.encoding == "base64")
        decode_s += evaluated.validate_s
        encode_s = evaluated.reduce_s + time.perf_counter() - computed
        _note(record, evaluated, decode_s, encode_s)
        self._admission.observe("json", len(body), decode_s + evaluated.computed.compute_share_s + encode_s)
        return payload


def _fields(evaluated: Evaluated) -> dict[str, object]:
    warnings = [
        {"code": one.code, "detail": one.detail, "count": one.count, "first": one.first}
        for one in evaluated.answer.warnings
    ]
    return {**evaluated.answer.values, "warnings": warnings}


def _note(record: RequestRecord, evaluated: Evaluated, decode_s: float, encode_s: float) -> None:
    computed, evaluation = evaluated.computed, evaluated.evaluation
    record.rows, record.classes = evaluation.rows, evaluation.classes
    record.batch_requests, record.batch_rows = computed.batch_requests, computed.batch_rows
    record.stages = {"decode": decode_s, "queue": computed.queue_s, "compute": computed.compute_s}
    if computed.transfer_s is not None:
        record.stages["transfer"] = computed.transfer_s
    record.stages["encode"] = encode_s
