"""Files that are read again when they change."""

import os
from pathlib import Path

import pytest

from service.followed_file import FollowedFile


@pytest.fixture(autouse=True)
def files_are_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """However new they are."""
    monkeypatch.setattr("service.followed_file._SETTLED_S", -1.0)


class Watched:
    """What is in force of a file."""

    def __init__(self, path: Path) -> None:
        self._taken: list[bytes] = []
        self._file = FollowedFile(path, self._taken.append, title="file")

    def changed(self) -> bytes | None:
        """Returns what is new since the last time."""
        self._file.refresh()
        taken, self._taken[:] = list(self._taken), []
        return taken[-1] if taken else None


def test_a_watched_file_is_read_at_first_and_after_each_change(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("one")
    watched = Watched(path)
    assert [watched.changed(), watched.changed()] == [b"one", None]
    path.write_text("three")
    assert [watched.changed(), watched.changed()] == [b"three", None]


def test_a_file_of_the_same_size_and_time_in_its_place_is_a_change(tmp_path: Path) -> None:
    path, other = tmp_path / "keys", tmp_path / "other"
    path.write_text("one")
    other.write_text("two")
    os.utime(path, ns=(1, 1))
    os.utime(other, ns=(1, 1))
    watched = Watched(path)
    watched.changed()
    other.replace(path)
    assert watched.changed() == b"two"


def test_a_kubernetes_volume_changes_by_the_swap_of_a_symlink_two_levels_up(tmp_path: Path) -> None:
    for version in ("one", "two"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "keys").write_text(version)
    (tmp_path / "..data").symlink_to("one")
    (tmp_path / "keys").symlink_to("..data/keys")
    watched = Watched(tmp_path / "keys")
    assert watched.changed() == b"one"
    (tmp_path / "..data_tmp").symlink_to("two")
    (tmp_path / "..data_tmp").replace(tmp_path / "..data")
    assert [watched.changed(), watched.changed()] == [b"two", None]


def test_a_file_that_is_being_written_is_left_for_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.followed_file._SETTLED_S", 1.0)
    path = tmp_path / "file"
    path.write_text("first")
    watched = Watched(path)
    assert watched.changed() == b"first"
    path.write_text("half")
    assert watched.changed() is None
    path.write_text("half and half")
    os.utime(path, (1, 1))
    assert watched.changed() == b"half and half"


def test_a_file_that_comes_back_is_read_when_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("first")
    watched = Watched(path)
    watched.changed()
    path.unlink()
    assert watched.changed() is None
    monkeypatch.setattr("service.followed_file._SETTLED_S", 1.0)
    path.write_text("half")
    assert watched.changed() is None
    path.write_text("half and half")
    os.utime(path, (1, 1))
    assert watched.changed() == b"half and half"
