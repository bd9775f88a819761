"""Section `memory`: the most memory that one large binary request takes, above what the idle server has."""

from typing import Final

import torch

from benchmarks import servers
from benchmarks.binary_workloads import BinaryWorkload
from benchmarks.comparison import checked_answer
from benchmarks.report import Row, Table, at_most, progress, row

_MIB: Final = 1 << 20
_CASES: Final = (  # 128 MiB each
    ((4096, 8192), torch.float32),
    ((4096, 16384), torch.bfloat16),
    ((4096, 16384), torch.float16),
    ((64, 8192, 64), torch.float32),
    ((64, 8192, 128), torch.bfloat16),
)


def peak_above_idle(workload: BinaryWorkload) -> int:
    """Returns the bytes that one request adds to the peak of a server that has answered only a small one like it."""
    small = BinaryWorkload((2, 10, *workload.shape[2:]), workload.dtype)
    with servers.running(servers.service()) as server:
        checked_answer(server, small)
        server.forget_peak()
        idle = server.resident_bytes()
        checked_answer(server, workload)
        return server.peak_bytes() - idle


def _row(workload: BinaryWorkload) -> Row:
    progress(f"memory: {workload.name}")
    peak, body = peak_above_idle(workload), len(workload.body)
    # 3 B + 64 MiB, as a multiple of B.
    limit = round(3 + 64 * _MIB / body, 2)
    what = f"{workload.name}: peak above idle MiB, against the body"
    return row(what, figure=peak / _MIB, reference=body / _MIB, bar=at_most(limit))


def run(*, is_quick: bool) -> list[Table]:
    """Measures each case in a server of its own; once, as it hardly varies."""
    del is_quick
    rows = [_row(BinaryWorkload(shape, dtype)) for shape, dtype in _CASES]
    return [Table("Memory: one binary request with gradients, in a fresh server", rows)]
