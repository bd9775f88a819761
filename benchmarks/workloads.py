"""The requests that are sent in JSON, and what the right answer to each is."""

import dataclasses
from functools import cached_property
from typing import Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from benchmarks.reference import losses_and_gradients

OUTPUTS = ("loss", "losses", "gradients")
TOLERANCE = 1e-5
"""Relative; naive float32 is to pass, mistakes are not. The `kernel` section measures accuracy."""
GRADIENT_TOLERANCE = 1e-6
"""Absolute, of a gradient per unit of upstream gradient, which is 1 / N."""


class Workload(Protocol):
    """A request, sent over `connections` connections at a time."""

    @property
    def name(self) -> str: ...
    @property
    def connections(self) -> int: ...
    @property
    def content_type(self) -> str: ...
    @property
    def query(self) -> str: ...
    @property
    def body(self) -> bytes: ...
    def is_answered_by(self, answer: bytes) -> bool: ...


@dataclasses.dataclass(frozen=True)
class JsonWorkload:
    """Logits and labels as nested numbers, the outputs in JSON."""

    rows: int
    classes: int
    connections: int
    fields: tuple[tuple[str, str], ...] = ()

    content_type = "application/json"
    query = ""

    @property
    def name(self) -> str:
        """Rows × classes."""
        return f"{self.rows}×{self.classes}{' with a model' if self.fields else ''}"

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
        """The request, with the shortest digits that give the same float32."""
        question = {"logits": self.logits, "labels": self.labels, "include": OUTPUTS, **dict(self.fields)}
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

    def is_answered_by(self, answer: bytes) -> bool:
        """Says whether an answer holds the right loss, losses and gradients."""
        given = orjson.loads(answer)
        absolute = {"loss": TOLERANCE, "losses": TOLERANCE, "gradients": GRADIENT_TOLERANCE / self.rows}
        return all(
            name in given and np.allclose(given[name], right, rtol=TOLERANCE, atol=absolute[name])
            for name, right in self.answer.items()
        )


ONE_ROW = JsonWorkload(rows=1, classes=10, connections=16)
SMALL = JsonWorkload(rows=32, classes=10, connections=16)
LARGE = JsonWorkload(rows=256, classes=1000, connections=4)
ONE_CLIENT = JsonWorkload(rows=1, classes=10, connections=1)
