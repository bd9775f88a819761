"""Section `kernel`: speed of the kernel beside autograd on one thread, and its accuracy."""

import dataclasses
import time
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks import accuracy, adapter
from benchmarks.report import Bar, Row, Table, at_least, median, progress, row

_SHAPES: Final = ((65_536, 10, at_least(3)), (2048, 1000, at_least(1.5)), (512, 32_000, at_least(1.5)))


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """How long to measure."""

    rounds: int
    accuracy_elements: int


FULL: Final = Plan(rounds=25, accuracy_elements=1 << 18)
QUICK: Final = Plan(rounds=9, accuracy_elements=1 << 15)


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


def _speed(rows: int, classes: int, bar: Bar, rounds: int) -> Row:
    """Alternates between the two, so that a change of the machine's pace touches both."""
    progress(f"kernel: {rows}×{classes}")
    generator = torch.Generator().manual_seed(classes)
    logits = 2 * torch.randn(rows, classes, generator=generator)
    labels = torch.randint(classes, (rows,), generator=generator)
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(rounds + 1):
        ours.append(_cpu_seconds(adapter.losses_and_gradients, logits, labels))
        theirs.append(_cpu_seconds(autograd, logits, labels))
    # The first round pays for the allocator and for torch's dispatch.
    rates = [rows * classes / median(times[1:]) / 1e6 for times in (ours, theirs)]
    what = f"{rows:,}×{classes:,}: million logits per CPU s, against F.cross_entropy + backward"
    return row(what, figure=rates[0], reference=rates[1], bar=bar)


def run(*, is_quick: bool) -> list[Table]:
    """Measures speed, then accuracy."""
    plan = QUICK if is_quick else FULL
    torch.set_num_threads(1)
    speed = [_speed(*shape, plan.rounds) for shape in _SHAPES]
    return [Table("Kernel: losses and gradients, one thread", speed), accuracy.measure(plan.accuracy_elements)]
