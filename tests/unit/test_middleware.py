"""What the layers around the endpoints do when something below them fails."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from service.api import info
from service.api.middleware.observation import Observation
from service.api.middleware.problem_answers import ProblemAnswers
from service.telemetry.metrics import Metrics
from tests.unit.fakes import FakeClock

SECRET = "tensor 0.123 and key abc"


class Health:
    is_draining = False


async def receive() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


async def answer(failing: Any, *, draining: bool = False) -> tuple[list[dict[str, Any]], Metrics]:  # noqa: ANN401
    """Sends one request through the layers to an application that fails."""
    metrics = Metrics(version="1", device="cpu", wires=["json"], reasons=["bytes"], closers=["idle"])
    health = Health()
    health.is_draining = draining
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:  # noqa: ANN401 - ASGI's messages
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/x", "headers": [(b"x-request-id", b"mine")], "state": {}}
    await Observation(ProblemAnswers(failing, routes=[]), metrics=metrics, health=health)(scope, receive, send)
    return sent, metrics


async def fails_at_once(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError(SECRET)


async def fails_half_way(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    raise RuntimeError(SECRET)


async def goes_well(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"good"})


def test_a_bug_is_answered_with_the_request_id_and_nothing_else() -> None:
    sent, metrics = asyncio.run(answer(fails_at_once))
    document = json.loads(sent[1]["body"])
    assert (sent[0]["status"], document["code"], document["request_id"]) == (500, "internal_error", "mine")
    assert SECRET not in json.dumps(document)
    count = metrics.registry.get_sample_value
    assert count("losseval_http_requests_total", {"method": "POST", "route": "other", "code": "500"}) == 1
    assert count("losseval_http_requests_in_flight") == 0


def test_a_bug_half_way_closes_the_connection_instead_of_answering_twice() -> None:
    with pytest.raises(RuntimeError):
        asyncio.run(answer(fails_half_way))


@pytest.mark.parametrize("draining", [False, True])
def test_answers_close_their_connections_while_draining(draining: bool) -> None:
    sent, _ = asyncio.run(answer(goes_well, draining=draining))
    assert ((b"connection", b"close") in sent[0]["headers"]) == draining
    assert (b"x-request-id", b"mine") in sent[0]["headers"]


def test_the_duration_ends_with_the_answer_and_not_with_what_is_done_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    monkeypatch.setattr("service.api.middleware.observation.time.perf_counter", clock)

    async def works_on(scope: Scope, receive: Receive, send: Send) -> None:
        clock.now += 0.25
        await goes_well(scope, receive, send)
        clock.now += 60

    _, metrics = asyncio.run(answer(works_on))
    duration = metrics.registry.get_sample_value("losseval_http_request_duration_seconds_sum", {"route": "other"})
    assert duration == 0.25


def test_a_scrape_does_not_wait_for_a_hung_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.api.info._SETTLE_TIMEOUT_S", 0.01)
    metrics = Metrics(version="1", device="cpu", wires=["json"], reasons=["bytes"], closers=["idle"])

    async def never() -> None:
        await asyncio.Event().wait()

    async def scrape() -> httpx.Response:
        app = FastAPI()
        app.include_router(info.router(device="cpu", limits={}, metrics=metrics, settle=never))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await asyncio.wait_for(client.get("/metrics"), 10)

    assert "losseval_build_info" in asyncio.run(scrape()).text
