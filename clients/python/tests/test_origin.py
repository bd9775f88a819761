"""What a call says of where its samples come from, and that each request is counted once: on a server that records."""

import asyncio
import json
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import numpy as np
import pytest
import scripted
from scripted import Server

from losseval import AsyncClient, Client

LOGITS, LABELS = np.zeros((2, 3), np.float32), np.zeros(2, np.int64)
ARRAYS = np.zeros((6, 3), np.float32), np.zeros(6, np.int64)
NAMED: dict[str, Any] = {"model": "digits", "version": "3", "segment": "web"}
Perform = Callable[..., Any]


@pytest.fixture(params=["sync", "async"])
def perform(request: pytest.FixtureRequest) -> Perform:
    """``perform(url, "cross_entropy", …)`` on a new client of either kind that doesn't really wait."""

    def perform_sync(url: str, method: str, *args: Any, wire: Any = "binary", **options: Any) -> Any:
        with Client(url, wire=wire) as client:
            vars(client)["_sleep"] = lambda _: None
            returned = getattr(client, method)(*args, **options)
            return list(returned) if method == "evaluate_many" else returned

    async def perform_async(url: str, method: str, *args: Any, wire: Any = "binary", **options: Any) -> Any:
        async with AsyncClient(url, wire=wire) as client:
            vars(client)["_sleep"] = lambda _: asyncio.sleep(0)
            returned: Any = getattr(client, method)(*args, **options)
            return [result async for result in returned] if method == "evaluate_many" else await returned

    def run_async(*args: Any, **options: Any) -> Any:
        return asyncio.run(perform_async(*args, **options))

    return run_async if request.param == "async" else perform_sync


def queries(server: Server) -> list[dict[str, str]]:
    """The query parameters of each request."""
    targets = [exchange.head.split(" ")[1] for exchange in server.exchanges]
    return [
        {name: value for name, (value,) in parse_qs(urlsplit(one).query, strict_parsing=True).items()}
        for one in targets
    ]


def request_ids(server: Server) -> list[str]:
    return [exchange.header("x-request-id") for exchange in server.exchanges]


@pytest.mark.parametrize("name", ["digits", "a+b", "50% & more", "x=1?y#z", "a/b c", "grün 数字", "1,2", "true"])
def test_names_arrive_in_a_query_as_they_are(perform: Perform, name: str) -> None:
    with Server() as server:
        perform(server.url, "cross_entropy", LOGITS, LABELS, model=name, version="3", segment=name)
    assert queries(server) == [{"model": name, "version": "3", "segment": name}]


def test_json_has_them_as_fields() -> None:
    bodies: list[dict[str, Any]] = []

    def handle(request: httpx.Request) -> httpx.Response:
        assert not request.url.query
        bodies.append(json.loads(request.content))
        return httpx.Response(200, headers={"content-type": "application/x-safetensors"}, content=scripted.ANSWER)

    at = datetime(2026, 7, 1, 12, tzinfo=timezone.utc)
    with Client("http://host", wire="json", transport=httpx.MockTransport(handle)) as client:
        client.cross_entropy(LOGITS, LABELS, **NAMED, predicted_at=at, monitor=False)
        client.cross_entropy(LOGITS, LABELS, model=None, monitor=True)
    assert bodies[0].items() >= {**NAMED, "predicted_at": "2026-07-01T12:00:00+00:00", "monitor": False}.items()
    assert not bodies[1].keys() & {*NAMED, "predicted_at", "monitor"}


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        pytest.param({"monitor": False}, {"monitor": "false"}, id="not"),
        pytest.param({"monitor": np.False_}, {"monitor": "false"}, id="numpy"),
        pytest.param({"monitor": True, "model": None, "predicted_at": None}, {}, id="defaults"),
    ],
)
def test_monitor_is_sent_only_to_switch_it_off(given: dict[str, Any], sent: dict[str, str]) -> None:
    with Server() as server, Client(server.url) as client:
        client.cross_entropy(LOGITS, LABELS, **given)
    assert queries(server) == [sent] if sent else "?" not in server.exchanges[0].head.split(" ")[1]


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        pytest.param(
            datetime(2026, 7, 1, 14, 0, 0, 250_000, timezone(timedelta(hours=2))),
            "2026-07-01T12:00:00.250000+00:00",
            id="zone",
        ),
        pytest.param(  # Amsterdam's local mean time, which RFC 3339 can't write
            datetime(1900, 1, 1, tzinfo=timezone(timedelta(minutes=19, seconds=32))),
            "1899-12-31T23:40:28+00:00",
            id="seconds",
        ),
        pytest.param("2026-07-01T12:00:00-07:00", "2026-07-01T12:00:00-07:00", id="text"),
    ],
)
def test_a_time_keeps_its_instant(perform: Perform, given: Any, sent: str) -> None:
    with Server() as server:
        perform(server.url, "cross_entropy", LOGITS, LABELS, model="m", predicted_at=given)
    assert queries(server) == [{"model": "m", "predicted_at": sent}]


@pytest.mark.parametrize("wire", ["binary", "json"])
@pytest.mark.parametrize("method", ["cross_entropy", "evaluate_arrays"])
@pytest.mark.parametrize(
    "naive", [datetime.fromisoformat("2026-07-01"), np.datetime64("2026-07-01T00:00:00")], ids=repr
)
def test_a_time_without_a_zone_is_refused_before_anything_is_sent(
    perform: Perform, method: str, wire: str, naive: Any
) -> None:
    with Server() as server, pytest.raises(ValueError, match=r"no time zone: take datetime\.now\(timezone\.utc\), or"):
        perform(server.url, method, LOGITS, LABELS, wire=wire, model="m", predicted_at=naive)
    assert server.exchanges == []


@pytest.mark.parametrize("given", [None, "mine"])
def test_retries_of_a_call_have_its_request_id(perform: Perform, given: str | None) -> None:
    """After a connection that was lost, one that had gone stale, and refusals: the service counts the call once."""
    busy = scripted.problem(503, "overloaded")
    with Server(busy, scripted.hang_up, busy) as server:
        answered = perform(server.url, "cross_entropy", LOGITS, LABELS, **NAMED, request_id=given)
    sent = request_ids(server)
    assert len(sent) == 4
    assert len({*sent}) == 1
    assert answered.meta.request_id == sent[0]
    assert queries(server) == [NAMED] * 4


def test_calls_have_request_ids_of_their_own(perform: Perform) -> None:
    with Server() as server:
        perform(server.url, "evaluate_many", [(LOGITS, LABELS)] * 5, **NAMED)
    assert len({*request_ids(server)}) == 5
    assert queries(server) == [NAMED] * 5


def test_batches_under_one_request_id_are_numbered_and_their_own_arguments_go_before(perform: Perform) -> None:
    batches: list[Any] = [(LOGITS, LABELS), {"logits": LOGITS, "labels": LABELS, "segment": "app", "request_id": "own"}]
    with Server() as server:
        perform(server.url, "evaluate_many", [*batches, batches[0]], max_in_flight=1, **NAMED, request_id="run")
    assert request_ids(server) == ["run.0", "own", "run.2"]
    assert [one["segment"] for one in queries(server)] == ["web", "app", "web"]


@pytest.mark.parametrize("given", [None, "run"])
def test_parts_of_arrays_are_told_apart_and_their_retries_are_not(perform: Perform, given: str | None) -> None:
    with Server(scripted.answer(), scripted.problem(503, "overloaded"), scripted.hang_up) as server:
        perform(server.url, "evaluate_arrays", *ARRAYS, chunk_bytes=24, max_in_flight=1, **NAMED, request_id=given)
    sent = request_ids(server)
    assert len(sent) == 5
    assert sent[1] == sent[2] == sent[3]
    assert [one.rpartition(".")[2] for one in dict.fromkeys(sent)] == ["0", "1", "2"]
    assert {one.rpartition(".")[0] for one in sent} == ({given} if given else {sent[0].rpartition(".")[0]})
    assert all(one.items() == {**NAMED, "reduction": "sum"}.items() for one in queries(server))


def test_two_evaluations_of_arrays_have_no_request_id_in_common(perform: Perform) -> None:
    with Server() as server:
        for _ in range(2):
            perform(server.url, "evaluate_arrays", *ARRAYS, chunk_bytes=24, **NAMED)
    assert len({*request_ids(server)}) == 6


@pytest.mark.parametrize("given", ["a b", "a:1", "ü", "x" * 65])
def test_a_request_id_that_the_service_would_replace_is_refused(perform: Perform, given: str) -> None:
    with Server() as server, pytest.raises(ValueError, match="request_id must be at most 64 letters, digits"):
        perform(server.url, "cross_entropy", LOGITS, LABELS, request_id=given)
    assert server.exchanges == []
