"""The service as processes that can be watched, broken on purpose, and asked whether they are unharmed."""

import contextlib
import http.client
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.servers import Launch, Server, running
from tests.calls import EXAMPLE, GOLDEN_LOSS, JSON, PATH
from tests.server import flags
from tests.wire import encode

GOLDEN_BODY = encode({**EXAMPLE, "include": ["loss", "losses", "gradients"]})
LIVEZ_S = 0.25
_ATTEMPTS = 3
_SAMPLE = re.compile(r"^losseval_(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_golden: list[bytes] = []


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer read to its end, and how long it took."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    seconds: float


def exchange(
    port: int,
    body: bytes | None = None,
    headers: Mapping[str, str] = JSON,
    *,
    path: str = PATH,
    timeout_s: float = 30.0,
    connection: http.client.HTTPConnection | None = None,
) -> Reply:
    """Sends one request, without a body a GET, on a connection of its own or the one given."""
    used = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        started = time.perf_counter()
        used.request("GET" if body is None else "POST", path, body, {} if body is None else dict(headers))
        response = used.getresponse()
        content = response.read()
        seconds = time.perf_counter() - started
        return Reply(response.status, {name.lower(): text for name, text in response.getheaders()}, content, seconds)
    finally:
        if connection is None:
            used.close()


@dataclass(frozen=True, slots=True)
class Replica(Server):
    """A process of the service."""

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def golden(self) -> Reply:
        """Sends the request whose answer is known to the bit."""
        return exchange(self.port, GOLDEN_BODY)

    def livez_s(self) -> float:
        """Returns how long `/livez` takes to say that the process is alive."""
        reply = exchange(self.port, path="/livez", timeout_s=10)
        assert reply.status == http.client.OK, f"/livez says {reply.status}"
        return reply.seconds

    def counters(self) -> dict[str, float]:
        """Returns the service's own metrics, as `name{labels}`."""
        text = exchange(self.port, path="/metrics").content.decode()
        return {f"{name}{{{labels}}}" if labels else name: float(n) for name, labels, n in _SAMPLE.findall(text)}

    def descriptors(self) -> int:
        """Returns how many files and sockets are open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))  # noqa: PTH208 - only the count is wanted

    def threads(self) -> int:
        """Returns how many threads run."""
        return len(list(Path(f"/proc/{self.process.pid}/task").iterdir()))

    def check_unharmed(self) -> None:
        """Checks what has to hold after every case: alive within 250 ms, and the golden request's bits.

        One answer in time is enough: a machine that is busy with something else is nobody's fault.
        """
        assert self.process.poll() is None, f"the process has ended with {self.process.returncode}"
        wait_until(lambda: self.livez_s() <= LIVEZ_S, seconds=10, what="an answer of /livez in 250 ms")
        reply = self.golden()
        assert reply.status == http.client.OK, f"the golden request got {reply.status}: {reply.content[:500]!r}"
        check_golden(reply.content)


def check_golden(content: bytes) -> None:
    """Compares with the first answer there was, bit for bit; and that one with the README."""
    if not _golden:
        assert b'"loss":%.4f' % GOLDEN_LOSS in content, content
        _golden.append(content)
    assert content == _golden[0], "the golden request has another answer"


@contextlib.contextmanager
def serving(
    build: str = "-", *, python: tuple[str, ...] = (), is_unharmed: bool = True, **settings: Any
) -> Iterator[Replica]:
    """Runs the service, as it is or as a build, for the block, and checks at its end that it is unharmed.

    What may be harmed is killed: it could take its time to end.
    """
    given = flags({"device": "cpu", "threads": 1, "log_level": "warning", **settings})
    launch = Launch(
        name=f"the service ({build})",
        arguments=(*python, "-m", "tests.reliability.launcher", build, *given),
        path=PATH,
        ready_path="/readyz",
    )
    with running(launch) as server:
        replica = Replica(launch, server.port, server.process, server.ready_s)
        try:
            yield replica
            if is_unharmed:
                replica.check_unharmed()
        finally:
            if not is_unharmed:
                server.process.kill()


def total(counters: Mapping[str, float], name: str, *having: str) -> float:
    """Adds up the series of a metric whose labels hold all of these texts."""
    return sum(
        value
        for series, value in counters.items()
        if series.partition("{")[0] == name and all(text in series for text in having)
    )


def wait_until(is_so: Callable[[], bool], *, seconds: float, what: str) -> float:
    """Waits until a condition holds, and returns how long that took.

    Raises:
        AssertionError: It did not become true in time.
    """
    started = time.monotonic()
    while not is_so():
        waited = time.monotonic() - started
        assert waited < seconds, f"{what} took more than {seconds:g} s"
        time.sleep(0.01)
    return time.monotonic() - started


def patiently(scenario: Callable[[], None]) -> None:
    """Tries a long scenario up to three times: what another process of the machine spoils is measured again."""
    for attempt in range(_ATTEMPTS):
        try:
            scenario()
        except AssertionError:
            if attempt + 1 == _ATTEMPTS:
                raise
        else:
            return
