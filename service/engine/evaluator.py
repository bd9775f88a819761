"""The one way through the engine: validate, wait for a batch, compute, reduce."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ..dtypes import Array
from ..loss.evaluation import Evaluation
from ..loss.options import LossOptions
from ..loss.reduction import Answer, reduce
from ..loss.validation import SizeLimits, validate
from .batcher import Batcher, Computed

T = TypeVar("T")
LIGHT_ELEMENTS = 1 << 18
"""Up to here validation and reduction take less than the two thread switches it would cost to move them."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An answer and how it came about."""

    answer: Answer
    evaluation: Evaluation
    computed: Computed
    validate_s: float
    reduce_s: float


class Evaluator:
    """Evaluates requests; knows nothing of the protocol they came by."""

    def __init__(self, batcher: Batcher, limits: SizeLimits) -> None:
        self._batcher = batcher
        self._limits = limits

    async def evaluate(self, arrays: dict[str, Array], options: LossOptions, *, deadline: float) -> Evaluated:
        """Computes what the options include.

        Args:
            arrays: As `loss.validation.validate` takes them; emptied, since what was sent is not needed any more when
                its rows had to be copied out of it.
            options: The scalar options.
            deadline: On the engine's clock; the work is dropped when it passes.

        Raises:
            ServiceError: The request is wrong.
            DeadlineExceeded, Unavailable: It could not be computed in time, or not now.
        """
        started = time.perf_counter()
        size = sum(array.size for array in arrays.values())
        evaluation = await off_loop_if(size, lambda: validate(arrays, options, self._limits))
        arrays.clear()
        validated = time.perf_counter()
        computed = await self._batcher.submit(evaluation, deadline=deadline)
        resumed = time.perf_counter()
        answer = await off_loop_if(evaluation.elements, lambda: reduce(evaluation, computed.rows))
        return Evaluated(answer, evaluation, computed, validated - started, time.perf_counter() - resumed)


async def off_loop_if(size: int, work: Callable[[], T]) -> T:
    """Does work on `size` elements in a thread, unless it is light."""
    return work() if size <= LIGHT_ELEMENTS else await asyncio.to_thread(work)
