"""Losses, accuracy and calibration of declared models.

Counters only: windows, drift and comparisons over time are PromQL's. The series of a declared model exist at 0 from the
start, since a counter that appears with its first event hides that event from `increase()`.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import partial

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge

from ..loss.samples import CALIBRATION_BINS, LOSS_EDGES, Source, Tally
from .histogram import Histogram
from .instruments import Instruments
from .models import OTHER, Model, Models
from .recent import Recent

_DELAYS = (1.0, 10.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 43200.0, 86400.0, 172800.0, 604800.0, 1209600.0, 2592000.0)
_BINS = tuple(map(str, range(CALIBRATION_BINS)))
_OUTCOMES = ("correct", "incorrect", "ignored")
_KINDS = ("nan", "infinity")
_REPEATED_WITHIN_S = 600.0
_REMEMBERED_IDS = 1 << 16
_log = structlog.get_logger("losseval")
Labels = tuple[str, ...]
Named = tuple[str | None, str | None, str | None]
"""Model, version, segment."""


class ModelMetrics:
    """Counts samples by what is declared; everything else counts as `other`, so that no caller can make a series."""

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._now = now
        self._recent = Recent(seconds=_REPEATED_WITHIN_S, limit=_REMEMBERED_IDS, clock=clock)
        self._declared: Mapping[tuple[str, str], Model] = {}
        self._names: frozenset[str] = frozenset()
        self._sources: dict[tuple[Named, int], Source] = {}
        self._last_at: dict[str, float] = {}
        self._series: dict[Counter | Gauge | Histogram, set[Labels]] = {}
        pair = ("model", "version")

        make = Instruments(registry)
        counter, gauge, histogram = make.counter, make.gauge, make.histogram
        about = "Negative log-likelihood of samples, finite ones; a bucket: true class got at least exp(-le)."
        self._loss = histogram("sample_loss_nats", about, LOSS_EDGES, *pair)
        self._samples = counter("samples", "Samples received.", *pair, "outcome")
        self._nonfinite = counter("nonfinite_losses", "Samples whose loss is no number.", *pair, "kind")
        confidence = "confidence, the largest probability"
        self._bin_count = counter("confidence_samples", f"Samples by bin of {confidence}.", *pair, "bin")
        self._bin_correct = counter("confidence_correct", f"Correct samples by bin of {confidence}.", *pair, "bin")
        self._bin_confidence = counter("confidence_sum", f"Sum of {confidence}, by its bin.", *pair, "bin")
        self._segment_loss = counter("segment_loss_nats", "Sum of finite losses.", "model", "segment")
        self._segment_count = counter("segment_samples", "Samples of finite loss.", "model", "segment")
        self._class_loss = counter("class_loss_nats", "Sum of finite losses by true class.", "model", "class")
        self._class_count = counter("class_samples", "Samples of finite loss by true class.", "model", "class")
        self._mean = gauge("baseline_loss_mean_nats", "Declared: mean loss of a good model.", *pair)
        self._stddev = gauge("baseline_loss_stddev_nats", "Declared: standard deviation of its losses.", *pair)
        self._accuracy = gauge("baseline_accuracy", "Declared: its accuracy.", *pair)
        self._classes = gauge("model_classes", "Declared: number of classes.", "model")
        self._interval = gauge("label_interval_seconds", "Declared: time between bursts of labels.", "model")
        self._last = gauge("model_last_sample_timestamp_seconds", "When samples last came, 0 for not yet.", "model")
        self._delay = histogram("label_delay_seconds", "From prediction to label, by sample.", _DELAYS, "model")
        overflow = counter("label_overflow", "Requests that name something undeclared, or other classes.", "dimension")
        self._overflow = {name: overflow.labels(name) for name in ("model", "version", "segment", "class")}
        self._repeated = counter("repeated_requests", "Requests not counted: their X-Request-Id was counted lately.")
        self._unmonitored = counter("unmonitored_samples", "Samples not counted: their losses could not be computed.")
        self._valid = gauge("models_file_valid", "1, or 0 while the newest MODELS_FILE is bad and an older one holds.")
        self.declare(Models.model_construct(models=()))

    def declare(self, models: Models | None) -> None:
        """Makes the series of what is declared now, and ends those of what was; the others go on counting.

        None stands for declarations that are not good: the last good ones stay.
        """
        self._valid.set(models is not None)
        if models is None:
            return
        self._declared = by_pair = models.by_pair()
        self._names = frozenset(model for model, _ in by_pair)
        self._sources.clear()
        names = [*self._names, OTHER]
        pairs = [*by_pair, *((name, OTHER) for name in names)]
        classes = [(one.model, str(label)) for one in models.models for label in range(one.counted_classes or 0)]
        segments = [(one.model, segment) for one in models.models for segment in one.segments]
        segments += [(name, OTHER) for name in names]
        self._keep_only(pairs, self._loss)
        self._keep_only(_product(pairs, _OUTCOMES), self._samples)
        self._keep_only(_product(pairs, _KINDS), self._nonfinite)
        self._keep_only(_product(pairs, _BINS), self._bin_count, self._bin_correct, self._bin_confidence)
        self._keep_only(segments, self._segment_loss, self._segment_count)
        self._keep_only(classes, self._class_loss, self._class_count)
        self._keep_only([(name,) for name in names], self._last, self._delay)
        self._last_at = {name: self._last_at.get(name, 0.0) for name in names}
        for name in names:
            self._last.labels(name).set_function(partial(self._last_at.__getitem__, name))
        baselines = [(pair, one.baseline) for pair, one in by_pair.items() if one.baseline]
        self._set(self._mean, [(pair, one.mean) for pair, one in baselines])
        self._set(self._stddev, [(pair, one.stddev) for pair, one in baselines])
        self._set(self._accuracy, [(pair, one.accuracy) for pair, one in baselines])
        self._set(self._classes, [((one.model,), one.classes) for one in models.models])
        self._set(self._interval, [((one.model,), one.label_interval) for one in models.models])

    def source(
        self,
        named: Named,
        *,
        classes: int,
        samples: int,
        predicted_at: datetime | None = None,
        request_id: str | None = None,
    ) -> Source | None:
        """Tells as what the samples of an answered request count; None if the request was counted already.

        Args:
            named: What the caller calls their model, version and segment.
            classes: Of its logits.
            samples: How many are not ignored.
            predicted_at: When the model answered.
            request_id: By which, together with the names, a retry is known; None if the caller gave none.
        """
        if request_id is not None and self._recent.is_repeated((request_id, named)):
            self._repeated.inc()
            return None
        source = self._sources.get((named, classes)) or self._resolve(named, classes)
        if samples:
            self._last_at[source.model] = now = self._now()
            if predicted_at is not None:  # clocks differ
                self._delay.repeat(max(0.0, now - predicted_at.timestamp()), samples, source.model)
        return source

    def add(self, source: Source, tally: Tally) -> None:
        """Counts samples, unless their model was removed from the declaration meanwhile."""
        pair = (source.model, source.version)
        if pair not in self._series[self._loss]:
            pair = (source.model if source.model in self._names else OTHER, OTHER)
        model, segment = pair[0], source.segment
        self._loss.add(tally.loss_buckets, tally.loss_sum, *pair)
        for outcome, count in zip(_OUTCOMES, (tally.correct, tally.incorrect, tally.ignored), strict=True):
            self._samples.labels(*pair, outcome).inc(count)
        for kind, count in zip(_KINDS, (tally.nan, tally.infinite), strict=True):
            self._nonfinite.labels(*pair, kind).inc(count)
        for one in tally.bin_count.nonzero()[0].tolist():
            self._bin_count.labels(*pair, _BINS[one]).inc(tally.bin_count.item(one))
            self._bin_correct.labels(*pair, _BINS[one]).inc(tally.bin_correct.item(one))
            self._bin_confidence.labels(*pair, _BINS[one]).inc(tally.bin_confidence.item(one))
        if segment is not None:
            segment = segment if (model, segment) in self._series[self._segment_loss] else OTHER
            self._segment_count.labels(model, segment).inc(tally.loss_buckets.sum().item())
            self._segment_loss.labels(model, segment).inc(tally.loss_sum)
        if tally.class_count is None or tally.class_loss is None:
            return
        for one in tally.class_count.nonzero()[0].tolist():
            if (model, str(one)) in self._series[self._class_loss]:
                self._class_count.labels(model, str(one)).inc(tally.class_count.item(one))
                self._class_loss.labels(model, str(one)).inc(tally.class_loss.item(one))

    def unmonitored(self, rows: int, error: Exception) -> None:
        """Says that samples were lost to the metrics; their callers have their answers."""
        self._unmonitored.inc(rows)
        _log.error("samples were not counted", rows=rows, error=repr(error))

    def _resolve(self, named: Named, classes: int) -> Source:
        model, version, segment = named[0] or "", named[1] or "", named[2]
        if model not in self._names:
            self._overflow["model"].inc()
            return Source(OTHER, OTHER, segment and OTHER, 1.0, None)
        overflow = []
        declared = self._declared.get((model, version))
        if declared is None:
            overflow.append("version")
            version = OTHER
            declared = next(one for (name, _), one in self._declared.items() if name == model)
        if segment is not None and segment not in declared.segments:
            overflow.append("segment")
            segment = OTHER
        if declared.classes not in {None, classes}:
            overflow.append("class")
        for dimension in overflow:
            self._overflow[dimension].inc()
        counted = None if "class" in overflow else declared.counted_classes
        source = Source(model, version, segment, declared.temperature, counted)
        if not overflow and declared.classes is not None:  # so there are only so many
            self._sources[named, classes] = source
        return source

    def _keep_only(self, series: Iterable[Labels], *families: Counter | Gauge | Histogram) -> None:
        wanted = set(series)
        for family in families:
            existing = self._series.get(family, set())
            for labels in existing - wanted:
                family.remove(*labels)
            for labels in wanted - existing:
                family.labels(*labels)
            self._series[family] = wanted

    def _set(self, family: Gauge, values: Iterable[tuple[Labels, float | None]]) -> None:
        known = {labels: value for labels, value in values if value is not None}
        self._keep_only(known, family)
        for labels, value in known.items():
            family.labels(*labels).set(value)


def _product(pairs: Iterable[Labels], last: Iterable[str]) -> list[Labels]:
    return [(*pair, one) for pair, one in itertools.product(pairs, last)]
