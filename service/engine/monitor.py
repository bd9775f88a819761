"""Counts the samples of known models, after their answers have left and many requests at once."""

import asyncio
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, Protocol, TypeVar

import numpy as np

from ..dtypes import Array
from ..loss.evaluation import Evaluation
from ..loss.samples import Pool, Samples, Tally, pieces, pool_key
from .batcher import Device
from .evaluator import off_loop_if

DUE_REQUESTS = 512
DUE_ELEMENTS = 1 << 16
"""What may lie about uncounted: less than a large request takes, and so much that a small one costs next to nothing."""


class Source(Hashable, Protocol):
    """Where samples come from; samples of equal sources are counted together."""

    @property
    def temperature(self) -> float:
        """What the model's logits are divided by."""

    @property
    def classes(self) -> int | None:
        """How many classes are told apart, None for not at all."""


SourceT = TypeVar("SourceT", bound=Source)
_Source_contra = TypeVar("_Source_contra", bound=Source, contravariant=True)


class SampleMetrics(Protocol[_Source_contra]):
    """What the monitor reports."""

    def add(self, source: _Source_contra, tally: Tally) -> None:
        """Samples of a source were computed."""

    def unmonitored(self, rows: int, error: Exception) -> None:
        """Samples could not be computed."""


@dataclass(slots=True)
class _Noted(Generic[SourceT]):
    """Evaluations that are computed together, and the source of each."""

    pool: Pool
    sources: list[SourceT] = field(default_factory=list)


class Monitor(Generic[SourceT]):
    """Computes the plain loss of what was noted, in passes of its own: no answer waits for them."""

    def __init__(self, device: Device, metrics: SampleMetrics[SourceT]) -> None:
        self._device = device
        self._metrics = metrics
        self._noted: dict[Hashable, _Noted[SourceT]] = {}
        self._requests = 0
        self._elements = 0
        self._settling = asyncio.Lock()

    @property
    def is_due(self) -> bool:
        """Whether so much is noted that it should be counted now."""
        return self._requests >= DUE_REQUESTS or self._elements >= DUE_ELEMENTS

    def note(self, evaluation: Evaluation, source: SourceT) -> None:
        """Remembers an evaluation that was answered."""
        self._requests += 1
        self._elements += evaluation.elements
        # A large one stays by itself, and is never copied.
        alone = self._requests if evaluation.elements >= DUE_ELEMENTS else 0
        key = (alone, source.temperature, *pool_key(evaluation))
        noted = self._noted.get(key)
        if noted is None:
            noted = self._noted[key] = _Noted(Pool(evaluation.formula.input))
        noted.pool.add(evaluation)
        noted.sources.append(source)

    async def settle(self) -> None:
        """Counts all that is noted, and waits for what is being counted already."""
        async with self._settling:
            groups, self._noted = self._noted, {}
            self._requests = self._elements = 0
            for noted in groups.values():
                await self._count(noted)

    async def _count(self, noted: _Noted[SourceT]) -> None:
        numbers = {source: number for number, source in enumerate(dict.fromkeys(noted.sources))}
        source_of = None
        if len(numbers) > 1:
            source_of = np.repeat([numbers[one] for one in noted.sources], [len(rows) for rows in noted.pool.logits])
        whole = noted.pool.evaluation(temperature=noted.sources[0].temperature)
        for part, piece in pieces(whole):
            try:
                rows = (await self._device.run([piece])).rows
            except Exception as error:  # noqa: BLE001 - its request is answered: nobody but the operator is to know
                self._metrics.unmonitored(piece.rows, error)
                continue
            tally = partial(_tallies, piece, rows, numbers, None if source_of is None else source_of[part])
            for source, counted in await off_loop_if(piece.elements, tally):
                self._metrics.add(source, counted)


def _tallies(
    piece: Evaluation, rows: Mapping[str, Array], numbers: Mapping[SourceT, int], source_of: Array | None
) -> list[tuple[SourceT, Tally]]:
    samples = Samples.of(piece, rows)
    if source_of is None:
        return [(source, Tally.of(samples, classes=source.classes)) for source in numbers]
    return [(source, Tally.of(samples[source_of == one], classes=source.classes)) for source, one in numbers.items()]
