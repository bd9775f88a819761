"""The short way to a refusal gives what the long way gives."""

import asyncio
import json
import re
from typing import Any, cast, get_args

import pytest
from starlette.types import Message, Receive, Scope, Send

from service.api.health import Health
from service.api.middleware.authentication import Authentication
from service.api.middleware.early_refusal import EarlyRefusal
from service.api.middleware.observation import Observation
from service.api.middleware.problem_answers import ProblemAnswers
from service.api.negotiation import BodyLimits
from service.engine.admission import Admission, Reason, Wire
from service.keys import KeyRing
from service.telemetry.metrics import Metrics
from tests.unit.fakes import receiving

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
    """A service with more work than it takes on; `passed` counts the requests that went the long way."""

    def __init__(self, *, waiting_bytes: int = 10**9, held_bytes: int = 0, keys: Keys | None = None) -> None:
        self.metrics = Metrics(
            version="1", device="cpu", wires=get_args(Wire), reasons=get_args(Reason), closers=["idle"]
        )
        self.admission = Admission(1000, max_queue_s=1.0, metrics=self.metrics)
        self.admission.enter("json", waiting_bytes)
        self.admission.inflight_bytes = held_bytes
        self.replica = Replica()
        self.passed = 0
        observed = Observation(ProblemAnswers(self.refuse, routes=[]), metrics=self.metrics, health=self.replica)
        self.long_way = observed
        self.short_way = EarlyRefusal(
            observed,
            path="/v1/cross-entropy",
            authentication=Authentication(observed, keys=cast(KeyRing, keys), routes=[]) if keys else None,
            admission=self.admission,
            limits=BodyLimits(1000, 1000, 60.0),
            metrics=self.metrics,
            health=cast(Health, self.replica),
        )

    async def refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.passed += 1
        self.admission.check_queue("json", 31, remaining_s=float(dict(scope["headers"]).get(b"x-request-timeout", 60)))
        self.admission.reserve("json", 31).release()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    def ask(
        self,
        *,
        is_short: bool = True,
        path: str = "/v1/cross-entropy",
        method: str = "POST",
        headers: Headers = HEADERS,
    ) -> tuple[int, dict[bytes, bytes], dict[str, Any]]:
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": headers, "state": {}}
        way = self.short_way if is_short else self.long_way
        asyncio.run(way(scope, receiving(), send))
        return sent[0]["status"], dict(sent[0]["headers"]), json.loads(sent[1]["body"])


def without_ids(headers: dict[bytes, bytes], problem: dict[str, Any]) -> tuple[object, object]:
    return (
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
    status, headers, problem = service.ask(headers=HEADERS + extra)
    assert service.passed == 0
    long_status, long_headers, long_problem = service.ask(headers=HEADERS + extra, is_short=False)
    assert (status, long_status) == (expected[0], expected[0])
    assert f'rejected_requests_total{{reason="{expected[1]}"}} 2.0' in service.metrics.exposition("")[0].decode()
    assert without_ids(headers, problem) == without_ids(long_headers, long_problem)
    assert problem["request_id"] == headers[b"x-request-id"].decode()
    assert (problem["request_id"] == "mine-1") == (long_problem["request_id"] == "mine-1")
    assert re.fullmatch(r"urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", problem["instance"])


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param({"path": "/livez"}, id="another path"),
        pytest.param({"method": "GET"}, id="another method"),
        pytest.param({"headers": [(b"content-type", b"text/csv"), (b"content-length", b"31")]}, id="415 comes first"),
        pytest.param({"headers": [*HEADERS, (b"accept", b"text/csv")]}, id="406 comes first"),
        pytest.param({"headers": [HEADERS[0], (b"content-length", b"1001")]}, id="413 comes first"),
        pytest.param({"headers": [*HEADERS, (b"x-request-timeout", b"soon")]}, id="400 comes first"),
    ],
)
def test_everything_else_goes_the_long_way(asked: dict[str, Any]) -> None:
    service = Overloaded()
    service.ask(**asked)
    assert service.passed == 1


@pytest.mark.parametrize(("key", "passed"), [(b"good", 0), (b"bad", 1), (b"", 1)])
def test_with_keys_a_401_comes_first(key: bytes, passed: int) -> None:
    service = Overloaded(keys=Keys())
    service.ask(headers=[*HEADERS, (b"x-api-key", key)])
    assert service.passed == passed


@pytest.mark.parametrize("waiting_bytes", [0, 10**7, 7 * 10**7], ids=["nothing", "little", "much, but it fits"])
@pytest.mark.parametrize("held_bytes", [0, 380], ids=["free", "just enough left"])
def test_what_is_not_to_be_refused_goes_the_long_way(waiting_bytes: int, held_bytes: int) -> None:
    service = Overloaded(waiting_bytes=waiting_bytes, held_bytes=held_bytes)
    assert service.ask()[0] == 200
    assert service.admission.inflight_bytes == held_bytes


def test_refusals_are_counted_one_by_one_and_logged_once(capsys: pytest.CaptureFixture[str]) -> None:
    service = Overloaded()
    for _ in range(3):
        service.ask()
    service.ask(headers=[(b"content-type", b"application/x-safetensors"), (b"content-length", b"31")])
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
    service.ask()
    assert service.passed == 1
