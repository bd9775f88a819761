"""What a model is judged by: plain figures of every sample, whatever loss was asked for.

The canonical loss is the negative log-likelihood: unweighted, unsmoothed, at one temperature for each model. Requests
that ask for different losses are comparable in it.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from ..dtypes import Array, joined
from .evaluation import Evaluation
from .options import Formula, InputKind, LossOptions
from .weighting import Weighting

CALIBRATION_BINS = 10
LABEL_PROBABILITIES = (0.999, 0.99, 0.95, 0.9, 0.75, 0.5, 0.25, 0.1, 0.05, 0.01, 1e-3, 1e-4, 1e-6, 1e-9)
LOSS_EDGES = tuple(-math.log(probability) for probability in LABEL_PROBABILITIES)
"""Nats; a bucket reads as the share of samples whose true class got at least the probability."""
_PIECE_ELEMENTS = 1 << 22
"""So much is computed at a time, lest a large request hold up small ones, and so that its columns stay small."""
_PLAIN = LossOptions()
_UNWEIGHTED = Weighting(1.0, None, None)


@dataclass(frozen=True, slots=True)
class Samples:
    """Columns of (R,): nll and confidence in float64, the true class (the largest of probability labels), hits.

    What stands in ignored rows means nothing.
    """

    nll: Array
    confidence: Array
    target: Array
    is_correct: Array
    is_ignored: Array

    @classmethod
    def of(cls, evaluation: Evaluation, rows: Mapping[str, Array]) -> "Samples":
        """Reads the kernel's rows of an evaluation."""
        target = evaluation.labels if evaluation.has_index_labels else rows["target"]
        ignored = evaluation.ignored
        return cls(
            nll=rows["nll"].astype(np.float64),
            confidence=rows["confidence"].astype(np.float64),
            target=target,
            is_correct=(rows["predictions"] == target) & np.isfinite(rows["maximum"]),
            is_ignored=np.zeros(evaluation.rows, dtype=bool) if ignored is None else ignored,
        )

    def __getitem__(self, rows: Array | slice) -> "Samples":
        """Returns some of the samples."""
        columns = (self.nll, self.confidence, self.target, self.is_correct, self.is_ignored)
        return Samples(*(column[rows] for column in columns))


@dataclass(frozen=True, slots=True)
class Tally:
    """Sums over samples, of which counters are made.

    Losses are in nats and hold the finite ones only: a single NaN would stay in a sum for ever. `loss_buckets` counts
    losses up to each of `LOSS_EDGES` and above the last; `bin_…` are by bin of confidence, `class_…` by true class,
    None where the classes are too many.
    """

    correct: int
    incorrect: int
    ignored: int
    nan: int
    infinite: int
    loss_sum: float
    loss_buckets: Array
    bin_count: Array
    bin_correct: Array
    bin_confidence: Array
    class_count: Array | None
    class_loss: Array | None

    @classmethod
    def of(cls, samples: Samples, *, classes: int | None) -> "Tally":
        """Sums samples up, by class if there are so many and not None."""
        ignored = int(np.count_nonzero(samples.is_ignored))
        kept = samples[~samples.is_ignored] if ignored else samples
        is_finite = np.isfinite(kept.nll)
        nan = int(np.count_nonzero(np.isnan(kept.nll)))
        finite = kept if is_finite.all() else kept[is_finite]
        correct = int(np.count_nonzero(kept.is_correct))
        known = np.isfinite(kept.confidence)
        bins = calibration_bins(kept.confidence[known])
        return cls(
            correct=correct,
            incorrect=len(kept.nll) - correct,
            ignored=ignored,
            nan=nan,
            infinite=len(kept.nll) - len(finite.nll) - nan,
            loss_sum=float(finite.nll.sum()),
            # A bucket holds what is less than or equal to its edge.
            loss_buckets=np.bincount(np.searchsorted(LOSS_EDGES, finite.nll), minlength=len(LOSS_EDGES) + 1),
            bin_count=np.bincount(bins, minlength=CALIBRATION_BINS),
            bin_correct=np.bincount(bins, kept.is_correct[known], CALIBRATION_BINS),
            bin_confidence=np.bincount(bins, kept.confidence[known], CALIBRATION_BINS),
            class_count=None if classes is None else np.bincount(finite.target, minlength=classes),
            class_loss=None if classes is None else np.bincount(finite.target, finite.nll, classes),
        )


def calibration_bins(confidence: Array) -> Array:
    """Returns the right-closed bin of each confidence, none of them NaN: 0.1 is in bin 0, 1.0 in bin 9."""
    bins: Array = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
    return bins


@dataclass(frozen=True, slots=True)
class Source:
    """Where samples come from, by declared names; samples of equal sources are counted together.

    `segment` is None for none, `classes` where classes are not told apart.
    """

    model: str
    version: str
    segment: str | None
    temperature: float
    classes: int | None


def pool_key(evaluation: Evaluation) -> tuple[object, ...]:
    """Returns what evaluations must agree in to be pooled."""
    logits, labels = evaluation.logits, evaluation.labels
    return (evaluation.formula.input, logits.shape[1], logits.dtype, labels.ndim, labels.dtype)


@dataclass(slots=True)
class Pool:
    """Rows of evaluations of one `pool_key`; the arrays alone, which the garbage collector need not look at."""

    kind: InputKind
    logits: list[Array] = field(default_factory=list)
    labels: list[Array] = field(default_factory=list)
    ignored: list[Array | None] = field(default_factory=list)

    @property
    def rows(self) -> list[int]:
        """How many each evaluation has."""
        return [len(rows) for rows in self.logits]

    def add(self, evaluation: Evaluation) -> None:
        """Adds the rows of an evaluation."""
        self.logits.append(evaluation.logits)
        self.labels.append(evaluation.labels)
        self.ignored.append(evaluation.ignored)

    def evaluation(self, *, temperature: float) -> Evaluation:
        """Returns all rows with the plain loss, and the outputs that `Samples` reads."""
        logits, labels = joined(self.logits), joined(self.labels)
        ignored = None
        if any(one is not None for one in self.ignored):
            pairs = zip(self.ignored, self.rows, strict=True)
            ignored = joined([np.zeros(rows, dtype=bool) if one is None else one for one, rows in pairs])
        has_indices = labels.ndim == 1
        # As for any loss: where probabilities meet their labels, float32 cancels.
        is_wide = not has_indices or logits.dtype == np.float64
        formula = Formula(
            input=self.kind,
            temperature=temperature,
            arithmetic="float64" if is_wide else "float32",
            outputs=frozenset({"nll", "confidence", "predictions", "maximum"} | (set() if has_indices else {"target"})),
        )
        return Evaluation(_PLAIN, formula, logits.shape, logits, labels, ignored, _UNWEIGHTED, ())


def pieces(evaluation: Evaluation) -> Iterator[tuple[slice, Evaluation]]:
    """Yields the rows of an unweighted evaluation in parts of bounded size."""
    step = max(1, _PIECE_ELEMENTS // evaluation.classes)
    for start in range(0, evaluation.rows, step):
        part = slice(start, start + step)
        ignored = None if evaluation.ignored is None else evaluation.ignored[part]
        logits, labels = evaluation.logits[part], evaluation.labels[part]
        yield part, replace(evaluation, shape=logits.shape, logits=logits, labels=labels, ignored=ignored)
