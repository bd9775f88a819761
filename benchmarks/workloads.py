"""The requests that are sent, and what the right answer to each is."""

import dataclasses
from functools import cached_property

import numpy as np
import orjson
from numpy.typing import NDArray

from benchmarks.reference import losses_and_gradients

_TOLERANCE = 1e-5
_OUTPUTS = ("loss", "losses", "gradients")


@dataclasses.dataclass(frozen=True)
class Workload:
    """One JSON request, sent over `connections` connections at a time."""

    rows: int
    classes: int
    connections: int

    @property
    def name(self) -> str:
        """Rows × classes."""
        return f"{self.rows}×{self.classes}"

    @cached_property
    def logits(self) -> NDArray[np.float32]:
        """Normal, scaled by two, always the same."""
        generator = np.random.default_rng(self.rows)
        return 2 * generator.standard_normal((self.rows, self.classes), dtype=np.float32)

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Uniform over the classes, always the same."""
        return np.random.default_rng(self.classes).integers(0, self.classes, self.rows)

    @cached_property
    def body(self) -> bytes:
        """The request in JSON, with the shortest digits that give the same float32."""
        question = {"logits": self.logits, "labels": self.labels, "include": _OUTPUTS}
        return orjson.dumps(question, option=orjson.OPT_SERIALIZE_NUMPY)

    @cached_property
    def answer(self) -> dict[str, NDArray[np.float32] | float]:
        """The right outputs, rounded to what goes over the wire."""
        losses, gradients = losses_and_gradients(self.logits, self.labels)
        return {
            "loss": float(losses.mean()),
            "losses": losses.astype(np.float32),
            "gradients": gradients.astype(np.float32),
        }

    def is_answered_by(self, body: bytes) -> bool:
        """Says whether a JSON answer holds the right loss, losses and gradients."""
        given = orjson.loads(body)
        return all(
            name in given and np.allclose(given[name], right, rtol=_TOLERANCE, atol=_TOLERANCE)
            for name, right in self.answer.items()
        )


ONE_ROW = Workload(rows=1, classes=10, connections=16)
SMALL = Workload(rows=32, classes=10, connections=16)
LARGE = Workload(rows=256, classes=1000, connections=4)
ONE_CLIENT = Workload(rows=1, classes=10, connections=1)
