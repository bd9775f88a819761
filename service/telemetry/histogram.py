"""A Prometheus histogram that takes many observations at once."""

from collections.abc import Iterable, Sequence

import numpy as np
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import HistogramMetricFamily
from prometheus_client.registry import Collector
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
        registry.register(self)

    def observe(self, values: Sequence[float], *labels: str) -> None:
        """Adds observations, none of them NaN, to the series of these labels; none at all makes it exist."""
        if labels not in self._counts:
            self._counts[labels] = np.zeros(len(self._edges), np.int64)
            self._sums[labels] = 0.0
        # A bucket holds what is less than or equal to its edge.
        buckets = np.searchsorted(self._bounds, values)
        self._counts[labels] += np.bincount(buckets, minlength=len(self._edges))
        self._sums[labels] += float(sum(values))

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """Returns all series."""
        family = HistogramMetricFamily(self._name, self._about, labels=self._labels)
        for labels, counts in self._counts.items():
            cumulative = zip(self._edges, np.cumsum(counts).tolist(), strict=True)
            family.add_metric(labels, list(cumulative), self._sums[labels])
        yield family
