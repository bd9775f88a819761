"""Ids seen lately."""

from service.telemetry.recent import Recent
from tests.unit.fakes import FakeClock


def test_a_name_is_repeated_within_the_time_and_new_after_it() -> None:
    clock = FakeClock()
    recent = Recent(seconds=600, limit=10, clock=clock)
    assert not recent.is_repeated("a")
    clock.now = 599.0
    assert recent.is_repeated("a")
    clock.now = 600.0
    assert not recent.is_repeated("a")
    assert recent.is_repeated("a")


def test_the_oldest_names_are_forgotten_where_there_are_too_many() -> None:
    recent = Recent(seconds=600, limit=3, clock=FakeClock())
    assert not any(recent.is_repeated(name) for name in "abcd")
    assert recent.is_repeated("d")
    assert recent.is_repeated("b")
    assert not recent.is_repeated("a")
