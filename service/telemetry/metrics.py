"""Prometheus metrics, in a registry of their own for each application.

Labels take values from closed sets only: nothing a client sends becomes a label.
"""

import platform
from collections.abc import Callable, Iterable

import torch
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder

from .record import RequestRecord

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for every counter and histogram, which PromQL has no use for

_DURATIONS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_STAGE_DURATIONS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_STAGES = ("decode", "queue", "transfer", "compute", "encode")
_SIZES = tuple(1024.0 * 4**power for power in range(10))
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """All metrics of one application; `engine` reports through the narrow protocols it defines itself."""

    def __init__(self, *, version: str, device: str, reasons: Iterable[str], closers: Iterable[str]) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.http_requests = Counter(
            "losseval_http_requests_total", "Requests answered.", ("method", "route", "code"), registry=registry
        )
        self.http_duration = Histogram(
            "losseval_http_request_duration_seconds",
            "From a request's headers to the end of its answer.",
            ("route",),
            buckets=_DURATIONS,
            registry=registry,
        )
        self.http_in_flight = Gauge("losseval_http_requests_in_flight", "Requests being answered.", registry=registry)
        self.http_request_size = Histogram(
            "losseval_http_request_size_bytes", "Bodies received.", buckets=_SIZES, registry=registry
        )
        self.http_response_size = Histogram(
            "losseval_http_response_size_bytes", "Bodies sent.", buckets=_SIZES, registry=registry
        )
        self.stage_duration = Histogram(
            "losseval_stage_duration_seconds",
            "Time of an evaluation by stage.",
            ("stage",),
            buckets=_STAGE_DURATIONS,
            registry=registry,
        )
        self.evaluations = Counter(
            "losseval_evaluations_total",
            "Evaluations by wire format and result.",
            ("wire", "result"),
            registry=registry,
        )
        self.rows = Counter("losseval_rows_total", "Rows computed.", registry=registry)
        self.elements = Counter("losseval_elements_total", "Rows times classes computed.", registry=registry)
        self.batch_rows = Histogram(
            "losseval_batch_rows", "Rows of a batch.", buckets=tuple(4**power for power in range(11)), registry=registry
        )
        self.batch_requests = Histogram(
            "losseval_batch_requests",
            "Requests of a batch.",
            buckets=tuple(2**power for power in range(11)),
            registry=registry,
        )
        self.batches = Counter(
            "losseval_batches_total", "Batches computed, by what closed them.", ("closed_by",), registry=registry
        )
        self.queue_requests = Gauge("losseval_queue_requests", "Requests that wait for a batch.", registry=registry)
        self.queue_seconds = Gauge(
            "losseval_queue_seconds", "Estimated work of requests that arrived and are not answered.", registry=registry
        )
        self.rejections = Counter(
            "losseval_rejected_requests_total", "Requests refused for lack of capacity.", ("reason",), registry=registry
        )
        self.disconnects = Counter(
            "losseval_client_disconnects_total", "Callers that went before their answer.", ("phase",), registry=registry
        )
        build = Gauge("losseval_build_info", "1.", ("version", "torch", "cuda", "python", "device"), registry=registry)
        build.labels(version, torch.__version__, torch.version.cuda or "", platform.python_version(), device).set(1)
        self._answers: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._stages = {name: self.stage_duration.labels(name) for name in _STAGES}
        results = [(wire, result) for wire in ("json",) for result in ("ok", "error")]
        self._evaluations = {labels: self.evaluations.labels(*labels) for labels in results}
        self._start_at_zero(reasons, closers)

    def _start_at_zero(self, reasons: Iterable[str], closers: Iterable[str]) -> None:
        """A counter that appears with its first event hides that event from `increase()`."""
        for reason in reasons:
            self.rejections.labels(reason)
        for closed_by in closers:
            self.batches.labels(closed_by)
        for phase in ("body", "evaluation"):
            self.disconnects.labels(phase)

    def watch(self, queue_requests: Callable[[], int], queue_seconds: Callable[[], float]) -> None:
        """Reads the queue whenever the metrics are scraped."""
        self.queue_requests.set_function(queue_requests)
        self.queue_seconds.set_function(queue_seconds)

    def request(self, record: RequestRecord) -> None:
        """A request was answered, or its caller went."""
        key = (record.method if record.method in METHODS else "other", record.route, record.status)
        if key not in self._answers:
            self._answers[key] = (self.http_requests.labels(*key), self.http_duration.labels(record.route))
        counter, duration = self._answers[key]
        counter.inc()
        duration.observe(record.duration_s)
        self.http_request_size.observe(record.received_bytes)
        self.http_response_size.observe(record.sent_bytes)
        if record.wire is not None:
            self._evaluations[record.wire, record.result].inc()
        if record.gone_in is not None:
            self.disconnects.labels(record.gone_in).inc()
        for name, seconds in record.stages.items():
            self._stages[name].observe(seconds)

    def batch(self, *, requests: int, rows: int, elements: int, closed_by: str) -> None:
        """A batch was computed."""
        self.batches.labels(closed_by).inc()
        self.batch_requests.observe(requests)
        self.batch_rows.observe(rows)
        self.rows.inc(rows)
        self.elements.inc(elements)

    def rejected(self, reason: str) -> None:
        """A request was refused for lack of capacity."""
        self.rejections.labels(reason).inc()

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Returns the metrics as Prometheus text or OpenMetrics, and the media type."""
        encoder, media_type = choose_encoder(accept)
        return encoder(self.registry), media_type
