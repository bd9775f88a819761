"""Logits on which cross-entropy is easy, and logits on which its textbook forms lose their digits."""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Regime = Callable[[np.random.Generator, Floats, Labels], Floats]

CLASSES: Final = (1, 2, 3, 10, 17, 1000, 32000, 128256)


def _scaled(factor: float) -> Regime:
    return lambda _, normal, __: factor * normal


def _offset(exponents: tuple[int, int]) -> Regime:
    """Each row at another offset, up to one where neighbouring float32 are 8 apart."""

    def shift(generator: np.random.Generator, normal: Floats, _: Labels) -> Floats:
        return 5 * normal + 10 ** generator.uniform(*exponents, (len(normal), 1))

    return shift


def _margin(sign: int) -> Regime:
    """The label 4 to 70 above, or below, the largest of the others."""

    def place(generator: np.random.Generator, normal: Floats, labels: Labels) -> Floats:
        rows, logits = np.arange(len(labels)), normal.copy()
        logits[rows, labels] = normal.max(axis=1) + sign * generator.uniform(4, 70, len(labels))
        return logits

    return place


def _near_ties(generator: np.random.Generator, normal: Floats, labels: Labels) -> Floats:
    """The label within 1e-6 of the largest of the others."""
    rows, logits = np.arange(len(labels)), normal.copy()
    logits[rows, labels] = normal.max(axis=1) + generator.uniform(-1e-6, 1e-6, len(labels))
    return logits


def _masked(_: np.random.Generator, normal: Floats, labels: Labels) -> Floats:
    """A leading block of −inf over half the classes below the label."""
    is_masked = np.arange(normal.shape[1]) < ((labels + 1) // 2)[:, None]
    return np.where(is_masked, -np.inf, 5 * normal)


REGIMES: Final[Mapping[str, Regime]] = {
    "randn × 0.1": _scaled(0.1),
    "randn × 1": _scaled(1),
    "randn × 5": _scaled(5),
    "randn × 20": _scaled(20),
    "confident, label +4 … +70": _margin(+1),
    "confidently wrong, −4 … −70": _margin(-1),
    "near-ties": _near_ties,
    "offsets 1e4 … 1e8": _offset((4, 8)),
    "leading block of −inf": _masked,
}


def draw(name: str, classes: int, elements: int) -> tuple[Floats, Labels]:
    """Draws logits (N, C) and labels (N) of one regime, always the same, of about `elements` logits."""
    generator = np.random.default_rng(classes)
    rows = int(np.clip(elements // classes, 4, 1024))
    labels = generator.integers(0, classes, rows)
    return REGIMES[name](generator, generator.standard_normal((rows, classes)), labels), labels
