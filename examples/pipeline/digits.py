"""A small real model, and images for it: handwritten digits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

Array = NDArray[np.float32]
Labels = NDArray[np.int64]
TRAINING: Final = 600
"""Of 1,797 digits. The others are the world: the baseline is measured on all of them, traffic drawn from them."""
DARKEST: Final = 16
_C: Final = 5
"""Less regularization than scikit-learn's default, with which the model is right far oftener than it says."""


@dataclass(frozen=True, slots=True)
class Digits:
    """Images of 8 × 8 pixels between 0 and 1, and what they show."""

    images: Array
    labels: Labels

    def drawn(self, count: int, random: np.random.Generator) -> Digits:
        """Returns some of them, with replacement."""
        chosen = random.integers(len(self.labels), size=count)
        return Digits(self.images[chosen], self.labels[chosen])

    def partly_shifted(self, share: float) -> Digits:
        """Returns them, a share one pixel further to the right: what an app does that crops its photos wrongly."""
        count = round(share * len(self.labels))
        return Digits(np.concatenate([np.roll(self.images[:count], 1, axis=2), self.images[count:]]), self.labels)


def load(seed: int = 0) -> tuple[Digits, Digits]:
    """Returns the digits to train on, and those that the model never sees."""
    every = load_digits()
    images, labels = (every.images / DARKEST).astype(np.float32), every.target
    order = np.random.default_rng(seed).permutation(len(labels))
    seen, unseen = order[:TRAINING], order[TRAINING:]
    return Digits(images[seen], labels[seen]), Digits(images[unseen], labels[unseen])


class Model:
    """Multinomial logistic regression on the pixels."""

    def __init__(self, training: Digits) -> None:
        self._regression = LogisticRegression(C=_C, max_iter=1000).fit(_pixels(training), training.labels)

    def logits(self, digits: Digits) -> Array:
        """Returns the logits, (N, 10)."""
        logits: Array = self._regression.decision_function(_pixels(digits)).astype(np.float32)
        return logits


def _pixels(digits: Digits) -> Array:
    return digits.images.reshape(len(digits.images), -1)
