"""A file that is in force while the process runs."""

import time
from collections.abc import Callable
from pathlib import Path

import structlog

_SETTLED_S = 1.0
_log = structlog.get_logger("losseval")


class FollowedFile:
    """Read at first and whenever it changes; while it is bad, its last good version stays in force.

    By looking, since the symlinks of a Kubernetes volume evade inotify.
    """

    def __init__(
        self, path: Path, take: Callable[[bytes], None], *, title: str, when_bad: Callable[[], None] | None = None
    ) -> None:
        """Reads it for the first time.

        Args:
            path: Where it is.
            take: Puts a content in force; what is wrong with it is a ValueError, and then nothing has changed.
            title: What messages call it.
            when_bad: Is told that a newer version is bad.

        Raises:
            ValueError: It can't be read or is bad.
        """
        self._path = path
        self._take = take
        self._title = title
        self._when_bad = when_bad
        self._seen: tuple[int, int, int] | None = None
        self._complaint = ""
        self._read()

    def refresh(self) -> None:
        """Takes over a change that is a second old; says once what is wrong with it."""
        try:
            self._read()
        except ValueError as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                _log.warning("the last good version of a file stays in force", problem=self._complaint)
                if self._when_bad is not None:
                    self._when_bad()

    def _read(self) -> None:
        try:
            # Looked at before it is read: what changes in between is found by the next look.
            status = self._path.stat()
            seen = (status.st_mtime_ns, status.st_ino, status.st_size)
            # What is still being written is left for the next look; files have the time of the wall clock.
            is_settled = self._seen is None or abs(time.time() - status.st_mtime) > _SETTLED_S
            if seen == self._seen or not is_settled:
                return
            content = self._path.read_bytes()
            self._seen = seen
            self._take(content)
        except OSError as error:
            self._seen = (0, 0, 0)  # when it is back, and settled, it is read, changed or not
            raise ValueError(f"{self._title} {self._path}: {error.strerror}") from error
        except ValueError as error:
            raise ValueError(f"{self._title} {self._path}: {error}") from error
        self._complaint = ""
        _log.info("file in force", file=str(self._path))
