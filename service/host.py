"""What this process may use of the machine it runs on: the container's quota where there is one."""

import ctypes
import os
import time
from collections.abc import Callable
from pathlib import Path

import structlog

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_SETTLED_S = 1.0
_log = structlog.get_logger("losseval")
_CGROUP = Path("/sys/fs/cgroup")


def cpu_quota(cgroup: Path = _CGROUP) -> int:
    """Returns the number of CPUs to use, at least 1: the affinity mask, capped by cgroup v2's ``cpu.max``."""
    usable = len(os.sched_getaffinity(0))
    quota, _, period = _read(cgroup / "cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit():
        usable = min(usable, round(int(quota) / int(period)))
    return max(1, usable)


def memory_limit_bytes(cgroup: Path = _CGROUP) -> int:
    """Returns the memory this process may use: the machine's, capped by cgroup v2's ``memory.max``."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _read(cgroup / "memory.max")
    return min(physical, int(limit)) if limit.isdigit() else physical


def quarter_of_memory() -> int:
    """Returns a quarter of the memory this process may use, in bytes."""
    return memory_limit_bytes() // 4


def keep_freed_memory() -> None:
    """Lets glibc keep up to 64 MiB that were freed, instead of giving every large array back to the kernel at once.

    Getting it back costs a page fault for each 4 KiB, a quarter of the time of a large request.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent from other C libraries
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 64 << 20)


class WatchedFile:
    """A file to read again when it changes; by looking, since the symlinks of a Kubernetes volume evade inotify."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int, int] | None = None

    def changed(self) -> bytes | None:
        """Returns the content at the first call and after each change that is a second old, else None.

        Raises:
            OSError: It can't be read; the next call tries again.
        """
        # Looked at before it is read: what changes in between is found by the next look.
        status = self.path.stat()
        seen = (status.st_mtime_ns, status.st_ino, status.st_size)
        # What is still being written is left for the next look; files have the time of the wall clock.
        is_settled = self._seen is None or abs(time.time() - status.st_mtime) > _SETTLED_S
        if seen == self._seen or not is_settled:
            return None
        content = self.path.read_bytes()
        self._seen = seen
        return content


class FollowedFile:
    """A file that is in force while the process runs: read again when it changes, the last good version kept."""

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
        self._file = WatchedFile(path)
        self._take = take
        self._title = title
        self._when_bad = when_bad
        self._complaint = ""
        self._read()

    def refresh(self) -> None:
        """Takes over what has changed; says once what is wrong with it."""
        try:
            self._read()
        except ValueError as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                _log.warning("the last good version of a file stays in force", problem=self._complaint)
                if self._when_bad is not None:
                    self._when_bad()

    def _read(self) -> None:
        path = self._file.path
        try:
            content = self._file.changed()
            if content is None:
                return
            self._take(content)
        except OSError as error:
            self._file = WatchedFile(path)  # when it is back, it is read, changed or not
            raise ValueError(f"{self._title} {path}: {error.strerror}") from error
        except ValueError as error:
            raise ValueError(f"{self._title} {path}: {error}") from error
        self._complaint = ""
        _log.info("file in force", file=str(path))


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
