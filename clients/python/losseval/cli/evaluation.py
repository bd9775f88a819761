"""What the commands do: evaluate the rows of files, compare results."""

import contextlib
import dataclasses
import math
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import numpy as np

from ..arrays import Array
from ..client import Client
from ..comparison import Comparison, compare
from ..errors import APIStatusError, LossevalError
from ..merging import merge
from ..results import CrossEntropyResult, Meta
from . import CommandError
from .files import Columns, Gradients, Source, open_sources

_DISJOINT = "no id is in both files"
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
                    names = _name_samples(names, size // len(names))
                parts.append(dataclasses.replace(part, outputs=outputs, ids=names))
                loss_sum, normalizer = loss_sum + part.loss_sum, normalizer + part.normalizer
                samples += size
                show(share, samples, loss_sum / normalizer if normalizer else math.nan)
    except APIStatusError as refusal:
        errors.append(CommandError(f"{refusal}\n{_explain(refusal)} (counted from sample {samples})"))
    except (LossevalError, KeyboardInterrupt) as error:
        errors.append(error)
    if not parts:
        raise [*errors, CommandError("there are no rows")][0]
    named = [part.ids for part in parts if part.ids is not None]
    ids: Any = np.concatenate(named) if len(named) == len(parts) else None
    return merge(parts, reduction=options["reduction"]).with_ids(ids), errors[0] if errors else None


def _name_samples(names: Array, each: int) -> Array:
    """Returns a name for each sample: that of its row and, where a row is several, its position there."""
    return names if each == 1 else np.array([f"{name}/{one}" for name in names.astype(str) for one in range(each)])


def _explain(refusal: APIStatusError) -> str:
    """Returns the first place and what is wrong there; a gateway's errors may have any form."""
    listed = refusal.problem.get("errors") or ()
    first = listed[0] if isinstance(listed, list) and isinstance(listed[0], dict) else {}
    return f"{first.get('pointer', 'all')}: {first.get('detail') or first.get('message', 'see above')}"


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
    outputs, sums = {"nll": whole["nll"].astype(np.float64)}, (math.nan, math.nan, ids.size, 0)
    return CrossEntropyResult(outputs, *sums, (), Meta("", "", "", 0), labels=whole.get("label"), ids=ids.tolist())


def compare_results(a: CrossEntropyResult, b: CrossEntropyResult) -> tuple[Comparison, str, str]:
    """Compares sample by sample where ids match and so do their labels, else the means; what B is, and why.

    Ids are often row numbers, which match in any two files: the labels tell whether they are of the same samples.

    Raises:
        CommandError: Ids repeat, and there is no going by position either.
    """
    a, b, names = _number_samples(a, b)
    ids, in_a, in_b = np.intersect1d(np.asarray(a.ids), np.asarray(b.ids), return_indices=True)
    differing = 0 if a.labels is None or b.labels is None else np.count_nonzero(a.labels[in_a] != b.labels[in_b])
    broken_a, broken_b = ~np.isfinite(a.nll), ~np.isfinite(b.nll)
    if ids.size and not differing:
        why, is_broken = f"{ids.size} {names} are in both files", bool(np.any(broken_b[in_b] & ~broken_a[in_a]))
    else:
        b = dataclasses.replace(b, ids=[f"{name}, another" for name in b.ids or ()])
        why = f"the same {names}, but {differing} of {ids.size} have other labels" if ids.size else _DISJOINT
        is_broken = bool(broken_b.any() and not broken_a.any())
    with np.errstate(invalid="ignore"):  # infinity less infinity
        comparison = compare(a, b)
    return comparison, _judge(comparison, is_broken=is_broken), why


def _number_samples(a: CrossEntropyResult, b: CrossEntropyResult) -> tuple[CrossEntropyResult, CrossEntropyResult, str]:
    """Names samples by position if an id occurs twice; also returns what the names are."""
    if all(np.unique(one.ids or ()).size == one.count for one in (a, b)):
        return a, b, "ids"
    if a.count != b.count:
        raise CommandError(f"an id occurs twice, and {a.count} and {b.count} samples don't pair by position either")
    numbers = np.arange(a.count).astype(str).tolist()
    return a.with_ids(numbers), b.with_ids(numbers), "positions (an id occurs twice)"


def _judge(comparison: Comparison, *, is_broken: bool) -> str:
    """Says what B is compared with A, as far as the 95 % interval tells, or what isn't finite in B alone."""
    low, high = comparison.interval
    if math.isnan(low) or math.isnan(high):
        return "worse" if is_broken else "can't be told"
    return "worse" if low > 0 else "better" if high < 0 else "no different"
