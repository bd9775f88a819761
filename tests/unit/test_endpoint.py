"""Refusals of the endpoint that no caller can provoke from outside."""

import asyncio
import json
import threading
from typing import Any, cast

import pytest

from service.api.cross_entropy import CrossEntropy
from service.api.health import Health
from service.api.middleware.observation import Observation
from service.api.middleware.problem_answers import ProblemAnswers
from service.api.negotiation import BodyLimits
from service.dtypes import Array, Buffer
from service.engine.admission import Admission
from service.engine.batcher import Batcher, Device
from service.engine.evaluator import Evaluator
from service.engine.monitor import Monitor
from service.errors import InsufficientDeviceMemory
from service.telemetry.metrics import Metrics
from service.wire import safetensors_body
from tests.unit.fakes import receiving

BODY = b'{"logits":[[1,2]],"labels":[0]}'


class FullDevice:
    """Stands where the evaluator does; its device has no memory left."""

    async def evaluate(self, *_: object, **__: object) -> None:
        raise InsufficientDeviceMemory("full")


async def post(
    body: Buffer = BODY, media_type: bytes = b"application/json", *, is_warm: bool = True, waiting_bytes: int = 0
) -> tuple[dict[bytes, bytes], dict[str, Any], Admission]:
    admission = Admission(max_inflight_bytes=1000, max_queue_s=0.01)
    if waiting_bytes:
        admission.enter("json", waiting_bytes)
    health = Health(cast(Batcher, None), is_warm=is_warm)
    metrics = Metrics(version="1", device="cpu", wires=["json", "binary"], reasons=["queue_time"], closers=["idle"])
    endpoint = CrossEntropy(
        cast(Evaluator, FullDevice()),
        admission=admission,
        limits=BodyLimits(1 << 30, 1000, 60.0),
        health=health,
        monitor=Monitor(cast(Device, FullDevice()), metrics.models),
        models=metrics.models,
    )
    sent: list[Any] = []

    async def send(message: Any) -> None:  # noqa: ANN401 - ASGI's messages
        sent.append(message)

    receive = receiving({"type": "http.request", "body": body, "more_body": False})

    headers = [(b"content-type", media_type), (b"content-length", b"%d" % len(body))]
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": headers, "state": {}}
    await Observation(ProblemAnswers(endpoint, routes=[]), metrics=metrics, health=health)(scope, receive, send)
    return dict(sent[0]["headers"]), json.loads(sent[1]["body"]), admission


def test_before_the_warm_up_nothing_is_taken() -> None:
    headers, problem, _ = asyncio.run(post(is_warm=False))
    assert (problem["status"], problem["code"], headers[b"retry-after"]) == (503, "not_ready", b"1")


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
