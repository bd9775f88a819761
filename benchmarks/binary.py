"""Section `binary`: safetensors in, safetensors with gradients out, beside a bare ASGI app on the same bytes."""

import contextlib
import tempfile
from pathlib import Path
from typing import Final

from benchmarks import servers
from benchmarks.binary_workloads import BinaryWorkload
from benchmarks.comparison import Comparison, Plan, throughput
from benchmarks.report import Row, Table, progress

_MEDIUM: Final = BinaryWorkload((256, 1000), connections=4)  # 1 MiB
_HUGE: Final = BinaryWorkload((4096, 8192), connections=2)  # 128 MiB
_BAR: Final = 0.4
# On a busy machine two of the huge ones can be more than the second of work that may wait by default.
_SERVICE: Final = servers.service("--max-queue-ms", "10000")
# The huge ones come at a few a second.
_FULL: Final = ((_MEDIUM, Plan(rounds=5, seconds=3, warmup_s=0.4)), (_HUGE, Plan(rounds=3, seconds=5, warmup_s=0.5)))
_QUICK: Final = ((_MEDIUM, Plan(rounds=3, seconds=0.8, warmup_s=0.2)), (_HUGE, Plan(rounds=1, seconds=3, warmup_s=0.5)))


def run(*, is_quick: bool) -> list[Table]:
    """Measures throughput and CPU time."""
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        comparison = Comparison("binary", Path(stack.enter_context(tempfile.TemporaryDirectory())))
        progress("binary: starting the servers")
        members = [stack.enter_context(servers.running(one)) for one in (_SERVICE, servers.bare())]
        for workload, plan in _QUICK if is_quick else _FULL:
            found = comparison.run(workload, members, plan)
            rows.append(throughput(workload, found, "bare", _BAR))
    title = "Binary: float32 safetensors in, loss, losses and gradients out in binary"
    return [Table(title, rows), Table("Binary: absolute", comparison.absolute)]
