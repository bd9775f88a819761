"""OpenTelemetry spans, made of what is noted anyway once a request is over; needs the extra `otel`."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import Tracer, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import SpanContext, SpanKind, StatusCode
from opentelemetry.util.types import AttributeValue

from .. import __version__
from .metrics import METHODS
from .record import GONE, BatchRecord, RequestRecord

_LONGEST = 256
"""Characters kept of what a caller can make as long as it likes."""


class Traces:
    """Makes one span for each request, with its stages, linked to the span of the batch that computed it."""

    def __init__(self, provider: TracerProvider | None = None, *, clock: Callable[[], float]) -> None:
        """Without a provider, makes one that samples, and is named, as the OTEL_… variables say.

        Args:
            provider: Takes the spans.
            clock: The engine's.
        """
        self.provider = provider or TracerProvider(resource=_resource())
        self._clock = clock
        self._tracer = self.provider.get_tracer("losseval", __version__)
        self._batch_tracer = self.provider.get_tracer("losseval.batch", __version__)
        # It is asked only for batches that a sampled request refers to: none of them must be missing.
        if isinstance(self._batch_tracer, Tracer):
            self._batch_tracer.sampler = ALWAYS_ON

    def request(self, scope: Mapping[str, Any], record: RequestRecord) -> None:
        """Makes the spans of a request that is over, and notes its trace in the record if it is sampled."""
        now, running_s, engine_now = time.time_ns(), time.perf_counter() - record.started, self._clock()
        started = now - _ns(running_s)
        headers = _texts(scope)
        parent = propagate.extract(headers)
        known = record.method in METHODS
        name = " ".join([record.method if known else "HTTP", *([record.route] if record.route != "other" else [])])
        span = self._tracer.start_span(name, parent, SpanKind.SERVER, start_time=started)
        context = span.get_span_context()
        if not context.trace_flags.sampled:
            return
        record.trace_id, record.is_sampled = trace.format_trace_id(context.trace_id), True
        attributes = _attributes(scope, record, headers)
        span.set_attributes({key: value for key, value in attributes.items() if value is not None})
        if "error.type" in attributes:
            span.set_status(StatusCode.ERROR)
        if record.batch is not None:
            epoch = now - _ns(engine_now)
            span.add_link(self._span_of(record.batch, epoch))
            inside = trace.set_span_in_context(span, parent)
            for stage, begun, ended in _stages(record, record.batch, started, epoch):
                self._tracer.start_span(stage, inside, start_time=begun).end(ended)
        span.end(started + _ns(record.duration_s))

    def _span_of(self, batch: BatchRecord, epoch: int) -> SpanContext:
        """Returns the span that all requests of the batch refer to; it belongs to the trace of none of them."""
        if batch.span is None:
            attributes: dict[str, AttributeValue] = {
                "losseval.batch.requests": batch.requests,
                "losseval.batch.rows": batch.rows,
                "losseval.batch.elements": batch.elements,
                "losseval.batch.closed_by": batch.closed_by,
            }
            begun = epoch + _ns(batch.started)
            span = self._batch_tracer.start_span("batch", Context(), attributes=attributes, start_time=begun)
            span.end(epoch + _ns(batch.ended))
            batch.span = span.get_span_context()
        return cast(SpanContext, batch.span)


def _resource() -> Resource:
    own = Resource.create({SERVICE_NAME: "losseval", SERVICE_VERSION: __version__})
    return own.merge(
        OTELResourceDetector().detect()
    )  # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES have the last word


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def _texts(scope: Mapping[str, Any]) -> dict[str, list[str]]:
    headers: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
    return headers


def _stages(record: RequestRecord, batch: BatchRecord, started: int, epoch: int) -> Iterator[tuple[str, int, int]]:
    """Yields stages with their beginnings and ends; both ways of a transfer are drawn as one, before the computing."""
    lengths = {name: _ns(milliseconds / 1e3) for name, milliseconds in record.stages_ms.items()}
    taken = epoch + _ns(batch.started)
    queued = taken - lengths["queue"]
    begins = {
        "decode": queued - lengths["decode"],
        "queue": queued,
        "transfer": taken,
        "compute": taken + lengths.get("transfer", 0),
        "encode": started + _ns(record.encoded_s) - lengths["encode"],
    }
    return ((name, begins[name], begins[name] + length) for name, length in lengths.items())


def _attributes(
    scope: Mapping[str, Any], record: RequestRecord, headers: Mapping[str, list[str]]
) -> dict[str, AttributeValue | None]:
    """Returns what the conventions for HTTP servers ask for, and what is the service's own; None for nothing.

    See https://opentelemetry.io/docs/specs/semconv/http/http-spans/.
    """
    known = record.method in METHODS
    server, client = scope.get("server") or (None, None), scope.get("client") or (None, None)
    attributes: dict[str, AttributeValue | None] = {
        "http.request.method": record.method if known else "_OTHER",
        "http.request.method_original": None if known else record.method[:_LONGEST],
        "http.route": record.route if record.route != "other" else None,
        "http.response.status_code": record.status if record.status != GONE else None,
        "http.request.body.size": record.received_bytes,
        "http.response.body.size": record.sent_bytes,
        "url.scheme": scope.get("scheme", "http"),
        "url.path": scope["path"][:_LONGEST],
        "url.query": scope.get("query_string", b"")[:_LONGEST].decode("latin-1") or None,
        "network.protocol.version": scope.get("http_version"),
        "server.address": server[0],
        "server.port": server[1],
        "client.address": client[0],
        "user_agent.original": headers.get("user-agent", [""])[0][:_LONGEST] or None,
        "losseval.request_id": record.request_id,
        "losseval.code": record.code,
        "losseval.wire": record.wire,
    }
    if record.batch is not None:
        attributes |= {"losseval.rows": record.rows, "losseval.classes": record.classes}
    if record.status >= GONE:  # an error of the caller's is none of the service's
        attributes["error.type"] = record.code or "client_disconnected"
    return attributes
