"""A data set and, computed in float64 with numpy alone, what the commands have to say about it."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Wide = NDArray[np.float64]


def log_softmax(logits: NDArray[np.floating]) -> Wide:
    """Of the last axis."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: Wide = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


class DataSet(NamedTuple):
    """Logits and labels, some of them −100."""

    logits: NDArray[np.float32]
    labels: NDArray[np.int64]

    @property
    def ids(self) -> list[str]:
        return [f"s{row:04d}" for row in range(len(self.labels))]

    @property
    def kept(self) -> NDArray[np.bool_]:
        return self.labels >= 0

    @property
    def log_probabilities(self) -> Wide:
        return log_softmax(self.logits)

    @property
    def nll(self) -> Wide:
        """Of each row, 0 if it is ignored."""
        return np.where(self.kept, -self.log_probabilities[np.arange(len(self.labels)), self.labels.clip(0)], 0)

    @property
    def loss(self) -> float:
        return float(self.nll[self.kept].mean())

    @property
    def accuracy(self) -> float:
        return float((self.logits.argmax(axis=1) == self.labels)[self.kept].mean())

    @property
    def gradients(self) -> Wide:
        """Of the mean."""
        gradients = np.exp(self.log_probabilities) - np.eye(self.logits.shape[1])[self.labels.clip(0)]
        mean: Wide = np.where(self.kept[:, None], gradients, 0) / self.kept.sum()
        return mean


def make_data(rows: int, classes: int) -> DataSet:
    """Makes rows of which nine in ten are predicted well, and three in a hundred ignored."""
    random = np.random.default_rng(rows)
    labels = random.integers(0, classes, rows)
    logits = random.normal(size=(rows, classes)).astype(np.float32)
    logits[np.arange(rows), labels] += 4 * (random.random(rows) > 0.1)
    labels[random.random(rows) < 0.03] = -100
    return DataSet(logits, labels)
