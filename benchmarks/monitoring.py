"""Section `monitoring`: what it costs a request that its model's losses are counted."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Final

from benchmarks import servers
from benchmarks.comparison import Comparison, Plan, Summary
from benchmarks.report import Row, Table, at_most, median, row
from benchmarks.workloads import LARGE, ONE_ROW, SMALL, JsonWorkload

ROUNDS: Final = 9
FULL: Final = Plan(rounds=1, seconds=2.5, warmup_s=0.3)
QUICK: Final = Plan(rounds=1, seconds=0.6, warmup_s=0.2)
BARS: Final = ((ONE_ROW, 1.05), (SMALL, 1.05), (LARGE, 1.25))
MODELS: Final = """
models:
  - model: digits
    versions: ["1"]
    classes: 10
    segments: [web]
"""
FIELDS: Final = (("model", "digits"), ("version", "1"), ("segment", "web"), ("predicted_at", "2026-01-31T12:00:00Z"))


def _overhead(comparison: Comparison, service: servers.Server, workload: JsonWorkload, most: float, plan: Plan) -> Row:
    """Compares the CPU time of requests with and without a model; both go to one server, in turn."""
    kinds = (dataclasses.replace(workload, fields=FIELDS), workload)
    found: list[list[Summary]] = [[], []]
    for _ in range(ROUNDS):
        for kind, summaries in zip(kinds, found, strict=True):
            summaries.append(comparison.run(kind, (service,), plan)["service"])
    monitored, plain = (median([one.cpu_us for one in summaries]) for summaries in found)
    return row(
        f"{workload.name}, {workload.connections} connections: server CPU µs/request, against no model",
        figure=monitored,
        reference=plain,
        bar=at_most(most),
        is_valid=not any(one.wrong for summaries in found for one in summaries),
    )


def run(*, is_quick: bool) -> list[Table]:
    """Measures the CPU time of JSON requests that name a declared model."""
    plan = QUICK if is_quick else FULL
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models.yaml"
        models.write_text(MODELS, encoding="utf-8")
        with servers.running(servers.service("--models-file", str(models))) as service:
            comparison = Comparison("monitoring", Path(folder))
            rows = [_overhead(comparison, service, *bar, plan) for bar in BARS]
    return [Table("Monitoring: JSON requests that name their model", rows)]
