"""Series of models, bounded whatever requests say."""

from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from service.telemetry.model_metrics import ModelMetrics
from service.telemetry.models import parse
from tests.unit.fakes import FakeClock

NOW = 1_800_000_000.0


@dataclass
class Named:
    model: str | None
    version: str | None = None
    segment: str | None = None
    predicted_at: datetime | None = None


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> ModelMetrics:
    found = ModelMetrics(registry, clock=FakeClock(), now=lambda: NOW)
    found.declare(parse(b"models: [{model: m, versions: ['1'], segments: [s]}]"))
    return found


def names(registry: CollectorRegistry) -> set[str]:
    return {line.rpartition(" ")[0] for line in generate_latest(registry).decode().splitlines() if line[0] != "#"}


def test_hostile_names_make_no_series(registry: CollectorRegistry, metrics: ModelMetrics) -> None:
    before = names(registry)
    for number in range(33_334):
        name = f"\x00 {number}\n"
        for origin in (Named(name, name, name), Named("m", name), Named("m", "1", name)):
            metrics.source(origin, classes=2, samples=1, request_id=name)
        metrics.source(Named("m", "1", f"{name}!"), classes=2, samples=1, request_id=None)
    assert names(registry) == before
    assert registry.get_sample_value("losseval_label_overflow_total", {"dimension": "segment"}) == 33_334
    assert registry.get_sample_value("losseval_repeated_requests_total") == 2 * 33_334


def test_a_prediction_from_the_future_has_no_delay(registry: CollectorRegistry, metrics: ModelMetrics) -> None:
    ahead = datetime.fromtimestamp(NOW + 90, UTC)
    metrics.source(Named("m", "1", predicted_at=ahead), classes=2, samples=3, request_id=None)
    assert registry.get_sample_value("losseval_label_delay_seconds_sum", {"model": "m"}) == 0
    assert registry.get_sample_value("losseval_label_delay_seconds_count", {"model": "m"}) == 3


def test_a_request_of_ignored_samples_alone_is_no_sign_of_life(
    registry: CollectorRegistry, metrics: ModelMetrics
) -> None:
    labels = {"model": "m"}
    metrics.source(Named("m", "1"), classes=2, samples=0, request_id=None)
    assert registry.get_sample_value("losseval_model_last_sample_timestamp_seconds", labels) == 0
    metrics.source(Named("m", "1"), classes=2, samples=1, request_id=None)
    assert registry.get_sample_value("losseval_model_last_sample_timestamp_seconds", labels) == NOW
