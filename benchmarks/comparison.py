"""Servers under the same load in turn, and the medians of what was seen."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks import servers
from benchmarks.load import LoadResult, Request, fetch
from benchmarks.report import Row, at_least, median, progress, row
from benchmarks.servers import Server
from benchmarks.workloads import Workload


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """How long to measure."""

    rounds: int
    seconds: float
    warmup_s: float


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


class Comparison:
    """Servers that run side by side, measured in turn; `absolute` keeps the figures of each."""

    def __init__(self, section: str, folder: Path) -> None:
        self._section = section
        self._folder = folder
        self.absolute: list[Row] = []

    def run(
        self, workload: Workload, members: Sequence[Server], plan: Plan, aside: Aside | None = None
    ) -> dict[str, Summary]:
        """Measures the members round after round, A B C A B C, and takes medians.

        Args:
            workload: What is sent.
            members: The servers; the service comes first.
            plan: How often and how long.
            aside: Something else to measure in every round, in this process.

        Raises:
            RuntimeError: A member's answer is wrong.
        """
        paths = _checked_paths(workload, members)
        (self._folder / "body").write_bytes(workload.body)
        rounds: dict[str, list[Sample]] = {}
        for number in range(plan.rounds):
            progress(f"{self._section}: {workload.name}, {workload.connections} connections, round {number + 1}")
            for server in members:
                name = server.launch.name
                rounds.setdefault(name, []).append(self._measure(server, paths[name], workload, plan))
            if aside:
                rounds.setdefault(aside.name, []).append(aside.measure())
        summaries = {name: _summary(results) for name, results in rounds.items()}
        self.absolute += [_absolute(workload, name, summary) for name, summary in summaries.items()]
        return summaries

    def _measure(self, server: Server, path: str, workload: Workload, plan: Plan) -> Sample:
        """Runs the load generator once; returns what it saw and the server's CPU seconds per request."""
        command = [sys.executable, "-m", "benchmarks.load", "--port", str(server.port), "--path", path]
        command += ["--body", str(self._folder / "body"), "--content-type", workload.content_type]
        command += ["--connections", str(workload.connections)]
        command += ["--warmup", str(plan.warmup_s), "--seconds", str(plan.seconds)]
        cpu_s = server.cpu_s()
        done = subprocess.run(command, cwd=servers.ROOT, check=True, stdout=subprocess.PIPE, text=True)
        result = LoadResult.from_json(done.stdout)
        return result, (server.cpu_s() - cpu_s) / result.answered


def checked_answer(server: Server, workload: Workload) -> bytes:
    """Asks once and returns the answer.

    Raises:
        RuntimeError: It is not the right one.
    """
    request = Request(server.launch.path + workload.query, workload.body, workload.content_type)
    status, answer = fetch(server.port, request)
    if status != 200 or not workload.is_answered_by(answer):
        raise RuntimeError(f"{server.launch.name} answers {workload.name} with {status}: {answer[:300]!r}")
    return answer


def throughput(workload: Workload, summaries: Mapping[str, Summary], reference: str, limit: float) -> Row:
    """Compares the service's rate with another's."""
    ours, theirs = summaries["service"], summaries[reference]
    return row(
        f"{workload.name}, {workload.connections} connections: requests/s, against {reference}",
        figure=ours.requests_per_s,
        reference=theirs.requests_per_s,
        bar=at_least(limit),
        is_valid=not ours.wrong + theirs.wrong,
    )


def _checked_paths(workload: Workload, members: Sequence[Server]) -> dict[str, str]:
    """Checks the answer of each member that computes, and tells the bare app how long the service's is."""
    paths: dict[str, str] = {}
    answer_bytes: int | None = None
    for server in members:
        launch = server.launch
        if launch.computes:
            size = len(checked_answer(server, workload))
            answer_bytes = size if answer_bytes is None else answer_bytes
        paths[launch.name] = launch.path.format(answer_bytes=answer_bytes) + (workload.query if launch.computes else "")
    return paths


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
