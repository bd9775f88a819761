"""A Prometheus histogram that takes many observations at once."""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

from ..dtypes import Array


class Histogram(Collector):
    """Counts observations by bucket; prometheus_client's own takes two microseconds for each, this 0.1."""

    def __init__(
        self, name: str, about: str, bounds: Sequence[float], *labels: str, registry: CollectorRegistry
    ) -> None:
        self._name = name
        self._about = about
        self._bounds = np.array(bounds)
        self._edges = [floatToGoString(bound) for bound in (*bounds, float("inf"))]  # type: ignore[no-untyped-call]
        self._labels = labels
        self._counts: dict[tuple[str, ...], Array] = {}
        self._sums: dict[tuple[str, ...], float] = {}
        self._exemplars: dict[tuple[str, ...], list[Exemplar | None]] = {}
        registry.register(self)

    def labels(self, *labels: str) -> None:
        """Makes a series exist."""
        self._counts[labels] = np.zeros(len(self._edges), np.int64)
        self._sums[labels] = 0.0

    def remove(self, *labels: str) -> None:
        """Ends a series."""
        del self._counts[labels], self._sums[labels]
        self._exemplars.pop(labels, None)

    def observe(self, values: Sequence[float], *labels: str, times: int = 1) -> None:
        """Adds observations, none of them NaN, each so many times."""
        # A bucket holds what is less than or equal to its edge.
        buckets = np.bincount(np.searchsorted(self._bounds, values), minlength=len(self._edges))
        self.add(buckets * times, float(sum(values)) * times, *labels)

    def add(self, buckets: Array, total: float, *labels: str) -> None:
        """Adds observations that are counted by bucket already, the last one being above all edges, and their sum."""
        if labels not in self._counts:
            self.labels(*labels)
        self._counts[labels] += buckets
        self._sums[labels] += total

    def exemplify(self, value: float, trace_id: str, *labels: str) -> None:
        """Makes a trace the example of its bucket, in OpenMetrics; the observation itself is added apart."""
        examples = self._exemplars.setdefault(labels, [None] * len(self._edges))
        examples[int(np.searchsorted(self._bounds, value))] = Exemplar({"trace_id": trace_id}, value)

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """Returns all series."""
        family = HistogramMetricFamily(self._name, self._about, labels=self._labels)
        for labels, counts in self._counts.items():
            examples = self._exemplars.get(labels, itertools.repeat(None))
            rows = zip(self._edges, np.cumsum(counts).tolist(), examples, strict=False)
            buckets = [(edge, count) if one is None else (edge, count, one) for edge, count, one in rows]
            family.add_metric(labels, buckets, self._sums[labels])
        yield family
