"""Server processes under test: started, waited for, watched by the operating system, stopped."""

import contextlib
import dataclasses
import http.client
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
READY_TIMEOUT_S = 120.0
THREADS = 1  # torch's, in every server: the same arithmetic budget for all
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_POLL_S = 0.005
_UVICORN = ("-m", "uvicorn", "--loop", "uvloop", "--http", "httptools", "--log-level", "info")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How a server is started: arguments for this Python, less the port, and what it answers at."""

    name: str
    arguments: tuple[str, ...]
    path: str  # `{answer_bytes}` stands for the length of the service's answer
    ready_path: str
    computes: bool = True
    variables: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Server:
    """A running server process."""

    launch: Launch
    port: int
    process: subprocess.Popen[bytes]
    ready_s: float

    def cpu_s(self) -> float:
        """Returns the CPU seconds of all its threads so far, in ticks of the kernel (10 ms)."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii", errors="replace")
        # The command in parentheses may hold blanks: count the fields behind it (proc(5): 14, 15).
        fields = stat.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S

    def resident_bytes(self) -> int:
        """Returns the memory it has now."""
        return self._status_bytes("VmRSS")

    def peak_bytes(self) -> int:
        """Returns the most memory it had since `forget_peak`."""
        return self._status_bytes("VmHWM")

    def forget_peak(self) -> None:
        """Begins a new peak at the memory it has now (proc(5): 5 into clear_refs).

        Where the kernel has no such file, the start of the process counts too: a peak can come out too high, never too
        low.
        """
        with contextlib.suppress(OSError):
            Path(f"/proc/{self.process.pid}/clear_refs").write_text("5", encoding="ascii")

    def _status_bytes(self, field: str) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii", errors="replace")
        _, _, line = status.partition(f"{field}:")
        return int(line.split()[0]) * 1024  # its kB are KiB


def service(*flags: str, name: str = "service") -> Launch:
    """Describes the service with further flags."""
    return Launch(
        name=name,
        arguments=("-m", "service", "--threads", str(THREADS), "--log-level", "info", *flags),
        path="/v1/cross-entropy",
        ready_path="/readyz",
    )


def naive() -> Launch:
    """Describes the naive endpoint. Like the service, uvicorn logs one line a request."""
    return Launch(
        name="naive",
        arguments=(*_UVICORN, "benchmarks.naive:app"),
        path="/cross-entropy",
        ready_path="/openapi.json",
        variables=(("OMP_NUM_THREADS", str(THREADS)),),
    )


def bare() -> Launch:
    """Describes the bare ASGI app. It is a floor, so it logs nothing."""
    return Launch(
        name="bare",
        arguments=(*_UVICORN, "--no-access-log", "--lifespan", "off", "benchmarks.bare:app"),
        path="/?bytes={answer_bytes}",
        ready_path="/",
        computes=False,
    )


def free_port() -> int:
    """Returns a port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def environment() -> dict[str, str]:
    """Returns this environment without settings of the service or of OpenMP, which would hide the service's own."""
    return {name: text for name, text in os.environ.items() if not name.startswith(("LOSSEVAL_", "OMP_", "MKL_"))}


def is_ready(port: int, path: str) -> bool:
    """Asks once whether the server answers 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", path)
        return connection.getresponse().status == http.HTTPStatus.OK
    return False


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, launch: Launch) -> None:
    give_up_at = time.perf_counter() + READY_TIMEOUT_S
    while not is_ready(port, launch.ready_path):
        if process.poll() is not None or time.perf_counter() > give_up_at:
            message = f"{launch.name} is not ready (exit status {process.returncode})"
            raise RuntimeError(message)
        time.sleep(_POLL_S)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and waits for it."""
    process.terminate()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def running(launch: Launch) -> Iterator[Server]:
    """Runs a server until the block ends; its log goes to a file, as a collector would have it.

    Every error in the block carries the end of that log.

    Raises:
        RuntimeError: It ended or did not become ready.
    """
    port = free_port()
    command = [sys.executable, *launch.arguments, "--port", str(port)]
    with tempfile.TemporaryFile() as log:
        begun_at = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment() | dict(launch.variables), stdout=log, stderr=subprocess.STDOUT
        )
        try:
            _wait_until_ready(process, port, launch)
            yield Server(launch, port, process, time.perf_counter() - begun_at)
        except Exception as error:
            log.seek(0)
            error.add_note(f"The log of {launch.name} ends:\n{log.read()[-2000:].decode(errors='replace')}")
            raise
        finally:
            stop(process)
