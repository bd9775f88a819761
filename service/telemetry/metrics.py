"""Prometheus metrics, in a registry of their own for each application.

Labels take values from closed sets only: nothing a client sends becomes a label.
"""

import functools
import itertools
import platform
from collections import Counter as Counts
from collections.abc import Callable, Iterable

import torch
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Metric,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from .instruments import Instruments
from .model_metrics import ModelMetrics
from .record import BatchRecord, RequestRecord

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for every counter and histogram, which PromQL has no use for

_DURATIONS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_STAGE_DURATIONS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_STAGES = ("decode", "queue", "transfer", "compute", "encode")
_SIZES = tuple(1024.0 * 4**power for power in range(10))
_COUNTED_AT_ONCE = 1024
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics(Collector):
    """All metrics of one application; `engine` reports through the narrow protocols it defines itself."""

    def __init__(  # noqa: PLR0913 - the labels of build_info, and closed sets of labels
        self,
        *,
        version: str,
        commit: str = "",
        device: str,
        wires: Iterable[str],
        reasons: Iterable[str],
        closers: Iterable[str],
    ) -> None:
        self._records: list[RequestRecord] = []
        self._computed: list[BatchRecord] = []
        self._device = device
        self.in_flight = 0
        self.registry = registry = CollectorRegistry()
        registry.register(self)  # first, so that everything is counted before it is read
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)

        make = Instruments(registry)
        counter, gauge, histogram = make.counter, make.gauge, make.histogram
        self._requests = counter("http_requests", "Requests answered.", "method", "route", "code")
        duration = "http_request_duration_seconds"
        self._duration = histogram(duration, "From headers to the end of the answer.", _DURATIONS, "route")
        gauge("http_requests_in_flight", "Requests being answered.").set_function(lambda: self.in_flight)
        self._received = histogram("http_request_size_bytes", "Bodies received.", _SIZES)
        self._sent = histogram("http_response_size_bytes", "Bodies sent.", _SIZES)
        stages = "stage_duration_seconds"
        self._stages = histogram(stages, "Time of an evaluation by stage.", _STAGE_DURATIONS, "stage")
        evaluations = counter("evaluations", "Evaluations by wire format and result.", "wire", "result")
        self._rows = counter("rows", "Rows computed.")
        self._elements = counter("elements", "Rows times classes computed.")
        self._batch_rows = histogram("batch_rows", "Rows of a batch.", [4**power for power in range(11)])
        self._batch_requests = histogram("batch_requests", "Requests of a batch.", [2**power for power in range(11)])
        batches = counter("batches", "Batches computed, by what closed them.", "closed_by")
        self._queue_requests = gauge("queue_requests", "Requests that wait for a batch.")
        self._queue_seconds = gauge("queue_seconds", "Estimated time until what has arrived is answered.")
        rejections = counter("rejected_requests", "Requests refused for lack of capacity.", "reason")
        disconnects = counter("client_disconnects", "Callers that went before their answer.", "phase")
        self.authentication = gauge("authentication_enabled", "1 where computing needs a key, else 0.")
        build = gauge("build_info", "1.", "version", "torch", "cuda", "python", "device", "commit")
        cuda = torch.version.cuda or ""
        build.labels(version, torch.__version__, cuda, platform.python_version(), device, commit).set(1)
        self._out_of_memory: Counter | None = None
        if device.startswith("cuda"):  # pragma: cuda
            self._out_of_memory = counter("device_out_of_memory", "Batches too large for the device.", "device")
            self._out_of_memory.labels(device)
            for name, read in (
                ("allocated", torch.cuda.memory_allocated),
                ("reserved", torch.cuda.memory_reserved),
                ("total", lambda one: torch.cuda.get_device_properties(one).total_memory),
            ):
                memory = gauge(f"device_memory_{name}_bytes", f"Memory of the device: {name}.", "device")
                memory.labels(device).set_function(functools.partial(read, device))
        # Series start at 0: a counter that appears with its first event hides that event from `increase()`.
        self._evaluations = {pair: evaluations.labels(*pair) for pair in itertools.product(wires, ("ok", "error"))}
        self._batches = {name: batches.labels(name) for name in closers}
        self._rejections = {name: rejections.labels(name) for name in reasons}
        self._disconnects = {name: disconnects.labels(name) for name in ("body", "evaluation")}
        for name in _STAGES:
            self._stages.labels(name)
        for one in (self._received, self._sent, self._batch_rows, self._batch_requests):
            one.labels()
        self.models = ModelMetrics(registry)

    def watch(self, queue_requests: Callable[[], int], queue_seconds: Callable[[], float]) -> None:
        """Reads the queue whenever the metrics are scraped."""
        self._queue_requests.set_function(queue_requests)
        self._queue_seconds.set_function(queue_seconds)

    def request(self, record: RequestRecord) -> None:
        """A request was answered, or its caller went."""
        self._records.append(record)
        if len(self._records) >= _COUNTED_AT_ONCE:
            self.collect()

    def batch(  # noqa: PLR0913 - the engine's protocol
        self, *, requests: int, rows: int, elements: int, closed_by: str, started: float, ended: float
    ) -> BatchRecord:
        """A batch was computed; the record of each of its requests is to have its record."""
        batch = BatchRecord(requests, rows, elements, closed_by, started, ended)
        self._computed.append(batch)
        return batch

    def collect(self) -> Iterable[Metric]:
        """Counts what was noted since: many at once cost a tenth of one by one."""
        if self._records:
            self._count_requests()
        if self._computed:
            self._count_batches()
        return ()

    def _count_requests(self) -> None:
        records, self._records = self._records, []
        answers = Counts((one.method if one.method in METHODS else "other", one.route, one.status) for one in records)
        for (method, route, status), count in answers.items():
            self._requests.labels(method, route, status).inc(count)
        for route in {one.route for one in records}:
            self._duration.observe([one.duration_s for one in records if one.route == route], route)
        for one in records:
            if one.trace_id is not None and one.is_sampled:
                self._duration.exemplify(one.duration_s, one.trace_id, one.route)
        self._sent.observe([one.sent_bytes for one in records])
        self._received.observe([one.received_bytes for one in records if one.wire is not None])
        for one in records:
            if one.wire is not None:
                self._evaluations[one.wire, one.result].inc()
            if one.gone_in is not None:
                self._disconnects[one.gone_in].inc()
        for name in _STAGES:
            self._stages.observe([one.stages_ms[name] / 1e3 for one in records if name in one.stages_ms], name)

    def _count_batches(self) -> None:
        computed, self._computed = self._computed, []
        rows = [one.rows for one in computed]
        self._batch_requests.observe([one.requests for one in computed])
        self._batch_rows.observe(rows)
        self._rows.inc(sum(rows))
        self._elements.inc(sum(one.elements for one in computed))
        for name, count in Counts(one.closed_by for one in computed).items():
            self._batches[name].inc(count)

    def rejected(self, reason: str) -> None:
        """A request was refused for lack of capacity."""
        self._rejections[reason].inc()

    def out_of_memory(self) -> None:
        """A batch did not fit on the device."""
        if self._out_of_memory is not None:  # pragma: cuda
            self._out_of_memory.labels(self._device).inc()

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Returns the metrics as Prometheus text or OpenMetrics, and the media type."""
        try:
            encoder, media_type = choose_encoder(accept)
        except (TypeError, ValueError):  # a version that is no number
            encoder, media_type = choose_encoder("")
        return encoder(self.registry), media_type
