"""What is read of the machine and its files."""

import os
from pathlib import Path

import pytest

from service.host import WatchedFile


@pytest.fixture(autouse=True)
def files_are_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """However new they are."""
    monkeypatch.setattr("service.host._SETTLED_S", -1.0)


def test_a_watched_file_is_read_at_first_and_after_each_change(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("one")
    watched = WatchedFile(path)
    assert [watched.changed(), watched.changed()] == [b"one", None]
    path.write_text("three")
    assert [watched.changed(), watched.changed()] == [b"three", None]


def test_a_file_of_the_same_size_and_time_in_its_place_is_a_change(tmp_path: Path) -> None:
    path, other = tmp_path / "keys", tmp_path / "other"
    path.write_text("one")
    other.write_text("two")
    os.utime(path, ns=(1, 1))
    os.utime(other, ns=(1, 1))
    watched = WatchedFile(path)
    watched.changed()
    other.replace(path)
    assert watched.changed() == b"two"


def test_a_kubernetes_volume_changes_by_the_swap_of_a_symlink_two_levels_up(tmp_path: Path) -> None:
    for version in ("one", "two"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "keys").write_text(version)
    (tmp_path / "..data").symlink_to("one")
    (tmp_path / "keys").symlink_to("..data/keys")
    watched = WatchedFile(tmp_path / "keys")
    assert watched.changed() == b"one"
    (tmp_path / "..data_tmp").symlink_to("two")
    (tmp_path / "..data_tmp").replace(tmp_path / "..data")
    assert [watched.changed(), watched.changed()] == [b"two", None]


def test_a_file_that_goes_and_comes_back_unchanged_is_no_change(tmp_path: Path) -> None:
    path, away = tmp_path / "keys", tmp_path / "away"
    path.write_text("one")
    watched = WatchedFile(path)
    watched.changed()
    path.rename(away)
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            watched.changed()
    away.rename(path)
    assert watched.changed() is None


def test_a_file_that_is_being_written_is_left_for_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.host._SETTLED_S", 1.0)
    path = tmp_path / "file"
    path.write_text("first")
    watched = WatchedFile(path)
    assert watched.changed() == b"first"
    path.write_text("half")
    assert watched.changed() is None
    path.write_text("half and half")
    os.utime(path, (1, 1))
    assert watched.changed() == b"half and half"
