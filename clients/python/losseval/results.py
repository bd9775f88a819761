"""What comes back: the outputs asked for, the sums that let parts be merged, warnings, and tables of samples."""

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from .arrays import Array

T = TypeVar("T")
_COLUMNS = {"predictions": "prediction", "losses": "loss", "nll": "nll", "margin": "margin"}
_COLUMNS |= {"entropy": "entropy", "logsumexp": "logsumexp", "gradient_norm": "gradient_norm"}


@dataclasses.dataclass(frozen=True)
class EvaluationWarning:
    """Something that was computed but deserves notice; `first`: up to ten flat indices into `losses`."""

    code: str
    detail: str
    count: int
    first: Sequence[int]


class Meta(NamedTuple):
    """About the answer, not in it; `attempts`: the requests it took, but for those on stale connections."""

    request_id: str
    service_version: str
    server_timing: str
    attempts: int

    @property
    def timings(self) -> dict[str, float]:
        """Milliseconds the service spent, by stage: decode, queue, compute, encode."""
        entries = (entry.strip().split(";dur=") for entry in self.server_timing.split(","))
        return {entry[0]: float(entry[1]) for entry in entries if len(entry) > 1}


class _Output(Generic[T]):
    """Reads an output, or says how to get it."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, result: "CrossEntropyResult", owner: type | None = None) -> T:
        if self._name not in result.outputs:
            raise AttributeError(f"{self._name!r} is not in the answer: name it in include (reduction none: no loss)")
        value: T = result.outputs[self._name]
        return value


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class CrossEntropyResult:
    """The answer to a call, or the merged answers of several.

    Arrays are float32, float64 for float64 logits; `gradients` have the dtype asked for, bfloat16 as float32, which
    holds every bfloat16. An output that `include` did not name raises AttributeError.

    Attributes:
        outputs: Those asked for, by name.
        loss_sum: Sum of the losses; the mean is loss_sum / normalizer, so that parts can be merged.
        count: Samples not ignored; `ignored` has the others.
        labels: The class indices sent; of probabilities the likeliest, with `nll` or `summary`.
        label_counts: With `summary`, how often each class is the label; of probabilities their sums.
        ignore_index: The label of ignored samples; None with probability labels.
        ids: Those given with the call, one a sample; they never leave the client.
    """

    outputs: Mapping[str, Any]
    loss_sum: float
    normalizer: float
    count: int
    ignored: int
    warnings: tuple[EvaluationWarning, ...]
    meta: Meta
    labels: Array | None = None
    label_counts: Array | None = None
    ignore_index: int | None = None
    ids: Sequence[Any] | None = None

    loss = _Output[float]()
    losses = _Output[Array]()
    gradients = _Output[Array]()
    nll = _Output[Array]()
    probabilities = _Output[Array]()
    logsumexp = _Output[Array]()
    entropy = _Output[Array]()
    margin = _Output[Array]()
    gradient_norm = _Output[Array]()
    predictions = _Output[Array]()
    summary = _Output[dict[str, Any]]()

    def __repr__(self) -> str:
        loss, warnings = self.outputs.get("loss", self.loss_sum), [warning.code for warning in self.warnings]
        return f"CrossEntropyResult({loss=}, count={self.count}, outputs={[*self.outputs]}, {warnings=})"

    def with_ids(self, ids: Sequence[Any] | None) -> "CrossEntropyResult":
        """Returns the same with names for its samples. ValueError: too few or too many."""
        if ids is not None and len(ids) != self.count + self.ignored:
            raise ValueError(f"{len(ids)} ids for {self.count + self.ignored} samples")
        return dataclasses.replace(self, ids=ids)

    def table(self) -> dict[str, Array]:
        """Returns `id`, `label`, and a column for each output of one number a sample.

        With `nll` there is also `self_confidence`, exp(−nll).
        """
        columns = {column: np.ravel(self.outputs[name]) for name, column in _COLUMNS.items() if name in self.outputs}
        if "nll" in columns:
            columns["self_confidence"] = np.exp(-columns["nll"])
        if self.labels is not None:
            columns = {"label": self.labels.ravel(), **columns}
        ids = range(self.count + self.ignored) if self.ids is None else self.ids
        return {"id": np.asarray(ids), **columns}

    def kept(self) -> Array:
        """Returns the flat indices of the samples that are not ignored."""
        if self.labels is None or self.ignore_index is None:
            return np.arange(self.count + self.ignored)
        return np.flatnonzero(self.labels != self.ignore_index)

    def top(self, k: int = 10) -> dict[str, Array]:
        """Returns the rows of `table` with the largest `nll`, NaN first, and their flat `index`: what to look at.

        For finding wrong labels the logits must come from a model that never saw them (out-of-sample predictions).
        """
        kept = self.kept()
        wide = np.ravel(self.nll)[kept].astype(np.float64)
        order = kept[np.argsort(-np.nan_to_num(wide, nan=np.inf, posinf=1e308), kind="stable")[: max(0, k)]]
        return {"index": order, **{name: column[order] for name, column in self.table().items()}}

    def to_pandas(self) -> Any:  # noqa: ANN401 - pandas is no dependency
        """Returns `table` as a data frame; needs pandas."""
        return importlib.import_module("pandas").DataFrame(self.table())
