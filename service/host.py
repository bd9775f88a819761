"""What this process may use of the machine it runs on: the container's quota where there is one."""

import ctypes
import os
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
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


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
