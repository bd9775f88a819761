"""Section `http`: JSON requests to the service, beside the naive endpoint, a bare ASGI app and the libraries alone."""

import contextlib
import tempfile
from pathlib import Path
from typing import Final

from benchmarks import json_floor, servers
from benchmarks.comparison import Aside, Comparison, Plan, throughput
from benchmarks.report import Row, Table, at_most, progress, row
from benchmarks.servers import Server
from benchmarks.workloads import LARGE, ONE_CLIENT, ONE_ROW, SMALL

FULL: Final = Plan(rounds=5, seconds=3, warmup_s=0.4)
QUICK: Final = Plan(rounds=3, seconds=0.6, warmup_s=0.2)


def _small(comparison: Comparison, members: tuple[Server, ...], plan: Plan) -> list[Row]:
    rows: list[Row] = []
    for workload in (ONE_ROW, SMALL):
        found = comparison.run(workload, members, plan)
        rows += [throughput(workload, found, "naive", 5), throughput(workload, found, "bare", 0.2)]
        if workload is ONE_ROW:
            ours, theirs = found["service"], found["naive"]
            what = f"{workload.name}, {workload.connections} connections: server CPU µs/request, against naive"
            is_valid = not ours.wrong + theirs.wrong
            rows.append(row(what, figure=ours.cpu_us, reference=theirs.cpu_us, bar=at_most(0.2), is_valid=is_valid))
    return rows


def _large(comparison: Comparison, members: tuple[Server, ...], plan: Plan) -> list[Row]:
    """The JSON libraries have a core to themselves here, as the service nearly does: the client only copies."""
    alone = Aside(
        "simdjson + orjson alone",
        lambda: json_floor.measure(LARGE, warmup_s=plan.warmup_s / 2, seconds=plan.seconds / 2),
    )
    found = comparison.run(LARGE, members, plan, alone)
    return [throughput(LARGE, found, "naive", 5), throughput(LARGE, found, alone.name, 0.7)]


def _latency(comparison: Comparison, members: tuple[Server, ...], plan: Plan) -> Row:
    found = comparison.run(ONE_CLIENT, members, plan)
    return row(
        f"{ONE_CLIENT.name}, 1 connection: p50 latency µs, against --max-batch-requests 1",
        figure=found["service"].p50_us,
        reference=found["unbatched"].p50_us,
        bar=at_most(1.15),
        is_valid=not found["service"].wrong,
    )


def run(*, is_quick: bool) -> list[Table]:
    """Measures throughput, latency and CPU time."""
    plan = QUICK if is_quick else FULL
    launches = (
        servers.service(),
        servers.naive(),
        servers.bare(),
        servers.service("--max-batch-requests", "1", name="unbatched"),
    )
    with contextlib.ExitStack() as stack:
        comparison = Comparison("http", Path(stack.enter_context(tempfile.TemporaryDirectory())))
        progress("http: starting the servers")
        service, naive, bare, unbatched = (stack.enter_context(servers.running(one)) for one in launches)
        rows = _small(comparison, (service, naive, bare), plan)
        rows += _large(comparison, (service, naive), plan)
        rows.append(_latency(comparison, (service, unbatched), plan))
    return [Table("HTTP: JSON in, loss, losses and gradients out", rows), Table("HTTP: absolute", comparison.absolute)]
