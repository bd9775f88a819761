"""Series of models, bounded whatever requests say."""

from datetime import UTC, datetime

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from service.telemetry.model_metrics import ModelMetrics
from service.telemetry.models import parse
from tests.unit.fakes import FakeClock

NOW = 1_800_000_000.0


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
        for named in ((name, name, name), ("m", name, None), ("m", "1", name)):
            metrics.source(named, classes=2, samples=1, request_id=name)
        metrics.source(named, classes=2, samples=1, request_id=name)
        metrics.source(("m", "1", f"{name}!"), classes=2, samples=1)
    assert names(registry) == before
    assert registry.get_sample_value("losseval_label_overflow_total", {"dimension": "segment"}) == 2 * 33_334
    assert registry.get_sample_value("losseval_repeated_requests_total") == 33_334


def test_a_prediction_from_the_future_has_no_delay(registry: CollectorRegistry, metrics: ModelMetrics) -> None:
    ahead = datetime.fromtimestamp(NOW + 90, UTC)
    metrics.source(("m", "1", None), classes=2, samples=3, predicted_at=ahead)
    assert registry.get_sample_value("losseval_label_delay_seconds_sum", {"model": "m"}) == 0
    assert registry.get_sample_value("losseval_label_delay_seconds_count", {"model": "m"}) == 3


def test_a_request_of_ignored_samples_alone_is_no_sign_of_life(
    registry: CollectorRegistry, metrics: ModelMetrics
) -> None:
    labels = {"model": "m"}
    metrics.source(("m", "1", None), classes=2, samples=0)
    assert registry.get_sample_value("losseval_model_last_sample_timestamp_seconds", labels) == 0
    metrics.source(("m", "1", None), classes=2, samples=1)
    assert registry.get_sample_value("losseval_model_last_sample_timestamp_seconds", labels) == NOW
