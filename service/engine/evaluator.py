"""The one way through the engine: validate, wait for a batch, compute, reduce."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from ..dtypes import Array
from ..loss.evaluation import Evaluation
from ..loss.options import LossOptions
from ..loss.reduction import Answer, reduce
from ..loss.validation import SizeLimits, validate
from .batcher import Batcher, Computed

T = TypeVar("T")
INLINE_ELEMENTS = 1 << 18
"""Up to here validation and reduction take less than the two thread switches it would cost to move them."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An answer and how it came about."""

    answer: Answer
    evaluation: Evaluation
    computed: Computed


class Evaluator:
    """Evaluates requests; knows nothing of the protocol they came by."""

    def __init__(self, batcher: Batcher, limits: SizeLimits) -> None:
        self._batcher = batcher
        self._limits = limits
        self._host = ThreadPoolExecutor(1, thread_name_prefix="host")

    async def evaluate(self, arrays: Mapping[str, Array], options: LossOptions, *, deadline: float) -> Evaluated:
        """Computes what the options include.

        Args:
            arrays: As `loss.validation.validate` takes them.
            options: The scalar options.
            deadline: On the engine's clock; the work is dropped when it passes.

        Raises:
            ServiceError: The request is wrong.
            DeadlineExceeded, Unavailable: It could not be computed in time, or not now.
        """
        size = sum(array.size for array in arrays.values())
        evaluation = await self._on_host(size, lambda: validate(arrays, options, self._limits))
        computed = await self._batcher.submit(evaluation, deadline=deadline)
        answer = await self._on_host(evaluation.elements, lambda: reduce(evaluation, computed.rows))
        return Evaluated(answer, evaluation, computed)

    def close(self) -> None:
        """Ends the helper thread."""
        self._host.shutdown(wait=False)

    async def _on_host(self, size: int, work: Callable[[], T]) -> T:
        if size <= INLINE_ELEMENTS:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._host, work)
