"""Evaluating what is larger than a request: cut by rows into parts, whose answers are merged. No I/O."""

import dataclasses
import math
import mmap
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from .arrays import Array, Tensor, TensorLike
from .exchange import new_request_id
from .merging import merge
from .operations import DEFAULT_INCLUDE, Options
from .results import CrossEntropyResult

Batch = tuple[TensorLike, TensorLike] | Mapping[str, Any]
_SLICED = ("logits", "labels", "sample_weight", "grad_output")


class Progress(NamedTuple):
    """How many rows are done of how many, and the mean loss so far."""

    done: int
    rows: int
    mean: float


class BulkOptions(Options, total=False):
    """Options of an evaluation, and how it is cut.

    Attributes:
        chunk_bytes: About how many bytes of logits a request has; by default 8 MiB.
        out: Arrays to write outputs to, by name, e.g. a memory-mapped file for `gradients`.
        progress: Called after each answer.
    """

    chunk_bytes: int
    out: Mapping[str, Array] | None
    progress: Callable[[Progress], object] | None


def arguments_of(batches: Iterable[Batch], options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields arguments of `cross_entropy`. A request id is numbered: the same one again would pass for a retry."""
    shared = options.get("request_id")
    for number, batch in enumerate(batches):
        own = batch if isinstance(batch, Mapping) else {"logits": batch[0], "labels": batch[1]}
        yield {**options, "request_id": shared and f"{shared}.{number}", **own}


class Evaluation:
    """One evaluation of arrays: `parts` are to be evaluated under `options`, their answers given to `add` in order.

    Raises:
        ValueError: Logits of one axis can't be cut; an array has another number of rows; `out` doesn't fit.
    """

    def __init__(self, logits: TensorLike, labels: TensorLike, options: BulkOptions) -> None:
        given: dict[str, Any] = {"logits": logits, "labels": labels}
        given |= {name: value for name, value in options.items() if value is not None}
        self._arrays = {name: _sliceable(name, given.pop(name)) for name in _SLICED if name in given}
        self._rows, *rest = self._arrays["logits"].shape
        if not rest:
            raise ValueError("the logits have one axis only, and no rows to cut")
        for name, array in self._arrays.items():
            if array.ndim and len(array) != self._rows:
                raise ValueError(f"{name} has {len(array)} rows, and the logits have {self._rows}")
        row_bytes = math.prod(rest) * self._arrays["logits"].dtype.itemsize
        self._step = max(1, given.pop("chunk_bytes", 8 << 20) // max(1, row_bytes))
        self._out, self._progress, self._ids = given.pop("out", {}), given.pop("progress", None), given.pop("ids", None)
        self._reduction = given.pop("reduction", "mean")
        given["request_id"] = given.get("request_id") or new_request_id()
        include = given.get("include", DEFAULT_INCLUDE)
        given["include"] = (include,) if isinstance(include, str) else tuple(include)
        self.options = {**given, "reduction": "none" if self._reduction == "none" else "sum"}
        self._is_rounded_last = self._reduction == "mean" and given.get("gradient_dtype") == "F16"
        if self._reduction == "mean" and given.get("gradient_dtype") in {"F16", "BF16"}:
            self.options["gradient_dtype"] = "F32"  # sums may be beyond 16 bits where their mean is not
        _check_out(self._out, given["include"], self._rows)
        self._sent: deque[Any] = deque()
        self._answers: list[CrossEntropyResult] = []
        self._done, self._loss_sum, self._normalizer = 0, 0.0, 0.0

    def parts(self) -> Iterator[Mapping[str, Any]]:
        """Yields the arrays of each; they are sliced, not copied."""
        for start in range(0, max(1, self._rows), self._step):
            rows = slice(start, start + self._step)
            part = {name: array[rows] if array.ndim else array for name, array in self._arrays.items()}
            self._sent.append(part["logits"])
            yield part

    def add(self, part: CrossEntropyResult) -> None:
        """Takes the next answer."""
        logits = self._sent.popleft()
        start, self._done = self._done, self._done + len(logits)
        for name, whole in self._out.items():
            whole[start : self._done] = part.outputs[name]
        kept = {name: value for name, value in part.outputs.items() if name not in self._out}
        self._answers.append(dataclasses.replace(part, outputs=kept))
        self._loss_sum += part.loss_sum
        self._normalizer += part.normalizer
        _forget(logits)
        if self._progress:
            mean = self._loss_sum / self._normalizer if self._normalizer else math.nan
            self._progress(Progress(self._done, self._rows, mean))

    def result(self) -> CrossEntropyResult:
        """Returns the answer of the whole."""
        whole = merge(self._answers, reduction=self._reduction, out=self._out).with_ids(self._ids)
        if self._is_rounded_last and "gradients" in self._answers[0].outputs:  # and not in out
            whole = dataclasses.replace(whole, outputs={**whole.outputs, "gradients": whole.gradients.astype("f2")})
        return whole


def _check_out(out: Mapping[str, Array], include: Collection[str], rows: int) -> None:
    for name, array in out.items():
        if name not in include or name in {"loss", "summary"}:
            raise ValueError(f"out has {name!r}, which is not an array that include asks for")
        if len(array) != rows or (name != "predictions" and array.dtype not in {np.dtype("f4"), np.dtype("f8")}):
            raise ValueError(f"out[{name!r}] must have {rows} rows of float32 or float64")


def _sliceable(name: str, value: TensorLike) -> Any:  # noqa: ANN401 - an array of any library
    is_array = hasattr(value, "dtype") and hasattr(value, "ndim") and not hasattr(value, "iloc")
    return value if is_array else Tensor.of(name, value).array


def _forget(part: object) -> None:
    """Gives the pages of a read-only mapped file back: the system would count them as this process's memory."""
    file = part
    while isinstance(file, np.ndarray):
        file = file.base
    if not isinstance(part, np.ndarray) or not isinstance(file, mmap.mmap) or part.flags.writeable or not part.size:
        return
    start = part.ctypes.data - np.frombuffer(file, np.uint8).ctypes.data
    page = start - start % mmap.PAGESIZE
    if part.flags.c_contiguous and hasattr(mmap, "MADV_DONTNEED"):
        file.madvise(mmap.MADV_DONTNEED, page, start - page + part.nbytes)
