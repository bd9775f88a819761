"""Section `kernel`: speed of the kernel beside autograd on one thread, and its accuracy.

At 1,000 classes and more, half the time goes to the operating system, which clears every page of the outputs unless the
C library kept freed memory. Whether it did differs from process to process, so each shape runs in several of them, and
the one with the median ratio counts; then once with all memory kept, where arithmetic alone is left.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks import accuracy, adapter, servers
from benchmarks.report import Bar, Row, Table, at_least, median, progress, row

_SHAPES: Final = ((65_536, 10, at_least(3)), (2048, 1000, at_least(1.5)), (512, 32_000, at_least(1.5)))
# glibc's tunables, see mallopt(3); other C libraries ignore them.
_ALLOCATORS: Final[dict[str, dict[str, str]]] = {
    "": {},
    ", memory kept": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)},
}


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """How long to measure."""

    processes: int
    rounds: int
    accuracy_elements: int


FULL: Final = Plan(processes=3, rounds=15, accuracy_elements=1 << 18)
QUICK: Final = Plan(processes=1, rounds=9, accuracy_elements=1 << 15)


def autograd(logits: Tensor, labels: Tensor) -> Tensor:
    """Does what a training step does: the mean loss and its gradient."""
    leaf = logits.detach().requires_grad_()
    torch.autograd.backward(functional.cross_entropy(leaf, labels))
    return leaf


def _cpu_seconds(function: Callable[[Tensor, Tensor], object], logits: Tensor, labels: Tensor) -> float:
    """Returns CPU time: with one thread it is the time it takes, less what neighbours on the machine steal."""
    begun_at = time.process_time()
    function(logits, labels)
    return time.process_time() - begun_at


def rates(rows: int, classes: int, rounds: int) -> tuple[float, float]:
    """Returns million logits per CPU second of the service's kernel and of autograd.

    Alternates between the two, so that a change of the machine's pace touches both.
    """
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(classes)
    logits = 2 * torch.randn(rows, classes, generator=generator)
    labels = torch.randint(classes, (rows,), generator=generator)
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(rounds + 2):
        ours.append(_cpu_seconds(adapter.losses_and_gradients, logits, labels))
        theirs.append(_cpu_seconds(autograd, logits, labels))
    # The first rounds pay for the allocator and for torch's dispatch.
    ours_s, theirs_s = median(ours[2:]), median(theirs[2:])
    return logits.numel() / ours_s / 1e6, logits.numel() / theirs_s / 1e6


def _rates_apart(rows: int, classes: int, rounds: int, variables: Mapping[str, str]) -> tuple[float, float]:
    """Runs `rates` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.kernel", str(rows), str(classes), str(rounds)]
    environment = {**servers.environment(), **variables}
    done = subprocess.run(command, cwd=servers.ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    figure, reference = json.loads(done.stdout)
    return figure, reference


def _speed(rows: int, classes: int, bar: Bar, plan: Plan, allocator: str) -> Row:
    progress(f"kernel: {rows}×{classes}{allocator}")
    found = [
        _rates_apart(rows, classes, plan.rounds, _ALLOCATORS[allocator])
        for _ in range(1 if allocator else plan.processes)
    ]
    figure, reference = sorted(found, key=lambda pair: pair[0] / pair[1])[len(found) // 2]
    what = f"{rows:,}×{classes:,}{allocator}: million logits per CPU s, against F.cross_entropy + backward"
    return row(what, figure=figure, reference=reference, bar=None if allocator else bar)


def run(*, is_quick: bool) -> list[Table]:
    """Measures speed, then accuracy."""
    plan = QUICK if is_quick else FULL
    torch.set_num_threads(1)
    speed = [_speed(*shape, plan, allocator) for allocator in _ALLOCATORS for shape in _SHAPES]
    return [Table("Kernel: losses and gradients, one thread", speed), accuracy.measure(plan.accuracy_elements)]


def main() -> None:
    """Measures one shape and prints the two rates as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernel", description="Measures one shape.")
    for name in ("rows", "classes", "rounds"):
        parser.add_argument(name, type=int)
    options = parser.parse_args()
    print(json.dumps(rates(options.rows, options.classes, options.rounds)))


if __name__ == "__main__":
    main()
