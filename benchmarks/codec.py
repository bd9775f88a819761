"""Section `codec`: the service's JSON, decoded and encoded in this process, beside simdjson and orjson on the bytes."""

import re
import time
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import simdjson

from benchmarks import adapter, json_floor
from benchmarks.report import Bar, Row, Table, at_most, median, progress, row
from benchmarks.workloads import LARGE, ONE_ROW, SMALL, JsonWorkload

_FULL_ROUNDS: Final = 25
_QUICK_ROUNDS: Final = 9
_NUMBERS_A_ROUND: Final = 20_000
"""Small bodies are repeated until a round takes milliseconds."""
_INNER_NUMBER: Final = re.compile(rb",[-\d.e]+,")  # neither the first nor the last of its row
_MILLION: Final = JsonWorkload(rows=1000, classes=1000, connections=1)


def cpu_us(ours: Callable[[], object], theirs: Callable[[], object], rounds: int, repeats: int) -> tuple[float, float]:
    """Returns the median CPU microseconds of a call of each; they take turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        for call, found in zip((ours, theirs), times, strict=True):
            begun_at = time.process_time()
            for _ in range(repeats):
                call()
            found.append(1e6 * (time.process_time() - begun_at) / repeats)
    # The first round pays for the allocator.
    return median(times[0][1:]), median(times[1][1:])


def _check(workload: JsonWorkload, values: Mapping[str, object]) -> None:
    """Makes sure that both sides do the same work.

    Raises:
        RuntimeError: They don't.
    """
    arrays = adapter.decode_json(workload.body)
    is_read = all(np.array_equal(arrays[name], getattr(workload, name)) for name in ("logits", "labels"))
    if not is_read or b"".join(adapter.encode_json(values)) != json_floor.write(values):
        raise RuntimeError(f"the service's JSON differs from the reference's for {workload.name}")


def _rows(workload: JsonWorkload, bar: Bar | None, rounds: int) -> list[Row]:
    progress(f"codec: {workload.name}")
    parser, body, values = simdjson.Parser(), workload.body, workload.answer
    _check(workload, values)
    repeats = max(1, _NUMBERS_A_ROUND // workload.logits.size)
    decode = cpu_us(lambda: adapter.decode_json(body), lambda: json_floor.parse(parser, body), rounds, repeats)
    encode = cpu_us(lambda: adapter.encode_json(values), lambda: json_floor.write(values), rounds, repeats)
    return [
        row(f"{workload.name}: {what} CPU µs, against {reference}", figure=ours, reference=theirs, bar=bar)
        for what, reference, (ours, theirs) in (("decode", "simdjson", decode), ("encode", "orjson", encode))
    ]


def _with_nan(body: bytes) -> bytes:
    """Puts the string "NaN" in place of a number near the middle."""
    middle = len(body) // 2
    return body[:middle] + _INNER_NUMBER.sub(b',"NaN",', body[middle:], count=1)


def _nan_row(rounds: int) -> Row:
    progress("codec: one NaN")
    plain, with_nan = _MILLION.body, _with_nan(_MILLION.body)
    ours, theirs = cpu_us(lambda: adapter.decode_json(with_nan), lambda: adapter.decode_json(plain), rounds, 1)
    what = 'decode CPU µs with one "NaN" among a million numbers, against none'
    return row(what, figure=ours, reference=theirs, bar=at_most(10))


def run(*, is_quick: bool) -> list[Table]:
    """Measures three sizes, and what a non-finite number costs."""
    adapter.keep_freed_memory()  # as the service does at its start
    rounds = _QUICK_ROUNDS if is_quick else _FULL_ROUNDS
    rows = [one for workload in (ONE_ROW, SMALL) for one in _rows(workload, None, rounds)]
    rows += _rows(LARGE, at_most(1.3), rounds)
    rows.append(_nan_row(-(-rounds // 3)))
    return [Table("Codec: JSON in this process", rows)]
