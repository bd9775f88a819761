"""What this process may use of the machine it runs on: the container's quota where there is one."""

import os
from pathlib import Path

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


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
