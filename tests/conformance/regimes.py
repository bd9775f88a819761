"""Inputs on which the textbook forms of cross-entropy lose their digits, and inputs on which they don't."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Fill = Callable[[np.random.Generator, Floats, Labels], Floats]

CLASSES = (1, 2, 3, 10, 17, 1000, 32000, 128256)
MARGINS = (4.0, 70.0)


@dataclass(frozen=True, slots=True)
class Regime:
    """How logits are made from random normal ones; −inf fills the classes below `masked_share`."""

    name: str
    fill: Fill
    masked_share: float = 0.0


def scaled(factor: float) -> Fill:
    """Random normal logits times a factor."""
    return lambda _, logits, __: factor * logits


def offset_by(offset: float) -> Fill:
    """Logits far from 0, every other row on the negative side."""

    def fill(_: np.random.Generator, logits: Floats, __: Labels) -> Floats:
        sign = np.where(np.arange(len(logits)) % 2 == 0, 1.0, -1.0)
        return 5 * logits + offset * sign[:, None]

    return fill


def _place_label(logits: Floats, labels: Labels, distance: Floats) -> Floats:
    """Put each label's logit `distance` above the best of the row."""
    placed = logits.copy()
    placed[np.arange(len(labels)), labels] = logits.max(axis=1) + distance
    return placed


def confident(_: np.random.Generator, logits: Floats, labels: Labels) -> Floats:
    return _place_label(logits, labels, np.linspace(*MARGINS, len(labels)))


def confidently_wrong(_: np.random.Generator, logits: Floats, labels: Labels) -> Floats:
    return _place_label(logits, labels, -np.linspace(*MARGINS, len(labels)))


def nearly_tied(generator: np.random.Generator, logits: Floats, labels: Labels) -> Floats:
    """Return half the rows almost flat, half with a label that almost ties with the best."""
    flat = 0.5 + 1e-6 * logits
    close = _place_label(logits, labels, 1e-6 * generator.normal(size=len(labels)))
    return np.where((np.arange(len(labels)) % 2 == 0)[:, None], flat, close)


REGIMES = (
    *(Regime(f"randn-times-{factor}", scaled(factor)) for factor in (0.1, 1, 5, 20)),
    Regime("confident", confident),
    Regime("confidently-wrong", confidently_wrong),
    Regime("near-ties", nearly_tied),
    *(Regime(f"offset-{offset:.0e}", offset_by(offset)) for offset in (1e4, 1e6, 1e8)),
    Regime("leading-block-of-minus-infinity", scaled(3), masked_share=0.5),
)


@dataclass(frozen=True, slots=True)
class Rows:
    """Logits with both kinds of labels for them, in float64."""

    logits: Floats
    index: Labels
    probability: Floats


def make_rows(regime: Regime, classes: int, generator: np.random.Generator) -> Rows:
    """Fewer rows of more classes; every other probability label is one-hot."""
    rows = int(np.clip(8192 // classes, 2, 128))
    masked = int(regime.masked_share * classes)
    index = generator.integers(masked, classes, rows)
    logits = regime.fill(generator, generator.normal(size=(rows, classes)), index)
    logits[:, :masked] = -np.inf
    soft = np.exp(2 * generator.normal(size=(rows, classes)))
    soft[:, :masked] = 0
    soft /= soft.sum(axis=1, keepdims=True)
    onehot = np.zeros_like(soft)
    onehot[np.arange(rows), index] = 1
    probability = np.where((np.arange(rows) % 2 == 0)[:, None], soft, onehot)
    return Rows(logits, index, probability)
