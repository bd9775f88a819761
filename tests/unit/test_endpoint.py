"""Refusals of the endpoint that no caller can provoke from outside."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, cast, get_args

import numpy as np
import pytest

from service.api.body import ClientGone
from service.api.cross_entropy import CrossEntropy
from service.api.health import Health
from service.api.middleware.observation import Observation
from service.api.middleware.problem_answers import ProblemAnswers
from service.api.negotiation import BodyLimits
from service.dtypes import Array, Buffer
from service.engine.admission import Admission, Reason, Wire
from service.engine.batcher import Device
from service.engine.evaluator import Evaluator
from service.engine.monitor import Monitor
from service.errors import DeadlineExceeded, InsufficientDeviceMemory, NotReady
from service.telemetry.metrics import Metrics
from service.wire import safetensors_body
from tests.unit.fakes import Message, receiving

BODY = b'{"logits":[[1,2]],"labels":[0]}'


@dataclass
class Batcher:
    """All that health asks of one."""

    is_alive: bool = True


@dataclass
class FailingDevice:
    """Stands where the evaluator does; by default its device has no memory left."""

    error: BaseException = field(default_factory=lambda: InsufficientDeviceMemory("full"))

    async def evaluate(self, *_: object, **__: object) -> None:
        raise self.error


async def post(  # noqa: PLR0913 - the states of a service
    body: Buffer = BODY,
    media_type: bytes = b"application/json",
    *,
    is_warm: bool = True,
    is_alive: bool = True,
    waiting_bytes: int = 0,
    device: FailingDevice | None = None,
    messages: Sequence[Message] = (),
    while_sending: Callable[[Admission], Awaitable[None]] | None = None,
) -> tuple[dict[bytes, bytes], dict[str, Any], Admission]:
    metrics = Metrics(version="1", device="cpu", wires=get_args(Wire), reasons=get_args(Reason), closers=["idle"])
    admission = Admission(max_inflight_bytes=1000, max_queue_s=0.01, metrics=metrics)
    if waiting_bytes:
        admission.enter("json", waiting_bytes)
    health = Health(cast(Any, Batcher(is_alive)), is_warm=is_warm)
    device = device or FailingDevice()
    endpoint = CrossEntropy(
        cast(Evaluator, device),
        admission=admission,
        limits=BodyLimits(1 << 30, 1000, 60.0),
        health=health,
        monitor=Monitor(cast(Device, device), metrics.models),
        models=metrics.models,
    )
    sent: list[Any] = []

    async def send(message: Any) -> None:  # noqa: ANN401 - ASGI's messages
        sent.append(message)

    at_once = receiving(*(messages or [{"type": "http.request", "body": body, "more_body": False}]))

    async def receive() -> Message:
        if while_sending is not None:
            await while_sending(admission)
        return await at_once()

    headers = [(b"content-type", media_type), (b"content-length", b"%d" % len(body))]
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": headers, "state": {}}
    answers = ProblemAnswers(endpoint, routes=[], metrics=metrics)
    await Observation(answers, metrics=metrics, health=health)(scope, receive, send)
    if not sent:
        return {}, {}, admission
    text, problem = metrics.exposition("")[0].decode(), json.loads(sent[1]["body"])
    reason = {"overloaded": "queue_time"}.get(problem["code"], problem["code"])
    is_counted = f'losseval_rejected_requests_total{{reason="{reason}"}} 1.0\n' in text
    assert is_counted == (problem["status"] == HTTPStatus.SERVICE_UNAVAILABLE), "each refusal is counted once"
    return dict(sent[0]["headers"]), problem, admission


@pytest.mark.parametrize("state", [{"is_warm": False}, {"is_alive": False}], ids=["cold", "dead"])
def test_a_service_that_does_not_compute_takes_nothing(state: dict[str, bool]) -> None:
    headers, problem, admission = asyncio.run(post(**state))  # type: ignore[arg-type]
    assert (problem["status"], problem["code"], headers[b"retry-after"]) == (503, "not_ready", b"1")
    assert admission.inflight_bytes == 0


def test_what_the_server_cuts_off_when_it_ends_is_told_so() -> None:
    headers, problem, admission = asyncio.run(post(device=FailingDevice(asyncio.CancelledError())))
    assert (problem["status"], problem["code"], headers[b"retry-after"]) == (503, "draining", b"1")
    assert (admission.inflight_bytes, admission.queued_requests) == (0, 0)


GONE: Message = {"type": "http.disconnect"}
HALF: Message = {"type": "http.request", "body": BODY[:9], "more_body": True}
WHOLE: Message = {"type": "http.request", "body": BODY, "more_body": False}


@pytest.mark.parametrize(
    ("messages", "error", "code"),
    [
        pytest.param([GONE], None, None, id="gone before the body"),
        pytest.param([HALF, GONE], None, None, id="gone in the body"),
        pytest.param([WHOLE], ClientGone(), None, id="gone in the queue"),
        pytest.param([{**WHOLE, "body": BODY[:9]}], None, "malformed_json", id="not JSON"),
        pytest.param([{**WHOLE, "body": BODY + BODY}], None, "malformed_request", id="longer than announced"),
        pytest.param([WHOLE], DeadlineExceeded("late"), "deadline_exceeded", id="expired in the queue"),
        pytest.param([WHOLE], NotReady("hung"), "not_ready", id="the device hangs"),
        pytest.param([WHOLE], ArithmeticError("a bug"), "internal_error", id="a bug"),
    ],
)
def test_everything_reserved_is_given_back(messages: list[Message], error: Exception | None, code: str | None) -> None:
    device = FailingDevice(error) if error else None
    _, problem, admission = asyncio.run(post(messages=messages, device=device))
    assert problem.get("code") == code
    assert (admission.inflight_bytes, admission.queue_s, admission.queued_requests) == (0, 0.0, 0)


def test_a_large_body_is_expected_for_a_moment_and_keeps_nobody_out_when_it_is_slow() -> None:
    seen: list[int] = []

    async def while_sending(admission: Admission) -> None:
        seen.append(admission.queued_requests)
        async with asyncio.timeout(10):
            while admission.queued_requests:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.01)

    content = safetensors_body.encode({"logits": np.zeros((1, 1 << 15), np.float32), "labels": np.zeros(1, np.int64)})
    body = b"".join(content[1])
    _, problem, admission = asyncio.run(post(body, SAFETENSORS, while_sending=while_sending))
    assert seen == [1]
    assert problem["code"] == "insufficient_device_memory"
    assert admission.queued_requests == 0


def test_work_beyond_the_queue_time_is_refused() -> None:
    headers, problem, admission = asyncio.run(post(waiting_bytes=190_000_000))
    assert (problem["status"], problem["code"], headers[b"retry-after"]) == (503, "overloaded", b"2")
    assert admission.inflight_bytes == 0


def test_a_device_without_memory_is_said_and_everything_is_given_back() -> None:
    headers, problem, admission = asyncio.run(post())
    assert (problem["status"], problem["code"], headers[b"retry-after"]) == (503, "insufficient_device_memory", b"1")
    assert (admission.inflight_bytes, admission.queue_s, admission.queued_requests) == (0, 0.0, 0)


SAFETENSORS = b"application/x-safetensors"
LARGE_BYTES = 1 << 20


def large_body(shift: int) -> bytearray:
    """File of one large float32 tensor that begins `shift` bytes behind an aligned address."""
    entry = {"dtype": "F32", "shape": [LARGE_BYTES // 4], "data_offsets": [0, LARGE_BYTES]}
    text = json.dumps({"logits": entry}).encode()
    text += b" " * (-len(text) % 8 + shift)
    body = bytearray(8 + len(text) + LARGE_BYTES)
    body[: 8 + len(text)] = len(text).to_bytes(8, "little") + text
    return body


@pytest.mark.parametrize("shift", [pytest.param(0, id="aligned"), pytest.param(1, id="unaligned")])
def test_large_tensors_are_read_in_a_thread_of_their_own(shift: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unaligned ones are copied, which would hold up the event loop."""
    threads: list[threading.Thread] = []
    read = safetensors_body.decode

    def decode(body: Buffer) -> dict[str, Array]:
        threads.append(threading.current_thread())
        return read(body)

    monkeypatch.setattr(safetensors_body, "decode", decode)
    _, problem, _ = asyncio.run(post(large_body(shift), SAFETENSORS))
    assert problem["code"] == "insufficient_device_memory", "it came as far as the device"
    assert threads
    assert threading.main_thread() not in threads
