"""Metrics by their short names: the prefix, the unit's suffix and the registry are the same for all."""

from collections.abc import Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge

from .histogram import Histogram


@dataclass(frozen=True, slots=True)
class Instruments:
    """Makes metrics in a registry."""

    registry: CollectorRegistry

    def counter(self, name: str, about: str, *labels: str) -> Counter:
        """Makes a counter; `_total` is added to its name."""
        return Counter(f"losseval_{name}_total", about, labels, registry=self.registry)

    def gauge(self, name: str, about: str, *labels: str) -> Gauge:
        """Makes a gauge."""
        return Gauge(f"losseval_{name}", about, labels, registry=self.registry)

    def histogram(self, name: str, about: str, bounds: Sequence[float], *labels: str) -> Histogram:
        """Makes a histogram with the upper edges of its buckets."""
        return Histogram(f"losseval_{name}", about, bounds, *labels, registry=self.registry)
