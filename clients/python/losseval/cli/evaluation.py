"""What the commands do: evaluate the rows of files, compare results."""

import contextlib
import dataclasses
import math
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import numpy as np

from ..client import Client
from ..comparison import Comparison, compare
from ..errors import APIStatusError, LossevalError
from ..merging import merge
from ..results import CrossEntropyResult, Meta
from . import CommandError
from .files import Columns, Gradients, Source, open_sources

Chosen = Sequence[tuple[Source, Columns]]


def evaluate_rows(
    client: Client,
    sources: Chosen,
    options: Mapping[str, Any],
    *,
    gradients: Gradients | None,
    show: Callable[[float | None, int, float], None],
) -> tuple[CrossEntropyResult, BaseException | None]:
    """Evaluates all rows, or those before Ctrl-C or an error, which it returns too; shows share, samples, mean so far.

    Rows come and go. What is asked for of each sample is kept, but for gradients: they go to their file.
    """
    sent: deque[tuple[Any, float | None]] = deque()
    parts: list[CrossEntropyResult] = []
    loss_sum, normalizer, samples = 0.0, 0.0, 0
    errors: list[BaseException] = []
    patient = client.with_options(is_patient=True)
    try:
        with contextlib.closing(_request({**options, "reduction": "sum"}, sources, sent, errors)) as requests:
            for part in patient.evaluate_many(requests, max_in_flight=2):
                outputs, (names, share), size = dict(part.outputs), sent.popleft(), part.count + part.ignored
                if gradients:
                    gradients.add(outputs.pop("gradients"))
                if names is not None:
                    names = np.repeat(names, size // len(names))  # a row may be several samples
                parts.append(dataclasses.replace(part, outputs=outputs, ids=names))
                loss_sum, normalizer = loss_sum + part.loss_sum, normalizer + part.normalizer
                samples += size
                show(share, samples, loss_sum / normalizer if normalizer else math.nan)
    except APIStatusError as refusal:
        first = next(iter(refusal.problem.get("errors", ())), {"pointer": "all", "detail": "see above"})
        errors.append(CommandError(f"{refusal}\n{first['pointer']}: {first['detail']} (counted from sample {samples})"))
    except (LossevalError, KeyboardInterrupt) as error:
        errors.append(error)
    if not parts:
        raise [*errors, CommandError("there are no rows")][0]
    named = [part.ids for part in parts if part.ids is not None]
    ids: Any = np.concatenate(named) if len(named) == len(parts) else None
    return merge(parts, reduction=options["reduction"]).with_ids(ids), errors[0] if errors else None


def _request(
    options: Mapping[str, Any], sources: Chosen, sent: deque[Any], errors: list[BaseException]
) -> Generator[dict[str, Any]]:
    """Yields requests; an error of reading is the end, so that those that were sent are still answered."""
    try:
        for source, columns in sources:
            for rows, share in source.read(columns):
                sent.append((rows.pop("id", None), share))
                yield {**options, **rows}
    except (CommandError, KeyboardInterrupt) as error:
        errors.append(error)


def read_result(path: str) -> CrossEntropyResult:
    """Reads the losses and, if they are there, the ids and labels."""
    (source,) = open_sources([path])
    columns = source.choose({"nll": None, "label": None, "id": None}, "give what `losseval evaluate --out` wrote")
    chunks = [rows for rows, _ in source.read(columns)]
    whole = {role: np.concatenate([rows[role] for rows in chunks]) for role in columns}
    ids = whole.get("id", np.arange(len(whole["nll"]))).astype(str)
    if np.unique(ids).size < ids.size:
        raise CommandError(f"{path}: an id occurs twice")
    outputs, sums = {"nll": whole["nll"]}, (math.nan, math.nan, ids.size, 0)
    return CrossEntropyResult(outputs, *sums, (), Meta("", "", "", 0), labels=whole.get("label"), ids=ids.tolist())


def compare_results(a: CrossEntropyResult, b: CrossEntropyResult) -> tuple[Comparison, str]:
    """Compares sample by sample where ids match and so do their labels, else the means; says why.

    Ids are often row numbers, which match in any two files: the labels tell whether they are of the same samples.
    """
    ids, in_a, in_b = np.intersect1d(np.asarray(a.ids), np.asarray(b.ids), return_indices=True)
    differing = 0 if a.labels is None or b.labels is None else np.count_nonzero(a.labels[in_a] != b.labels[in_b])
    if ids.size and not differing:
        return compare(a, b), f"{ids.size} ids are in both files"
    apart = dataclasses.replace(b, ids=[f"{name}, another" for name in b.ids or ()])
    why = f"the same ids, but {differing} of {ids.size} have other labels" if ids.size else "no id is in both files"
    return compare(a, apart), why


def judge(comparison: Comparison) -> str:
    """Says what B is compared with A, as far as the 95 % interval tells."""
    low, high = comparison.interval
    return "worse" if low > 0 or math.isnan(comparison.difference) else "better" if high < 0 else "no different"
