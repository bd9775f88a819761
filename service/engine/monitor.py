"""Counts the samples of known models, after their answers have left and many requests at once."""

import asyncio
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np

from ..dtypes import Array
from ..loss.evaluation import Evaluation
from ..loss.samples import Samples, Tally, canonical, pieces
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
Noted = tuple[Evaluation, SourceT]


class SampleMetrics(Protocol[_Source_contra]):
    """What the monitor reports."""

    def add(self, source: _Source_contra, tally: Tally) -> None:
        """Samples of a source were computed."""

    def unmonitored(self, rows: int, error: Exception) -> None:
        """Samples could not be computed."""


class Monitor(Generic[SourceT]):
    """Computes the canonical loss of what was noted, in passes of its own: no answer waits for them."""

    def __init__(self, device: Device, metrics: SampleMetrics[SourceT]) -> None:
        self._device = device
        self._metrics = metrics
        self._noted: dict[Hashable, list[Noted[SourceT]]] = {}
        self._requests = 0
        self._elements = 0
        self._settling = asyncio.Lock()

    @property
    def is_due(self) -> bool:
        """Whether so much is noted that it should be counted now."""
        return self._requests >= DUE_REQUESTS or self._elements >= DUE_ELEMENTS

    def note(self, evaluation: Evaluation, source: SourceT) -> None:
        """Remembers an evaluation that was answered."""
        for piece in pieces(canonical(evaluation, temperature=source.temperature)):
            self._noted.setdefault(piece.batch_key, []).append((piece, source))
        self._requests += 1
        self._elements += evaluation.elements

    async def settle(self) -> None:
        """Counts all that is noted, and waits for what is being counted already."""
        async with self._settling:
            groups, self._noted = self._noted, {}
            self._requests = self._elements = 0
            for noted in groups.values():
                for batch in _batches(noted):
                    await self._count(batch)

    async def _count(self, noted: Sequence[Noted[SourceT]]) -> None:
        evaluations = [evaluation for evaluation, _ in noted]
        try:
            rows = (await self._device.run(evaluations)).rows
        except Exception as error:  # noqa: BLE001 - its request is answered: nobody but the operator is to know
            self._metrics.unmonitored(sum(one.rows for one in evaluations), error)
            return
        size = sum(one.elements for one in evaluations)
        for source, tally in await off_loop_if(size, lambda: _tallies(noted, rows)):
            self._metrics.add(source, tally)


def _batches(noted: Sequence[Noted[SourceT]]) -> Iterator[Sequence[Noted[SourceT]]]:
    """Yields the small ones together, and each large one by itself."""
    small = [one for one in noted if one[0].elements < DUE_ELEMENTS]
    if small:
        yield small
    yield from ([one] for one in noted if one[0].elements >= DUE_ELEMENTS)


def _tallies(noted: Sequence[Noted[SourceT]], rows: Mapping[str, Array]) -> list[tuple[SourceT, Tally]]:
    samples = Samples.of([evaluation for evaluation, _ in noted], rows)
    index: dict[SourceT, int] = {}
    numbers = [index.setdefault(source, len(index)) for _, source in noted]
    if len(index) == 1:
        return [(source, Tally.of(samples, classes=source.classes)) for source in index]
    source_of = np.repeat(numbers, [evaluation.rows for evaluation, _ in noted])
    return [(source, Tally.of(samples[source_of == i], classes=source.classes)) for source, i in index.items()]
