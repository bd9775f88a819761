"""The floor of JSON: what simdjson and orjson take on the same bytes, with nothing in between."""

import time
from collections.abc import Mapping
from typing import Any

import orjson
import simdjson

from benchmarks.load import LoadResult, percentile
from benchmarks.workloads import JsonWorkload


def parse(parser: simdjson.Parser, body: bytes) -> tuple[bytes, bytes]:
    """Parses a request down to two buffers of numbers."""
    document: Any = parser.parse(body)
    return document["logits"].as_buffer(of_type="d"), document["labels"].as_buffer(of_type="i")


def write(answer: Mapping[str, object]) -> bytes:
    """Writes an answer."""
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def measure(workload: JsonWorkload, *, warmup_s: float, seconds: float) -> tuple[LoadResult, float]:
    """Repeats both in this thread; returns what a load generator would, and the CPU seconds per request.

    One parser for all, which is faster by the allocation of its tape.
    """
    parser, body, answer = simdjson.Parser(), workload.body, workload.answer

    def parse_and_write() -> None:
        parse(parser, body)
        write(answer)

    begun_at = time.perf_counter()
    while time.perf_counter() - begun_at < warmup_s:
        parse_and_write()
    times: list[float] = []
    begun_at, cpu_at = time.perf_counter(), time.thread_time()
    while time.perf_counter() - begun_at < seconds:
        call_at = time.perf_counter()
        parse_and_write()
        times.append(time.perf_counter() - call_at)
    wall_s, cpu_s = time.perf_counter() - begun_at, time.thread_time() - cpu_at
    times.sort()
    result = LoadResult(
        requests_per_s=len(times) / wall_s,
        p50_s=percentile(times, 0.5),
        p99_s=percentile(times, 0.99),
        answered=len(times),
        wall_s=wall_s,
    )
    return result, cpu_s / len(times)
