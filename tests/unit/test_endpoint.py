"""Refusals of the endpoint that no caller can provoke from outside."""

import asyncio
import json
from typing import Any, cast

from service.api.cross_entropy import CrossEntropy
from service.api.health import Health
from service.api.middleware.observation import Observation
from service.api.middleware.problem_answers import ProblemAnswers
from service.api.negotiation import BodyLimits
from service.engine.admission import Admission
from service.engine.batcher import Batcher
from service.engine.evaluator import Evaluator
from service.errors import InsufficientDeviceMemory
from service.telemetry.metrics import Metrics

BODY = b'{"logits":[[1,2]],"labels":[0]}'


class FullDevice:
    """Stands where the evaluator does; its device has no memory left."""

    async def evaluate(self, *_: object, **__: object) -> None:
        raise InsufficientDeviceMemory("full")


async def post(*, is_warm: bool = True, waiting_bytes: int = 0) -> tuple[dict[bytes, bytes], dict[str, Any], Admission]:
    admission = Admission(max_inflight_bytes=1000, max_queue_s=0.01)
    if waiting_bytes:
        admission.enter("json", waiting_bytes)
    health = Health(cast(Batcher, None), is_warm=is_warm)
    endpoint = CrossEntropy(cast(Evaluator, FullDevice()), admission, BodyLimits(1000, 1000, 60.0), health)
    metrics = Metrics(version="1", device="cpu", reasons=["queue_time"], closers=["idle"])
    sent: list[Any] = []

    async def send(message: Any) -> None:  # noqa: ANN401 - ASGI's messages
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": BODY, "more_body": False}

    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]
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
