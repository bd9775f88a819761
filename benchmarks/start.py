"""Section `start`: from the start of the process to ready, beside the imports that nobody can avoid."""

import subprocess
import sys
import time
from typing import Final

from benchmarks import servers
from benchmarks.report import Table, at_most, median, progress, row

_IMPORTS: Final = "import torch, fastapi; print('imported', flush=True)"
_ROUNDS: Final = 5
_QUICK_ROUNDS: Final = 1


def import_s() -> float:
    """Returns the seconds from the start of a Python to the end of its imports, less its exit."""
    begun_at = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", _IMPORTS], env=servers.environment(), stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        return time.perf_counter() - begun_at


def ready_s() -> float:
    """Returns the seconds from the start of the service to its first 200 from /readyz."""
    with servers.running(servers.service()) as server:
        return server.ready_s


def run(*, is_quick: bool) -> list[Table]:
    """Alternates between the two; the first round, which reads the disk, is not counted."""
    imports: list[float] = []
    starts: list[float] = []
    for number in range(1 + (_QUICK_ROUNDS if is_quick else _ROUNDS)):
        progress(f"start: round {number}")
        imports.append(import_s())
        starts.append(ready_s())
    figure, reference = median(starts[1:]), median(imports[1:])
    what = "process start to ready: seconds, against importing torch and fastapi"
    return [Table("Start", [row(what, figure=figure, reference=reference, bar=at_most(1.5))])]
