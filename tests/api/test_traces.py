"""Traces of the real service, received as a collector receives them: OTLP over HTTP."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.calls import EXAMPLE, PATH, post, post_tensors
from tests.conftest import StartServer
from tests.crowd import Crowd
from tests.server import Server, find_free_port
from tests.wire import encode

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


class Collector(ThreadingHTTPServer):
    """Keeps what is exported to it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.requests: list[tuple[str, ExportTraceServiceRequest]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def spans(self) -> list[Span]:
        """All spans, of all scopes."""
        return [
            span
            for _, export in self.requests
            for resource in export.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


class Receiver(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.requests.append((self.path, ExportTraceServiceRequest.FromString(body)))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def collecting() -> Iterator[Collector]:
    with Collector() as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        try:
            yield listening
        finally:
            listening.shutdown()
            thread.join()


@contextmanager
def tracing_to(url: str, start_server: StartServer, **variables: str) -> Iterator[Server]:
    """A service that exports to a collector; everything is there when it has ended."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {"OTEL_EXPORTER_OTLP_ENDPOINT": url, **variables}.items():
            environment.setenv(name, value)
        with start_server(device="cpu") as server:
            yield server


@pytest.fixture(scope="module")
def collector(start_server: StartServer) -> Iterator[Collector]:
    """What the collector has of a service's whole life."""
    with collecting() as listening:
        with tracing_to(listening.url, start_server) as server:
            with httpx.Client(base_url=server.url, timeout=30) as client:
                post(client, EXAMPLE, traceparent=f"00-{TRACE}-00f067aa0ba902b7-01")
                tensors = {"logits": np.zeros((2, 3), np.float32), "labels": np.zeros(2, np.int64)}
                post_tensors(client, {**tensors, "reduction": "sum"})
                for path in ("/v1/info", "/metrics", "/nowhere"):
                    client.get(path)
            with Crowd(server.port) as crowd:
                # How many of them the server finds together is chance.
                while not any(one.companions == 3 for one in crowd.fire([encode(EXAMPLE)] * 3)):
                    pass
        yield listening


def attributes(span: Span) -> dict[str, object]:
    return {one.key: one.value.string_value or one.value.int_value for one in span.attributes}


def served(collector: Collector) -> list[Span]:
    return [span for span in collector.spans if span.kind == Span.SPAN_KIND_SERVER]


def test_each_request_is_exported_once(collector: Collector) -> None:
    assert {path for path, _ in collector.requests} == {"/v1/traces"}
    resource = collector.requests[0][1].resource_spans[0].resource
    assert {one.key: one.value.string_value for one in resource.attributes}["service.name"] == "losseval"
    names = [span.name for span in served(collector)]
    assert names[:4] == [f"POST {PATH}", f"POST {PATH}", "GET /v1/info", "GET"]
    assert set(names[4:]) == {f"POST {PATH}"}
    kinds = {span.name for span in collector.spans if span.kind == Span.SPAN_KIND_INTERNAL}
    assert kinds == {"decode", "queue", "compute", "encode", "batch"}


def test_an_evaluation_is_exported_with_its_stages_and_its_batch(collector: Collector) -> None:
    as_json, as_tensors, *_ = served(collector)
    assert as_json.trace_id.hex() == TRACE
    assert (attributes(as_json)["losseval.wire"], attributes(as_tensors)["losseval.wire"]) == ("json", "binary")
    assert attributes(as_tensors)["url.query"] == "reduction=sum"
    batches = {span.span_id for span in collector.spans if span.name == "batch"}
    for span in (as_json, as_tensors):
        stages = [one.name for one in collector.spans if one.parent_span_id == span.span_id]
        assert stages == ["decode", "queue", "compute", "encode"]
        assert [link.span_id in batches for link in span.links] == [True]


def test_requests_computed_together_refer_to_one_batch(collector: Collector) -> None:
    """A batch has as many requests as refer to it, and at least one has three."""
    references = [link.span_id for span in collector.spans for link in span.links]
    batches = [span for span in collector.spans if span.name == "batch"]
    counts = {span.span_id: attributes(span)["losseval.batch.requests"] for span in batches}
    assert counts == {batch: references.count(batch) for batch in counts}
    assert len(counts) == len(batches)
    assert set(references) == set(counts)
    assert 3 in counts.values()


def test_a_collector_that_is_away_costs_no_answer(start_server: StartServer) -> None:
    away = f"http://127.0.0.1:{find_free_port()}"
    with (
        tracing_to(away, start_server, OTEL_EXPORTER_OTLP_TIMEOUT="1") as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):
        assert post(client, EXAMPLE).status_code == httpx.codes.OK
