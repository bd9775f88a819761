"""The short way to a refusal gives what the long way gives."""

import asyncio
import json
import re
from typing import Any, cast, get_args

import pytest
from starlette.types import Message, Receive, Scope, Send

from service.api.early_refusal import DRAINED, EarlyRefusal, Refusal
from service.api.health import Health
from service.api.middleware.observation import Observation
from service.api.middleware.problem_answers import ProblemAnswers
from service.api.negotiation import BodyLimits
from service.engine.admission import Admission, Reason, Wire
from service.keys import KeyRing
from service.telemetry.metrics import Metrics
from tests.unit.fakes import receiving

PATH = "/v1/cross-entropy"
Headers = list[tuple[bytes, bytes]]
HEADERS: Headers = [(b"content-type", b"application/json"), (b"content-length", b"31")]


class Replica:
    """All that the layers ask of health."""

    is_draining = False
    computes = True


class Keys:
    """A ring with one key."""

    def holder_of(self, key: bytes) -> str | None:
        return "someone" if key == b"good" else None


class Overloaded:
    """A service with more work than it takes on, and both ways of refusing."""

    def __init__(self, *, waiting_bytes: int = 10**9, held_bytes: int = 0, keys: Keys | None = None) -> None:
        self.metrics = Metrics(
            version="1", device="cpu", wires=get_args(Wire), reasons=get_args(Reason), closers=["idle"]
        )
        self.admission = Admission(1000, max_queue_s=1.0, metrics=self.metrics)
        self.admission.enter("json", waiting_bytes)
        self.admission.inflight_bytes = held_bytes
        self.replica = Replica()
        self.long_way = Observation(ProblemAnswers(self.refuse, routes=[]), metrics=self.metrics, health=self.replica)
        self.short_way = EarlyRefusal(
            PATH,
            keys=cast(KeyRing, keys) if keys else None,
            admission=self.admission,
            limits=BodyLimits(1000, 1000, 60.0),
            ignored_bytes=500,
            metrics=self.metrics,
            health=cast(Health, self.replica),
        )

    async def refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.admission.check_queue("json", 31, remaining_s=float(dict(scope["headers"]).get(b"x-request-timeout", 60)))
        self.admission.reserve("json", 31).release()

    def refused(
        self, *, target: str = PATH, method: str = "POST", headers: Headers = HEADERS, keeps_alive: bool = True
    ) -> Refusal | None:
        async def ask() -> Refusal | None:
            return self.short_way.consider(method.encode(), target.encode(), headers, keeps_alive=keeps_alive)

        return asyncio.run(ask())

    def refused_the_long_way(self, headers: Headers) -> Refusal:
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": PATH, "query_string": b"", "headers": headers, "state": {}}
        asyncio.run(self.long_way(scope, receiving(), send))
        start, body = sent
        closes = (b"connection", b"close") in start["headers"]
        return Refusal(start["status"], start["headers"], body["body"], closes, drains=True)


def without_ids(refusal: Refusal) -> tuple[object, ...]:
    headers, problem = dict(refusal.headers), json.loads(refusal.body)
    return (
        refusal.status,
        refusal.closes,
        {name: value for name, value in headers.items() if name != b"x-request-id"},
        {name: value for name, value in problem.items() if name not in {"instance", "request_id"}},
    )


@pytest.mark.parametrize("is_draining", [False, True])
@pytest.mark.parametrize(
    "extra",
    [
        pytest.param([], id="plain"),
        pytest.param([(b"x-request-id", b"mine-1")], id="named"),
        pytest.param([(b"x-request-id", b"not\xffmine")], id="badly named"),
        pytest.param([(b"expect", b"100-continue")], id="holds back its body"),
    ],
)
@pytest.mark.parametrize(
    ("why", "patience", "expected"),
    [
        pytest.param({}, b"60", (503, "queue_time"), id="queue time"),
        pytest.param({"waiting_bytes": 0, "held_bytes": 501}, b"60", (503, "bytes"), id="bytes"),
        pytest.param({"waiting_bytes": 7 * 10**7}, b"0.2", (504, "deadline"), id="deadline"),
    ],
)
def test_the_answer_is_that_of_the_long_way(
    why: dict[str, Any], patience: bytes, expected: tuple[int, str], extra: Headers, is_draining: bool
) -> None:
    service = Overloaded(**why)
    extra = [*extra, (b"x-request-timeout", patience)]
    service.replica.is_draining = is_draining
    refusal = service.refused(headers=HEADERS + extra)
    long_way = service.refused_the_long_way(HEADERS + extra)
    assert refusal is not None
    assert refusal.status == expected[0]
    assert f'rejected_requests_total{{reason="{expected[1]}"}} 2.0' in service.metrics.exposition("")[0].decode()
    assert without_ids(refusal) == without_ids(long_way)
    problem, long_problem = json.loads(refusal.body), json.loads(long_way.body)
    assert problem["request_id"] == dict(refusal.headers)[b"x-request-id"].decode()
    assert (problem["request_id"] == "mine-1") == (long_problem["request_id"] == "mine-1")
    assert re.fullmatch(r"urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", problem["instance"])


@pytest.mark.parametrize(
    ("length", "keeps_alive", "closes"),
    [
        pytest.param(500, True, False, id="all is read"),
        pytest.param(501, True, True, id="too long to be read for nothing"),
        pytest.param(31, False, True, id="the caller wants it"),
    ],
)
def test_a_connection_goes_on_when_little_is_left_of_the_request(
    length: int, *, keeps_alive: bool, closes: bool
) -> None:
    headers = [HEADERS[0], (b"content-length", b"%d" % length)]
    refusal = Overloaded().refused(headers=headers, keeps_alive=keeps_alive)
    assert refusal is not None
    assert refusal.closes == closes
    assert ((b"connection", b"close") in refusal.headers) == closes


def test_of_many_long_bodies_only_some_are_read_on() -> None:
    service, long = Overloaded(), [HEADERS[0], (b"content-length", b"501")]

    async def refuse(headers: Headers) -> bool:
        refusal = service.short_way.consider(b"POST", PATH.encode(), headers, keeps_alive=True)
        assert refusal is not None
        return refusal.drains

    async def scenario() -> None:
        assert all([await refuse(long) for _ in range(DRAINED)])
        assert not await refuse(long)
        assert await refuse(HEADERS), "a short one is no effort"
        assert await refuse([*long, (b"expect", b"100-continue")]), "one that isn't sent is none"
        service.short_way._write_log()
        assert await refuse(long)

    asyncio.run(scenario())


def test_a_query_makes_no_difference() -> None:
    assert Overloaded().refused(target=f"{PATH}?include=loss") is not None


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param({"target": "/livez"}, id="another path"),
        pytest.param({"target": "http://here/v1/cross-entropy"}, id="another form"),
        pytest.param({"headers": [HEADERS[0], (b"transfer-encoding", b"chunked")]}, id="of unknown length"),
        pytest.param({"method": "GET"}, id="another method"),
        pytest.param({"headers": [(b"content-type", b"text/csv"), (b"content-length", b"31")]}, id="415 comes first"),
        pytest.param({"headers": [*HEADERS, (b"accept", b"text/csv")]}, id="406 comes first"),
        pytest.param({"headers": [HEADERS[0], (b"content-length", b"1001")]}, id="413 comes first"),
        pytest.param({"headers": [*HEADERS, (b"x-request-timeout", b"soon")]}, id="400 comes first"),
    ],
)
def test_everything_else_goes_the_long_way(asked: dict[str, Any]) -> None:
    assert Overloaded().refused(**asked) is None


@pytest.mark.parametrize(("key", "is_known"), [(b"good", True), (b"bad", False), (b"", False)])
def test_with_keys_a_401_comes_first(key: bytes, *, is_known: bool) -> None:
    refusal = Overloaded(keys=Keys()).refused(headers=[*HEADERS, (b"x-api-key", key)])
    assert (refusal is not None) == is_known


@pytest.mark.parametrize("waiting_bytes", [0, 10**7, 7 * 10**7], ids=["nothing", "little", "much, but it fits"])
@pytest.mark.parametrize("held_bytes", [0, 380], ids=["free", "just enough left"])
def test_what_is_not_to_be_refused_goes_the_long_way(waiting_bytes: int, held_bytes: int) -> None:
    service = Overloaded(waiting_bytes=waiting_bytes, held_bytes=held_bytes)
    assert service.refused() is None
    assert service.admission.inflight_bytes == held_bytes


def test_refusals_are_counted_one_by_one_and_logged_once(capsys: pytest.CaptureFixture[str]) -> None:
    service = Overloaded()
    for _ in range(3):
        service.refused()
    service.refused(headers=[(b"content-type", b"application/x-safetensors"), (b"content-length", b"31")])
    text = service.metrics.exposition("")[0].decode()
    for line in (
        'losseval_http_requests_total{code="503",method="POST",route="/v1/cross-entropy"} 4.0',
        'losseval_rejected_requests_total{reason="queue_time"} 4.0',
        'losseval_evaluations_total{result="error",wire="json"} 3.0',
        'losseval_evaluations_total{result="error",wire="binary"} 1.0',
        'losseval_http_request_duration_seconds_count{route="/v1/cross-entropy"} 4.0',
    ):
        assert line in text
    service.short_way._write_log()
    out = capsys.readouterr().out
    assert out.count("requests refused") == 1
    assert "count=4" in out


def test_who_computes_nothing_says_so_the_long_way() -> None:
    service = Overloaded()
    service.replica.computes = False
    assert service.refused() is None
