"""`POST /v1/cross-entropy`: from an ASGI scope to an answer, in the order in which things can be refused."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from starlette.types import Receive, Scope, Send

from ..dtypes import Array, Buffer
from ..engine.admission import BYTES_RESERVED, Admission, Place, Reservation, Wire
from ..engine.evaluator import Evaluated, Evaluator, off_loop_if
from ..engine.monitor import Monitor
from ..engine.turnstile import Turnstile
from ..errors import NotReady
from ..loss.evaluation import answer_size, working_bytes
from ..loss.options import LossOptions
from ..telemetry.model_metrics import ModelMetrics, Named
from ..telemetry.record import BatchRecord, RequestRecord
from ..wire import json_body, safetensors_body
from .body import ClientGone, Interruption, abandoned_when_gone, read_body
from .health import Health
from .middleware.observation import record_of
from .negotiation import JSON, BodyLimits, Head
from .query import move_grad_output, read_query, refuse_query
from .schemas import SCALAR_FIELDS, Encoding, parse_options, take_origin

Payload = tuple[int, Iterator[Buffer]]
"""The length of an answer, and its parts in order."""
PATH = "/v1/cross-entropy"
JOINED_BYTES = 1 << 16
"""Up to here one write is cheaper than a copy less."""
_HEAVY_BYTES = 1 << 16
_HEAVY_NUMBERS = 1 << 14
"""Beyond these, reading and writing JSON takes longer than a few tiny requests together."""
_SOON_S = 0.5
"""For so long a large body that was let in is expected, and keeps others out; a slow upload does not."""


class CrossEntropy:
    """The endpoint, as plain ASGI: nothing stands between the socket and the arrays."""

    def __init__(  # noqa: PLR0913 - what it leads to
        self,
        evaluator: Evaluator,
        *,
        admission: Admission,
        limits: BodyLimits,
        health: Health,
        monitor: Monitor,
        models: ModelMetrics,
    ) -> None:
        self._evaluator = evaluator
        self._monitor = monitor
        self._models = models
        self._admission = admission
        self._limits = limits
        self._health = health
        self._turnstile = Turnstile()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, unless its caller goes; what it reserved is held until answer and count are done."""
        record = record_of(scope)
        record.route = PATH
        head = Head.of(scope["headers"], timeout_s=self._limits.timeout_s)
        record.wire = head.wire
        with self._admit(head) as reservation:
            try:
                payload = await self._answer(scope, receive, head, record, reservation)
                await _send(send, payload, head.answer, record)
            except ClientGone:
                record.gone_in = "evaluation" if record.received_bytes else "body"
            if self._monitor.is_due:  # what was noted holds memory
                await self._monitor.settle()

    def _admit(self, head: Head) -> Reservation:
        """Reserves the bytes the request can cost, from its headers alone; what doesn't say its length, as it comes."""
        announced = head.content_length or 0
        self._limits.check(head.wire, announced)
        if not self._health.computes:
            raise NotReady("The service is starting, or its device failed; /readyz tells when it is ready.")
        self._admission.check_queue(head.wire, announced, remaining_s=head.timeout_s)
        return self._admission.reserve(head.wire, announced)

    async def _answer(
        self, scope: Scope, receive: Receive, head: Head, record: RequestRecord, reservation: Reservation
    ) -> Payload:
        deadline = time.monotonic() + head.timeout_s
        admission, wire = self._admission, head.wire
        with Interruption() as interruption, Place(admission) as place:
            body = await self._receive(receive, head, record, reservation, interruption, place)
            if place.work_s is None:
                admission.check_queue(wire, len(body), remaining_s=deadline - time.monotonic())
                place.take(wire, len(body), time.monotonic())
            with abandoned_when_gone(receive, interruption):
                if wire == "json" and len(body) > _HEAVY_BYTES:
                    await self._turnstile.enter()
                    admission.check_deadline(deadline - time.monotonic())
                # JSON is parsed with the interpreter's lock held: a thread would not help.
                copied_bytes = len(body) if wire == "binary" else 0
                decode = partial(_Request.of, body, scope["query_string"], wire)
                request = await off_loop_if(copied_bytes, decode)
                del body, decode  # the memory is needed again, unless the arrays are views of it
                self._limits.check_answer(head.answer, request.numbers)
                reservation.cover(request.bytes_needed)
                payload = await self._evaluate(request, head, record, deadline)
                place.finish(time.monotonic())
                return payload

    async def _receive(  # noqa: PLR0913, PLR0917 - what a body that is on its way may hold
        self,
        receive: Receive,
        head: Head,
        record: RequestRecord,
        reservation: Reservation,
        interruption: Interruption,
        place: Place,
    ) -> Buffer:
        """Reads the body; one that is large and was announced holds a place in the queue for a moment beforehand."""
        limits, wire, announced = self._limits, head.wire, head.content_length

        def check_size(size: int) -> None:
            limits.check(wire, size)
            reservation.cover(BYTES_RESERVED[wire] * size)

        def give_up() -> None:
            if not record.received_bytes:
                place.leave()

        if announced is not None and announced > _HEAVY_BYTES:
            place.take(wire, announced, time.monotonic())
            asyncio.get_running_loop().call_later(_SOON_S, give_up)
        body = await read_body(
            receive, interruption, check_size, limits, content_length=announced, caller_timeout_s=head.timeout_s
        )
        record.received_bytes, record.holds_back_body = len(body), False
        return body

    async def _evaluate(self, request: "_Request", head: Head, record: RequestRecord, deadline: float) -> Payload:
        evaluated = await self._evaluator.evaluate(request.arrays, request.options, deadline=deadline)
        if request.origin is not None:
            self._count(evaluated, *request.origin, record)
        if head.answer == JSON and request.numbers > _HEAVY_NUMBERS:
            await self._turnstile.enter()
        computed = time.perf_counter()
        payload = await off_loop_if(request.numbers, lambda: _encode(evaluated, head.answer, request.encoding))
        encoded = time.perf_counter()
        decode_s = request.decode_s + evaluated.validate_s
        encode_s = evaluated.reduce_s + encoded - computed
        record.encoded_s = encoded - record.started
        _note(record, evaluated, decode_s, encode_s)
        work_s = decode_s + evaluated.computed.compute_share_s + encode_s
        if request.origin is not None:
            work_s += self._monitor.work_s(evaluated.evaluation.elements)
        self._admission.observe(head.wire, request.size, work_s)
        return payload

    def _count(self, evaluated: Evaluated, named: Named, predicted_at: datetime | None, record: RequestRecord) -> None:
        source = self._models.source(
            named,
            predicted_at=predicted_at,
            classes=evaluated.evaluation.classes,
            samples=evaluated.answer.count,
            request_id=record.request_id if record.is_named else None,
        )
        if source is not None:
            self._monitor.note(evaluated.evaluation, source)


@dataclass(frozen=True, slots=True)
class _Request:
    """A decoded body; `numbers` is how many the answer will hold, `bytes_needed` what it all takes at its worst."""

    arrays: dict[str, Array]
    options: LossOptions
    encoding: Encoding
    origin: tuple[Named, datetime | None] | None
    size: int
    numbers: int
    bytes_needed: int
    decode_s: float

    @classmethod
    def of(cls, body: Buffer, query_string: bytes, wire: Wire) -> "_Request":
        started = time.perf_counter()
        if wire == "json":
            refuse_query(query_string)
            arrays, scalars = json_body.decode(body, SCALAR_FIELDS)
        else:
            scalars = read_query(query_string)
            arrays = safetensors_body.decode(body)
            move_grad_output(scalars, arrays)
        origin = take_origin(scalars)
        options, encoding = parse_options(scalars)
        numbers, needed = 0, len(body)
        if "logits" in arrays:
            numbers = answer_size(arrays["logits"].shape, options)
            needed += working_bytes(arrays["logits"], options, numbers)
        decode_s = time.perf_counter() - started
        return cls(arrays, options, encoding, origin, len(body), numbers, needed, decode_s)


async def _send(send: Send, payload: Payload, media_type: str, record: RequestRecord) -> None:
    length, parts = payload
    headers = [
        (b"content-type", media_type.encode()),
        (b"content-length", str(length).encode()),
        (b"server-timing", record.server_timing().encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if length <= JOINED_BYTES:
        await send({"type": "http.response.body", "body": b"".join(parts)})
        return
    for part in parts:
        await send({"type": "http.response.body", "body": part, "more_body": True})
        await asyncio.sleep(0)  # others have their turn while the next part is made
    await send({"type": "http.response.body", "body": b""})  # waits until most of it has left


def _encode(evaluated: Evaluated, media_type: str, encoding: Encoding) -> Payload:
    if media_type == JSON:
        parts = json_body.encode(_fields(evaluated), base64=encoding == "base64")
        return sum(map(len, parts)), iter(parts)
    return safetensors_body.encode(_fields(evaluated))


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
    record.batch = computed.batch if isinstance(computed.batch, BatchRecord) else None
    stages = {"decode": decode_s, "queue": computed.queue_s, "compute": computed.compute_s}
    if computed.transfer_s is not None:
        stages["transfer"] = computed.transfer_s
    stages["encode"] = encode_s
    record.stages_ms = {name: round(seconds * 1e3, 3) for name, seconds in stages.items()}
