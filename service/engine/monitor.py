"""Counts the samples of known models, after their answers have left and many requests at once."""

import asyncio
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np

from ..dtypes import Array
from ..loss.evaluation import Evaluation
from ..loss.samples import Pool, Samples, Source, Tally, pieces, pool_key
from .batcher import Device
from .device import TINY_ELEMENTS
from .evaluator import off_loop_if

DUE_REQUESTS = 512
LARGE_ELEMENTS = TINY_ELEMENTS // 4
DUE_ELEMENTS = TINY_ELEMENTS - LARGE_ELEMENTS
"""What may lie about uncounted: so much that a small request costs next to nothing, and no more than is computed
without a thread, which would cost more than the figures do."""
DUE_POOLS = 32
_LEARNING = 0.1
_COLUMNS = 4
"""Of a sample, to add up."""


class SampleMetrics(Protocol):
    """What the monitor reports."""

    def add(self, source: Source, tally: Tally) -> None:
        """Samples of a source were computed."""

    def unmonitored(self, rows: int, error: Exception) -> None:
        """Samples could not be computed."""


@dataclass(slots=True)
class _Noted:
    """Evaluations that are computed together, and the source of each."""

    pool: Pool
    sources: list[Source] = field(default_factory=list)
    counted_rows: int = 0


class Monitor:
    """Computes the plain loss of what was noted in passes of its own, on the same device as the answers."""

    def __init__(self, device: Device, metrics: SampleMetrics) -> None:
        self._device = device
        self._metrics = metrics
        self._noted: dict[Hashable, _Noted] = {}
        self._requests = 0
        self._elements = 0
        self._settling = asyncio.Lock()
        self._s_per_element = 0.0

    @property
    def is_due(self) -> bool:
        """Whether so much is noted that it should be counted now."""
        is_large = self._requests >= DUE_REQUESTS or self._elements >= DUE_ELEMENTS
        return is_large or len(self._noted) >= DUE_POOLS

    def work_s(self, elements: int) -> float:
        """Estimates the seconds it takes to count so many logits."""
        return self._s_per_element * elements

    def note(self, evaluation: Evaluation, source: Source) -> None:
        """Remembers an evaluation that was answered."""
        self._requests += 1
        self._elements += evaluation.elements
        # A large one stays by itself, and is never copied.
        alone = self._requests if evaluation.elements >= LARGE_ELEMENTS else 0
        key = (alone, source.temperature, *pool_key(evaluation))
        noted = self._noted.get(key)
        if noted is None:
            noted = self._noted[key] = _Noted(Pool(evaluation.formula.input))
        noted.pool.add(evaluation)
        noted.sources.append(source)

    async def settle(self) -> None:
        """Counts all that is noted, and waits for what is being counted already; to the end, whoever waits for it."""
        await asyncio.shield(self._settle())

    async def _settle(self) -> None:
        async with self._settling:
            all_noted, self._noted = self._noted, {}
            self._requests = self._elements = 0
            for noted in all_noted.values():
                try:
                    await self._count(noted)
                except Exception as error:  # noqa: BLE001 - the requests are answered: only the operator is to know
                    self._metrics.unmonitored(sum(noted.pool.rows) - noted.counted_rows, error)

    async def _count(self, noted: _Noted) -> None:
        sources = list(dict.fromkeys(noted.sources))
        source_of = None
        if len(sources) > 1:
            number_of = {source: number for number, source in enumerate(sources)}
            source_of = np.repeat([number_of[source] for source in noted.sources], noted.pool.rows)
        for part, piece in pieces(noted.pool.evaluation(temperature=sources[0].temperature)):
            found = await self._device.run([piece])
            size = _COLUMNS * piece.rows
            apart = partial(_apart, piece, found.rows, None if source_of is None else source_of[part])
            for number, samples in await off_loop_if(size, apart):
                source = sources[number]
                tally = await off_loop_if(size, partial(Tally.of, samples, classes=source.classes))
                self._metrics.add(source, tally)
                await asyncio.sleep(0)  # others have their turn, however many sources there are
            noted.counted_rows += piece.rows
            self._learn(found.compute_s + (found.transfer_s or 0.0), piece.elements)

    def _learn(self, seconds: float, elements: int) -> None:
        """Learns from the device's own time: how long it was waited for is the work of others, adding up is little."""
        self._s_per_element += _LEARNING * (seconds / elements - self._s_per_element)


def _apart(piece: Evaluation, rows: Mapping[str, Array], source_of: Array | None) -> list[tuple[int, Samples]]:
    """Returns the samples of each source, by its index."""
    samples = Samples.of(piece, rows)
    if source_of is None:
        return [(0, samples)]
    order = np.argsort(source_of, kind="stable")
    present, starts = np.unique(source_of[order], return_index=True)
    parts = zip(present.tolist(), np.split(order, starts[1:]), strict=True)
    return [(number, samples[of_source]) for number, of_source in parts]
