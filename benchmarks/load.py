"""Closed-loop load generator, run as a process of its own: `python -m benchmarks.load`.

Every connection sends the same prepared bytes and waits for the answer before it sends again. It
speaks just enough HTTP/1.1 for that (a status and a Content-Length), so that a Python client keeps
ahead of a Python server. The first answer is fetched before the clock starts, and every later body
is compared with it byte for byte: a server that is fast and wrong, or that lets requests of one
batch disturb each other, shows up in `different`.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import functools
import gc
import http.client
import json
import math
import sys
import time
from pathlib import Path
from typing import Self, cast

import uvloop

_END_OF_HEAD = b"\r\n\r\n"
_OK = b"200"
_STATUS = slice(9, 12)
_EXCERPT = 1000
_GRACE_S = 30.0  # for the answers still under way when the clock stops


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """What is posted, again and again; the answer comes in whatever form the server prefers."""

    path: str
    body: bytes
    content_type: str = "application/json"

    def on_the_wire(self, port: int) -> bytes:
        """Returns the whole HTTP request, head and body."""
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: {self.content_type}\r\n"
            f"Accept: */*\r\nContent-Length: {len(self.body)}\r\n\r\n"
        )
        return head.encode() + self.body


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """What one run of the generator saw.

    Latencies are those of the requests begun after the warm-up. `answered` counts every answer,
    the warm-up's and the first one included: it is what the server's CPU time is divided by.
    """

    requests_per_s: float
    p50_s: float
    p99_s: float
    answered: int
    wall_s: float
    client_cpu_s: float = 0.0
    not_ok: int = 0
    different: int = 0
    lost: int = 0

    @property
    def wrong(self) -> int:
        """Answers that are missing, refused, or not the bytes of the first one."""
        return self.not_ok + self.different + self.lost

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Reads what `main` printed."""
        return cls(**json.loads(text))


@dataclasses.dataclass(slots=True, kw_only=True)
class _Run:
    """State shared by the connections of one run."""

    request: bytes
    expected: bytes
    stop_at: float
    begun: list[float] = dataclasses.field(default_factory=list)
    ended: list[float] = dataclasses.field(default_factory=list)
    not_ok: int = 0
    different: int = 0
    lost: int = 0


class _Connection(asyncio.Protocol):
    """One keep-alive connection with one request under way."""

    __slots__ = ("_begun", "_equal", "_head", "_is_ok", "_length", "_received", "_run", "_transport", "closed")

    def __init__(self, run: _Run, closed: asyncio.Future[None]) -> None:
        self._run = run
        self.closed = closed
        self._head = b""
        self._length = -1
        self._received = 0
        self._is_ok = True
        self._equal = True
        self._begun = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not registered as asyncio's classes: isinstance would refuse them.
        self._transport = cast("asyncio.WriteTransport", transport)
        self._send()

    def _send(self) -> None:
        self._begun = time.perf_counter()
        self._transport.write(self._run.request)

    def data_received(self, data: bytes) -> None:
        if self._length < 0:
            data = self._head + data if self._head else data
            end = data.find(_END_OF_HEAD)
            if end < 0:
                self._head = data
                return
            self._begin_body(data, end)
            data = data[end + len(_END_OF_HEAD) :]
        # `startswith` compares in place: a slice would copy, and == of memoryviews goes byte by byte.
        if not self._run.expected.startswith(data, self._received):
            self._equal = False
        self._received += len(data)
        if self._received >= self._length:
            self._finish()

    def _begin_body(self, data: bytes, end: int) -> None:
        self._head = b""
        self._received = 0
        self._length = content_length(data, end)
        self._equal = self._length == len(self._run.expected)
        self._is_ok = data[_STATUS] == _OK
        if not self._is_ok and not self._run.not_ok:
            sys.stderr.write(f"  the first answer that is not 200: {data[:_EXCERPT]!r}\n")

    def _finish(self) -> None:
        now = time.perf_counter()
        run = self._run
        run.begun.append(self._begun)
        run.ended.append(now)
        run.not_ok += not self._is_ok
        run.different += self._is_ok and not self._equal
        self._length = -1
        if now < run.stop_at:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        # _finish leaves -1 behind and ends after stop_at; anything else is the server hanging up.
        self._run.lost += self._length >= 0 or time.perf_counter() < self._run.stop_at
        if not self.closed.done():
            self.closed.set_result(None)


def content_length(data: bytes, end: int) -> int:
    """Returns the Content-Length in `data[:end]`, a response's head.

    Raises:
        ValueError: There is none; chunked answers are not understood here.
    """
    at = data.find(b"content-length:", 0, end)
    if at < 0:
        at = data.lower().find(b"content-length:", 0, end)
    if at < 0:
        message = f"no Content-Length in {data[:end]!r}"
        raise ValueError(message)
    at += len(b"content-length:")
    stop = data.find(b"\r\n", at)
    return int(data[at:stop])


def fetch(port: int, request: Request) -> tuple[int, bytes]:
    """Posts once, on a connection of its own; returns status and answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request("POST", request.path, request.body, {"Content-Type": request.content_type})
        response = connection.getresponse()
        return response.status, response.read()


def in_window(begun: list[float], ended: list[float], start: float, stop: float) -> float:
    """Returns how many requests fell into the window, counting those at its edges in part.

    With four connections and nine answers a second, whole counts would jump by tens of percent.
    """
    total = 0.0
    for first, last in zip(begun, ended, strict=True):
        inside = min(last, stop) - max(first, start)
        if inside > 0:
            total += inside / (last - first)
    return total


def percentile(ordered: list[float], share: float) -> float:
    """Returns the nearest-rank percentile of an ascending list."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def _drive(run: _Run, port: int, connections: int) -> None:
    loop = asyncio.get_running_loop()
    closed: list[asyncio.Future[None]] = [loop.create_future() for _ in range(connections)]
    for future in closed:
        await loop.create_connection(functools.partial(_Connection, run, future), "127.0.0.1", port)
    async with asyncio.timeout(run.stop_at - time.perf_counter() + _GRACE_S):
        await asyncio.gather(*closed)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How hard and how long to press."""

    connections: int
    warmup_s: float
    seconds: float


def measure(port: int, request: Request, load: Load) -> tuple[LoadResult, bytes]:
    """Runs the load once; returns its figures and the first answer's body."""
    status, answer = fetch(port, request)
    # Nothing here makes cycles, and a collection would count as the server's latency.
    gc.freeze()
    gc.disable()
    begun_at, cpu_at = time.perf_counter(), time.process_time()
    start, stop = begun_at + load.warmup_s, begun_at + load.warmup_s + load.seconds
    run = _Run(request=request.on_the_wire(port), expected=answer, stop_at=stop)
    run.not_ok += status != http.HTTPStatus.OK
    uvloop.run(_drive(run, port, load.connections))
    cpu_s, wall_s = time.process_time() - cpu_at, time.perf_counter() - begun_at
    pairs = zip(run.begun, run.ended, strict=True)
    latencies = sorted(last - first for first, last in pairs if first >= start) or [math.nan]
    return LoadResult(
        requests_per_s=in_window(run.begun, run.ended, start, stop) / load.seconds,
        p50_s=percentile(latencies, 0.5),
        p99_s=percentile(latencies, 0.99),
        answered=len(run.ended) + 1,
        wall_s=wall_s,
        client_cpu_s=cpu_s,
        not_ok=run.not_ok,
        different=run.different,
        lost=run.lost,
    ), answer


def main() -> None:
    """Reads the arguments, runs the load, prints a `LoadResult` as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description="Closed-loop load generator.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--body", type=Path, required=True, help="file with the body to post")
    parser.add_argument("--content-type", default="application/json", help="of the body")
    parser.add_argument("--answer", type=Path, help="file for the first answer's body")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--warmup", type=float, default=0.4, help="seconds not counted")
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    load = Load(connections=options.connections, warmup_s=options.warmup, seconds=options.seconds)
    request = Request(options.path, options.body.read_bytes(), options.content_type)
    result, answer = measure(options.port, request, load)
    if options.answer:
        options.answer.write_bytes(answer)
    sys.stdout.write(json.dumps(dataclasses.asdict(result)) + "\n")


if __name__ == "__main__":
    main()
