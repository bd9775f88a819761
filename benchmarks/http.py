"""Section `http`: the service beside the naive endpoint, a bare ASGI app and the JSON libraries alone."""

import contextlib
import dataclasses
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks import codec, servers
from benchmarks.load import LoadResult, fetch
from benchmarks.report import Row, Table, at_least, at_most, median, progress, row
from benchmarks.servers import Server
from benchmarks.workloads import LARGE, ONE_CLIENT, ONE_ROW, SMALL, Workload


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """How long to measure."""

    rounds: int
    seconds: float
    warmup_s: float


FULL: Final = Plan(rounds=5, seconds=3, warmup_s=0.4)
QUICK: Final = Plan(rounds=3, seconds=0.6, warmup_s=0.2)


Sample = tuple[LoadResult, float]
"""What the client saw in one round, and the server's CPU seconds per request."""


@dataclasses.dataclass(frozen=True, slots=True)
class Aside:
    """What is measured beside the servers."""

    name: str
    measure: Callable[[], Sample]


@dataclasses.dataclass(frozen=True, slots=True)
class Summary:
    """The medians of the rounds of one server under one workload."""

    requests_per_s: float
    cpu_us: float
    p50_us: float
    p99_us: float
    client_busy: float
    wrong: int


class Bench:
    """Servers that run side by side, measured in turn."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self._plan = plan
        self._folder = folder
        self.absolute: list[Row] = []

    def compare(self, workload: Workload, members: Sequence[Server], aside: Aside | None = None) -> dict[str, Summary]:
        """Measures the members round after round, A B C A B C, and takes medians.

        Args:
            workload: What is sent.
            members: The servers; the service comes first.
            aside: Something else to measure in every round, in this process.

        Raises:
            RuntimeError: A member's answer is wrong.
        """
        paths = self._paths(workload, members)
        rounds: dict[str, list[Sample]] = {}
        for number in range(self._plan.rounds):
            progress(f"http: {workload.name}, {workload.connections} connections, round {number + 1}")
            for server in members:
                name = server.launch.name
                rounds.setdefault(name, []).append(self._measure(server, paths[name], workload))
            if aside:
                rounds.setdefault(aside.name, []).append(aside.measure())
        summaries = {name: _summary(results) for name, results in rounds.items()}
        self.absolute += [_absolute(workload, name, summary) for name, summary in summaries.items()]
        return summaries

    def _paths(self, workload: Workload, members: Sequence[Server]) -> dict[str, str]:
        """Asks each member once, checks its answer, and tells the bare app how long the service's is."""
        paths: dict[str, str] = {}
        answer_bytes = 2
        for server in members:
            launch = server.launch
            paths[launch.name] = launch.path.format(answer_bytes=answer_bytes)
            if launch.computes:
                status, answer = fetch(server.port, paths[launch.name], workload.body)
                if status != 200 or not workload.is_answered_by(answer):
                    raise RuntimeError(f"{launch.name} answers {workload.name} with {status}: {answer[:300]!r}")
                answer_bytes = answer_bytes if launch.name == "naive" else len(answer)
        return paths

    def _measure(self, server: Server, path: str, workload: Workload) -> Sample:
        """Runs the load generator once; returns what it saw and the server's CPU seconds per request."""
        body = self._folder / workload.name
        body.write_bytes(workload.body)
        command = [sys.executable, "-m", "benchmarks.load", "--port", str(server.port), "--path", path]
        command += ["--body", str(body), "--connections", str(workload.connections)]
        command += ["--warmup", str(self._plan.warmup_s), "--seconds", str(self._plan.seconds)]
        cpu_s = server.cpu_s()
        done = subprocess.run(command, cwd=servers.ROOT, check=True, stdout=subprocess.PIPE, text=True)
        result = LoadResult.from_json(done.stdout)
        return result, (server.cpu_s() - cpu_s) / result.answered


def _summary(rounds: Sequence[Sample]) -> Summary:
    def middle(value: Callable[[LoadResult], float]) -> float:
        return median(value(result) for result, _ in rounds)

    return Summary(
        requests_per_s=middle(lambda result: result.requests_per_s),
        cpu_us=1e6 * median(cpu_s for _, cpu_s in rounds),
        p50_us=1e6 * middle(lambda result: result.p50_s),
        p99_us=1e6 * middle(lambda result: result.p99_s),
        client_busy=middle(lambda result: result.client_cpu_s / result.wall_s),
        wrong=sum(result.wrong for result, _ in rounds),
    )


def _absolute(workload: Workload, name: str, summary: Summary) -> Row:
    return {
        "workload": f"{workload.name}, {workload.connections} conn.",
        "server": name,
        "requests/s": summary.requests_per_s,
        "CPU µs/request": summary.cpu_us,
        "p50 µs": summary.p50_us,
        "p99 µs": summary.p99_us,
        "client busy": summary.client_busy,
        "wrong answers": summary.wrong,
    }


def _throughput(workload: Workload, summaries: Mapping[str, Summary], reference: str, limit: float) -> Row:
    ours, theirs = summaries["service"], summaries[reference]
    return row(
        f"{workload.name}, {workload.connections} connections: requests/s, against {reference}",
        figure=ours.requests_per_s,
        reference=theirs.requests_per_s,
        bar=at_least(limit),
        is_valid=not ours.wrong + theirs.wrong,
    )


def _small(bench: Bench, service: Server, naive: Server, bare: Server) -> list[Row]:
    rows: list[Row] = []
    for workload in (ONE_ROW, SMALL):
        found = bench.compare(workload, (service, naive, bare))
        rows += [_throughput(workload, found, "naive", 5), _throughput(workload, found, "bare", 0.2)]
        if workload is ONE_ROW:
            ours, theirs = found["service"].cpu_us, found["naive"].cpu_us
            what = f"{workload.name}, {workload.connections} connections: server CPU µs/request, against naive"
            rows.append(row(what, figure=ours, reference=theirs, bar=at_most(0.2)))
    return rows


def _large(bench: Bench, service: Server, naive: Server, plan: Plan) -> list[Row]:
    """The JSON libraries have a core to themselves here, as the service nearly does: the client only copies."""
    alone = Aside(
        "simdjson + orjson alone",
        lambda: codec.measure(LARGE, warmup_s=plan.warmup_s / 2, seconds=plan.seconds / 2),
    )
    found = bench.compare(LARGE, (service, naive), alone)
    return [_throughput(LARGE, found, "naive", 5), _throughput(LARGE, found, alone.name, 0.7)]


def _latency(bench: Bench, service: Server, unbatched: Server) -> Row:
    found = bench.compare(ONE_CLIENT, (service, unbatched))
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
        bench = Bench(plan, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        progress("http: starting the servers")
        service, naive, bare, unbatched = (stack.enter_context(servers.running(one)) for one in launches)
        rows = _small(bench, service, naive, bare)
        rows += _large(bench, service, naive, plan)
        rows.append(_latency(bench, service, unbatched))
    return [Table("HTTP: JSON in, loss, losses and gradients out", rows), Table("HTTP: absolute", bench.absolute)]
