"""The histogram against prometheus_client's own."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.openmetrics.exposition import generate_latest

from service.telemetry import histogram

BOUNDS = (0.125, 0.5, 1.0)


def exposed(registry: CollectorRegistry) -> str:
    return generate_latest(registry).decode()


@given(st.lists(st.lists(st.sampled_from([0.0, 0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0**30]), max_size=5), max_size=4))
def test_many_at_once_are_the_same_as_one_by_one(groups: list[list[float]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    many = histogram.Histogram("h", "about", BOUNDS, "kind", registry=ours)
    single = Histogram("h", "about", ["kind"], buckets=BOUNDS, registry=theirs)
    for index, group in enumerate(groups):
        many.observe(group, f"k{index % 2}")
        child = single.labels(f"k{index % 2}")
        for value in group:
            child.observe(value)
    lines = [line for line in exposed(theirs).splitlines() if "_created" not in line]
    assert sorted(exposed(ours).splitlines()) == sorted(lines)


def test_an_observation_may_stand_for_many() -> None:
    registry = CollectorRegistry()
    many = histogram.Histogram("h", "about", BOUNDS, registry=registry)
    many.observe([0.25], times=3)
    assert registry.get_sample_value("h_count") == 3
    assert registry.get_sample_value("h_sum") == 0.75
    assert registry.get_sample_value("h_bucket", {"le": "0.5"}) == 3


def test_counts_by_bucket_are_added() -> None:
    registry = CollectorRegistry()
    many = histogram.Histogram("h", "about", BOUNDS, registry=registry)
    many.add(np.array([1, 0, 2, 4]), 9.5)
    assert registry.get_sample_value("h_bucket", {"le": "1.0"}) == 3
    assert registry.get_sample_value("h_bucket", {"le": "+Inf"}) == 7
    assert registry.get_sample_value("h_sum") == 9.5


def test_a_removed_series_is_gone_and_starts_at_zero_again() -> None:
    registry = CollectorRegistry()
    many = histogram.Histogram("h", "about", BOUNDS, "kind", registry=registry)
    many.observe([0.2], "a")
    many.exemplify(0.2, "f" * 32, "a")
    many.remove("a")
    assert registry.get_sample_value("h_count", {"kind": "a"}) is None
    many.labels("a")
    assert registry.get_sample_value("h_count", {"kind": "a"}) == 0
    assert "trace_id" not in exposed(registry)


def test_an_exemplar_stands_beside_its_bucket_alone() -> None:
    registry = CollectorRegistry()
    many = histogram.Histogram("h", "about", BOUNDS, registry=registry)
    many.observe([0.25, 0.75])
    many.exemplify(0.25, "a" * 32)
    found = [line for line in exposed(registry).splitlines() if "trace_id" in line]
    assert found == [f'h_bucket{{le="0.5"}} 1.0 # {{trace_id="{"a" * 32}"}} 0.25']
