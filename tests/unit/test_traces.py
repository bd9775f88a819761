"""Spans of requests that go through the layers, the endpoint and the batcher, collected in memory."""

import asyncio
import itertools
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import pytest
import structlog
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace import SpanKind, StatusCode
from starlette.types import Message, Receive, Scope, Send

from service.api.cross_entropy import PATH, CrossEntropy
from service.api.health import Health
from service.api.middleware.observation import Observation
from service.api.middleware.problem_answers import ProblemAnswers
from service.api.negotiation import BodyLimits
from service.app import create_app
from service.engine.admission import Admission
from service.engine.batch_plan import BatchLimits
from service.engine.batcher import Batcher, DeviceRows
from service.engine.device import TorchDevice
from service.engine.evaluator import Evaluator
from service.engine.monitor import Monitor
from service.loss.evaluation import Evaluation
from service.loss.validation import SizeLimits
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.telemetry.record import BatchRecord, RequestRecord
from service.telemetry.traces import Traces
from tests.unit.fakes import receiving, settle

BODY = b'{"logits":[[1,2,3],[3,2,1]],"labels":[0,1]}'
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
SLACK_NS = 1_000_000
"""Stages are noted in whole microseconds, and clocks are read one after the other."""


class GatedDevice:
    """The CPU, once its gate is open."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self._device = TorchDevice("cpu", threads=1)

    async def run(self, evaluations: Sequence[Evaluation]) -> DeviceRows:
        await self.gate.wait()
        return await self._device.run(evaluations)


class Service:
    """All of the service but the framework and the socket, with its spans in memory."""

    def __init__(self, *, ratio: float = 1.0) -> None:
        self.metrics = Metrics(version="1", device="cpu", wires=["json", "binary"], reasons=[], closers=["idle"])
        self.device = GatedDevice()
        limits = BatchLimits(1 << 20, 100)
        self.batcher = Batcher(self.device, limits, clock=time.monotonic, metrics=self.metrics)
        self.health = Health(self.batcher, is_warm=True)
        endpoint = CrossEntropy(
            Evaluator(self.batcher, SizeLimits()),
            admission=Admission(1 << 20, 10.0),
            limits=BodyLimits(1 << 20, 1 << 20, 60.0),
            health=self.health,
            monitor=Monitor(self.device, self.metrics.models),
            models=self.metrics.models,
        )
        self._spans = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=ParentBasedTraceIdRatio(ratio))
        self.provider.add_span_processor(SimpleSpanProcessor(self._spans))
        self._trace = Traces(self.provider, clock=time.monotonic).request
        self.app = self.around(endpoint)

    def around(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> Observation:
        """An application within the layers."""
        answers = ProblemAnswers(app, routes=[])
        return Observation(answers, metrics=self.metrics, health=self.health, trace=self._trace)

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        return self._spans.get_finished_spans()

    @property
    def requests(self) -> list[ReadableSpan]:
        return [span for span in self.spans if span.kind is SpanKind.SERVER]

    def children(self, parent: ReadableSpan) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self.spans if span.parent and span.parent.span_id == id_of(parent)}


def id_of(span: ReadableSpan) -> int:
    assert span.context
    identity: int = span.context.span_id
    return identity


def attributes(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


def times(span: ReadableSpan) -> tuple[int, int]:
    assert span.start_time
    assert span.end_time
    return span.start_time, span.end_time


async def send(app: Observation, body: bytes = BODY, **others: Any) -> list[Message]:  # noqa: ANN401 - parts of a scope
    """Sends a request; keyword arguments are parts of its scope, or headers."""
    given: Mapping[str, str] = others.pop("headers", {})
    headers = {"content-type": "application/json", "content-length": str(len(body)), "user-agent": "test", **given}
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": PATH,
        "query_string": b"",
        "server": ("10.0.0.1", 8000),
        "client": ("10.0.0.2", 5555),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        **others,
    }
    sent: list[Message] = []

    async def take(message: Message) -> None:
        sent.append(message)

    await app(scope, receiving({"type": "http.request", "body": body}), take)
    return sent


def run(scenario: Callable[[Service], Awaitable[None]], *, ratio: float = 1.0) -> Service:
    """Plays a scenario against a service whose device is ready."""

    async def play() -> Service:
        service = Service(ratio=ratio)
        service.device.gate.set()
        service.batcher.start()
        await scenario(service)
        await service.batcher.close()
        return service

    return asyncio.run(play())


async def once(service: Service, **others: Any) -> None:  # noqa: ANN401 - as above
    await send(service.app, **others)


def test_a_request_is_a_server_span_that_says_what_it_was() -> None:
    async def scenario(service: Service) -> None:
        await once(service, headers={"x-request-id": "mine"}, query_string=b"")

    (span,) = run(scenario).requests
    assert (span.name, span.parent, span.status.status_code) == ("POST /v1/cross-entropy", None, StatusCode.UNSET)
    assert attributes(span) == {
        "http.request.method": "POST",
        "http.route": "/v1/cross-entropy",
        "http.response.status_code": 200,
        "http.request.body.size": len(BODY),
        "http.response.body.size": attributes(span)["http.response.body.size"],
        "url.scheme": "http",
        "url.path": "/v1/cross-entropy",
        "network.protocol.version": "1.1",
        "server.address": "10.0.0.1",
        "server.port": 8000,
        "client.address": "10.0.0.2",
        "user_agent.original": "test",
        "losseval.request_id": "mine",
        "losseval.wire": "json",
        "losseval.rows": 2,
        "losseval.classes": 3,
    }


def test_stages_follow_one_another_within_their_request() -> None:
    service = run(once)
    (request,) = service.requests
    stages = service.children(request)
    assert list(stages) == ["decode", "queue", "compute", "encode"]
    begun, ended = times(request)
    in_order = [begun, *(moment for stage in stages.values() for moment in times(stage)), ended]
    assert all(first <= second + SLACK_NS for first, second in itertools.pairwise(in_order)), in_order


def test_stages_stand_where_they_were() -> None:
    """A request of ten seconds, five seconds into which its batch was begun."""
    service = Service()
    record = RequestRecord("id", "POST", time.perf_counter() - 10, status=200, duration_s=10.0, encoded_s=9.0)
    record.batch = BatchRecord(1, 1, 1, "idle", started=95.0, ended=98.0)
    record.stages_ms = {"decode": 1000.0, "queue": 2000.0, "compute": 1500.0, "transfer": 500.0, "encode": 1000.0}
    Traces(service.provider, clock=lambda: 100.0).request({"path": "/", "headers": []}, record)
    (request,) = service.requests
    spans = {"request": request, "batch": next(one for one in service.spans if one.name == "batch")}
    origin = times(request)[0]
    found = {
        name: [(moment - origin) / 1e9 for moment in times(span)]
        for name, span in (spans | service.children(request)).items()
    }
    expected: dict[str, list[float]] = {
        "request": [0, 10],
        "batch": [5, 8],
        "decode": [2, 3],
        "queue": [3, 5],
        "transfer": [5, 5.5],
        "compute": [5.5, 7],
        "encode": [8, 9],
    }
    assert found.keys() == expected.keys()
    for name, moments in expected.items():
        assert found[name] == pytest.approx(moments, abs=0.1), name


def test_three_requests_of_one_batch_refer_to_its_span() -> None:
    async def together(service: Service) -> None:
        service.device.gate.clear()
        first = asyncio.ensure_future(send(service.app))
        await settle()
        others = [asyncio.ensure_future(send(service.app)) for _ in range(3)]
        await settle()
        service.device.gate.set()
        await asyncio.gather(first, *others)

    service = run(together)
    batches = {id_of(span): span for span in service.spans if span.name == "batch"}
    used = [batches[link.context.span_id] for request in service.requests for link in request.links]
    assert [attributes(batch)["losseval.batch.requests"] for batch in used] == [1, 3, 3, 3]
    assert len(batches) == 2
    shared = used[-1]
    assert (attributes(shared)["losseval.batch.rows"], attributes(shared)["losseval.batch.elements"]) == (6, 18)
    assert attributes(shared)["losseval.batch.closed_by"] == "idle"
    assert shared.parent is None
    for request in service.requests[1:]:
        compute = times(service.children(request)["compute"])
        assert times(shared)[0] <= compute[0] + SLACK_NS
        assert compute[1] <= times(shared)[1] + SLACK_NS


def test_the_caller_s_trace_goes_on() -> None:
    async def scenario(service: Service) -> None:
        await once(service, headers={"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"})

    (span,) = run(scenario, ratio=0.0).requests
    assert span.context
    assert span.parent
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, PARENT)
    assert span.context.trace_state.to_header() == "vendor=1"


def test_an_unsampled_request_leaves_its_caller_s_trace_in_the_log_and_nothing_else() -> None:
    async def scenario(service: Service) -> None:
        await once(service, headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})

    with structlog.testing.capture_logs() as lines:
        service = run(scenario)
    assert service.spans == ()
    assert [line["trace_id"] for line in lines if line["event"] == "request"] == [TRACE]
    assert TRACE not in exposition(service)


def test_without_a_parent_log_and_exemplar_name_the_request_s_own_trace() -> None:
    with structlog.testing.capture_logs() as lines:
        service = run(once)
    (span,) = service.requests
    assert span.context
    trace_id = f"{span.context.trace_id:032x}"
    assert [line["trace_id"] for line in lines if line["event"] == "request"] == [trace_id]
    assert f'trace_id="{trace_id}"' in exposition(service)


def test_a_trace_that_nobody_keeps_is_not_named() -> None:
    with structlog.testing.capture_logs() as lines:
        service = run(once, ratio=0.0)
    assert service.spans == ()
    assert not any("trace_id" in line for line in lines)
    assert "trace_id" not in exposition(service)


def test_a_batch_is_there_whenever_a_request_of_it_is() -> None:
    """The sampler decides about requests; a batch, which is no part of their traces, has no say of its own."""

    async def two(service: Service) -> None:
        service.device.gate.clear()
        first = asyncio.ensure_future(send(service.app))
        await settle()
        kept = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        others = [asyncio.ensure_future(send(service.app, headers=one)) for one in ({}, kept)]
        await settle()
        service.device.gate.set()
        await asyncio.gather(first, *others)

    service = run(two, ratio=0.0)
    (request,) = service.requests
    (batch,) = [span for span in service.spans if span.name == "batch"]
    assert [link.context.span_id for link in request.links] == [id_of(batch)]
    assert attributes(batch)["losseval.batch.requests"] == 2


def test_the_caller_s_errors_are_none_of_the_service_s() -> None:
    async def scenario(service: Service) -> None:
        await send(service.app, b"{")

    (span,) = run(scenario).requests
    assert (attributes(span)["http.response.status_code"], attributes(span)["losseval.code"]) == (400, "malformed_json")
    assert (span.status.status_code, "error.type" in attributes(span)) == (StatusCode.UNSET, False)
    assert not span.links


def test_a_bug_makes_a_failed_span_that_tells_nothing_of_its_cause() -> None:
    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("secret")

    async def scenario(service: Service) -> None:
        await send(service.around(fails), method="BREW", path="/" + "x" * 9999)

    (span,) = run(scenario).requests
    found = attributes(span)
    assert (span.name, span.status.status_code, found["error.type"]) == ("HTTP", StatusCode.ERROR, "internal_error")
    assert (found["http.request.method"], found["http.request.method_original"]) == ("_OTHER", "BREW")
    assert len(str(found["url.path"])) == 256
    assert "secret" not in span.to_json()


def test_a_caller_that_goes_gets_no_status() -> None:
    async def leaves(scope: Scope, receive: Receive, send: Send) -> None:
        return

    async def scenario(service: Service) -> None:
        await send(service.around(leaves))

    (span,) = run(scenario).requests
    assert attributes(span)["error.type"] == "client_disconnected"
    assert "http.response.status_code" not in attributes(span)


def test_probes_and_scrapes_are_not_traced() -> None:
    async def answers(scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = type("Route", (), {"path": scope["path"]})
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def scenario(service: Service) -> None:
        for path in ("/livez", "/readyz", "/metrics", "/v1/info"):
            await send(service.around(answers), method="GET", path=path)

    assert [span.name for span in run(scenario).requests] == ["GET /v1/info"]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        pytest.param({}, ("losseval", None), id="own name"),
        pytest.param({"OTEL_SERVICE_NAME": "mine"}, ("mine", None), id="name"),
        pytest.param(
            {"OTEL_RESOURCE_ATTRIBUTES": "service.name=other,team=blue"}, ("other", "blue"), id="resource attributes"
        ),
    ],
)
def test_the_operator_names_the_service(
    variables: dict[str, str], expected: tuple[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = Traces(clock=time.monotonic).provider.resource.attributes
    assert (found["service.name"], found.get("team")) == expected


ENDPOINTS = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"]


def warnings_at_start() -> list[Any]:
    with structlog.testing.capture_logs() as lines:
        create_app(Settings(device="cpu", threads=1))
    return [line for line in lines if line["log_level"] == "warning"]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_collector_without_the_extra_is_one_warning_that_says_what_to_install(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(endpoint, "http://collector:4318")
    monkeypatch.delitem(sys.modules, "service.telemetry.traces")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)  # what is not there can't be imported
    (line,) = warnings_at_start()
    assert "pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http" in line["event"]


def test_without_a_collector_the_extra_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    for endpoint in ENDPOINTS:
        monkeypatch.delenv(endpoint, raising=False)
    monkeypatch.delitem(sys.modules, "service.telemetry.traces")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    assert warnings_at_start() == []


def exposition(service: Service) -> str:
    return service.metrics.exposition("application/openmetrics-text; version=1.0.0")[0].decode()
