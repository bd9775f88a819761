"""Open-loop load: requests leave when they are due, whether others are answered or not.

`offer` runs the generator as a process of its own. Latency counts from the time a request was due, so that a server
that stops answering for a second is charged for every request of that second ("coordinated omission").
"""

import asyncio
import contextlib
import dataclasses
import gc
import json
import math
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self, cast

import uvloop

from benchmarks.load import LoadResult, content_length, percentile
from benchmarks.servers import ROOT

_END_OF_HEAD = b"\r\n\r\n"
_STATUS = slice(9, 12)
_GRACE_S = 5.0
"""For answers under way when the last request has been sent; then they count as lost."""
_MAX_CONNECTIONS = 4000
_SEND_BUFFER_BYTES = 1 << 18


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is sent, how often and for how long; every second of `warmup_s` counts in the books and nowhere else."""

    port: int
    path: str
    body: str  # a file
    content_type: str = "application/json"
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    expects_continue: bool = False
    expected: str = ""  # a file with the right answer, where there is one
    rate: float
    seconds: float
    warmup_s: float = 1.0
    grace_s: float = _GRACE_S
    patience_s: float | None = None
    """After how long callers hang up: the mean of an exponential distribution, as people are."""
    useful_s: float = math.inf
    """Answers later than this don't count as goodput."""
    unjudged_s: float = 0.01
    """Nobody can tell whether a request sent so shortly before the listener was seen to be closed came in time."""

    def head(self, length: int) -> bytes:
        """Returns the request's head."""
        fields = {
            "Host": f"127.0.0.1:{self.port}",
            "Content-Type": self.content_type,
            "Content-Length": str(length),
            **({"Expect": "100-continue"} if self.expects_continue else {}),
            **self.headers,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"POST {self.path} HTTP/1.1\r\n{lines}\r\n".encode()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Offered:
    """What became of the requests. Seconds of latency are those of answers with 200, from when they were due."""

    sent: int
    statuses: Mapping[str, int]
    unsent: int
    """Never left: no connection."""
    lost: int
    """Were sent in full, before the listener was seen to be closed, and have no answer."""
    wrong: int
    """Answers with 200 that are not the expected bytes."""
    unanswered: int
    """All without an answer, `lost` and `unsent` among them: transport errors."""
    late: int
    """Answers with 200 that came too late to be of use."""
    goodput_per_s: float
    p50_s: float
    p99_s: float
    slowest_s: float
    refusal_p99_s: float
    lag_p99_s: float
    """How late the generator itself was."""

    @property
    def ok(self) -> int:
        """Answers with 200."""
        return self.statuses.get("200", 0)

    def answered(self, first_digit: str) -> int:
        """Answers of one class."""
        return sum(count for status, count in self.statuses.items() if status.startswith(first_digit))

    @property
    def are_books_balanced(self) -> bool:
        """Whether every request has exactly one fate."""
        return self.sent == sum(self.statuses.values()) + self.unanswered


class _Run:
    """The state of a run."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.chance = random.Random(1)
        content = Path(plan.body).read_bytes()
        head = plan.head(len(content))
        self.first, self.rest = (head, content) if plan.expects_continue else (head + content, b"")
        self.expected = Path(plan.expected).read_bytes() if plan.expected else None
        self.idle: deque[_Connection] = deque()
        self.due: deque[float] = deque()
        self.connections = 0
        self.sent = self.answered = self.wrong = self.unsent = 0
        self.statuses: Counter[str] = Counter()
        self.ok: list[tuple[float, float]] = []  # due, answered
        self.refusals: list[float] = []
        self.lags: list[float] = []
        self.cut: list[float] = []  # when requests without an answer had been sent
        self.refused_at = float("inf")
        self._opening: set[asyncio.Task[None]] = set()

    def send(self, due: float) -> None:
        """Sends what is due now, on the connection that has been idle for longest."""
        self.sent += 1
        self.lags.append(time.perf_counter() - due)
        while self.idle:
            connection = self.idle.popleft()
            if not connection.is_closing:
                connection.send(due)
                return
        self.due.append(due)
        if self.connections < _MAX_CONNECTIONS:
            self.open()

    def open(self) -> None:
        """Opens one more connection for what waits."""
        self.connections += 1
        task = asyncio.get_running_loop().create_task(self._connect())
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _connect(self) -> None:
        try:
            loop = asyncio.get_running_loop()
            await loop.create_connection(lambda: _Connection(self), "127.0.0.1", self.plan.port)
        except OSError:
            self.connections -= 1
            self.refused_at = min(self.refused_at, time.perf_counter())
            if self.due:
                self.due.popleft()
                self.unsent += 1

    @property
    def is_done(self) -> bool:
        """Whether every request has its fate."""
        return self.answered + self.unsent + len(self.cut) >= self.sent


class _Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request under way."""

    __slots__ = ("_body_left", "_due", "_is_right", "_place", "_received", "_run", "_sent_at", "_status", "_transport")

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._due = 0.0
        self._sent_at = 0.0
        self._received = b""
        self._body_left = -1
        self._place = 0
        self._status = ""
        self._is_right = True

    @property
    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        # The machine is the server's, too: what is refused need not be copied into the system first.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        self._next()

    def send(self, due: float) -> None:
        self._due, self._sent_at = due, time.perf_counter()
        self._transport.write(self._run.first)
        if self._run.plan.patience_s is not None:
            patience_s = self._run.chance.expovariate(1 / self._run.plan.patience_s)
            asyncio.get_running_loop().call_later(patience_s, self._hang_up, due)

    def _hang_up(self, due: float) -> None:
        if self._due == due:
            self._transport.abort()

    def _next(self) -> None:
        if self._run.due:
            self.send(self._run.due.popleft())
        else:
            self._run.idle.append(self)

    def data_received(self, data: bytes) -> None:
        if self._body_left < 0:
            self._received += data
            end = self._received.find(_END_OF_HEAD)
            if end < 0:
                return
            head, data = self._received[:end], self._received[end + len(_END_OF_HEAD) :]
            self._received = b""
            self._status = head[_STATUS].decode("ascii", "replace")
            if self._status == "100":
                self._transport.write(self._run.rest)
                if data:
                    self.data_received(data)
                return
            self._body_left, self._place = content_length(head + b"\r\n", len(head) + 2), 0
            self._is_right = True
            if b"connection: close" in head.lower():
                self._status += "c"
        if self._run.expected is not None and self._status.startswith("200"):
            self._is_right &= self._run.expected.startswith(data, self._place)
        self._place += len(data)
        self._body_left -= len(data)
        if self._body_left <= 0:
            self._finish()

    def _finish(self) -> None:
        run, now = self._run, time.perf_counter()
        status, must_close = self._status[:3], self._status.endswith("c")
        run.answered += 1
        run.statuses[status] += 1
        if status == "200":
            run.ok.append((self._due, now))
            if run.expected is not None:
                run.wrong += not (self._is_right and self._place == len(run.expected))
        else:
            run.refusals.append(now - self._due)
        self._body_left, self._due = -1, 0.0
        if must_close or self._transport.get_write_buffer_size() or (run.rest and status != "200"):
            self._transport.abort()  # the rest of a refused body is not sent
        else:
            self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        run = self._run
        run.connections -= 1
        if self._due:
            run.cut.append(self._sent_at)
        if run.due:
            run.open()


async def _offer(run: _Run) -> tuple[float, float]:
    plan = run.plan
    begun = due = time.perf_counter()
    end = begun + plan.warmup_s + plan.seconds
    while due < end:
        now = time.perf_counter()
        if now < due:
            await asyncio.sleep(due - now)
        while due <= time.perf_counter() and due < end:
            run.send(due)
            due += run.chance.expovariate(plan.rate)
        await asyncio.sleep(0)
    give_up_at = time.perf_counter() + plan.grace_s
    while not run.is_done and time.perf_counter() < give_up_at:  # noqa: ASYNC110 - it must not cost the hot path
        await asyncio.sleep(0.01)
    return begun + plan.warmup_s, end


def measure(plan: Plan) -> Offered:
    """Offers the load and returns what became of it."""
    gc.disable()
    run = _Run(plan)
    start, end = uvloop.run(_offer(run))
    latencies = sorted(answered - due for due, answered in run.ok if start <= due) or [float("nan")]
    useful = [answered for due, answered in run.ok if answered - due <= plan.useful_s]
    done = sum(start <= answered <= end for answered in useful)
    unanswered = run.sent - run.answered
    return Offered(
        sent=run.sent,
        statuses=dict(run.statuses),
        unsent=run.unsent,
        lost=unanswered - run.unsent - sum(sent_at >= run.refused_at - plan.unjudged_s for sent_at in run.cut),
        wrong=run.wrong,
        unanswered=unanswered,
        late=len(run.ok) - len(useful),
        goodput_per_s=done / plan.seconds,
        p50_s=percentile(latencies, 0.5),
        p99_s=percentile(latencies, 0.99),
        slowest_s=latencies[-1],
        refusal_p99_s=percentile(sorted(run.refusals) or [float("nan")], 0.99),
        lag_p99_s=percentile(sorted(run.lags), 0.99),
    )


class Offer:
    """A generator at work in a process of its own."""

    def __init__(self, port: int, body: bytes, *, path: str, expected: bytes = b"", **options: Any) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="losseval-load-")
        folder = Path(self._folder.name)
        (folder / "body").write_bytes(body)
        (folder / "expected").write_bytes(expected)
        files = {"body": str(folder / "body"), "expected": str(folder / "expected") if expected else ""}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.reliability.load"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"port": port, "path": path, **files, **options}).encode())
        self._process.stdin.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        with contextlib.suppress(OSError):
            self._folder.cleanup()

    def is_over(self) -> bool:
        """Whether it has finished."""
        return self._process.poll() is not None

    def outcome(self) -> Offered:
        """Waits for its end."""
        assert self._process.stdout is not None
        text = self._process.stdout.read()
        assert self._process.wait() == 0, "the generator has failed"
        found: Offered = Offered(**json.loads(text))
        assert found.are_books_balanced
        return found


def offer(port: int, body: bytes, *, path: str = "/v1/cross-entropy", **options: Any) -> Offered:
    """Offers the load of a `Plan` with these options, and returns what became of it."""
    with Offer(port, body, path=path, **options) as generator:
        return generator.outcome()


def saturate(
    port: int, body: bytes, *, connections: int, seconds: float, path: str = "/v1/cross-entropy"
) -> LoadResult:
    """Sends as fast as answers come: the peak."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        command = [sys.executable, "-m", "benchmarks.load", "--port", str(port), "--path", path, "--body", file.name]
        options = ["--connections", str(connections), "--seconds", str(seconds)]
        done = subprocess.run([*command, *options], cwd=ROOT, check=True, capture_output=True, text=True)
    return LoadResult.from_json(done.stdout)


@contextlib.contextmanager
def offering(port: int, body: bytes, *, path: str = "/v1/cross-entropy", **options: Any) -> Iterator[Offer]:
    """Offers the load while the block runs."""
    with Offer(port, body, path=path, **options) as generator:
        yield generator


def main() -> None:
    """Reads a plan as JSON, prints what became of it as JSON."""
    plan = Plan(**json.load(sys.stdin))
    sys.stdout.write(json.dumps(dataclasses.asdict(measure(plan))) + "\n")


if __name__ == "__main__":
    main()
