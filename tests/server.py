"""The real service as a child process."""

import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 30


def find_free_port() -> int:
    """Port the kernel has just handed out and taken back."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True, slots=True)
class Server:
    """A running service."""

    process: subprocess.Popen[bytes]
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def flags(settings: dict[str, object]) -> list[str]:
    """Settings in snake case as command line flags."""
    return [text for name, value in settings.items() for text in (f"--{name.replace('_', '-')}", str(value))]


def start(**settings: object) -> Server:
    """Start the service on a free port and return when it is ready."""
    port = find_free_port()
    command = [sys.executable, "-m", "service", *flags({"port": port, "log_level": "warning", **settings})]
    server = Server(subprocess.Popen(command, cwd=ROOT), port)
    try:
        wait_until_ready(server)
    except BaseException:
        server.process.kill()
        server.process.wait()
        raise
    return server


def wait_until_ready(server: Server) -> None:
    """Poll `/readyz`; a process that ends instead is an error at once."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise RuntimeError(f"the service ended at start with exit code {server.process.returncode}")
        try:
            if httpx.get(f"{server.url}/readyz", timeout=1).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            # Nothing listens yet; the process gets the processor until the next look.
            server_ended_within(server, 0.05)
    raise TimeoutError(f"the service is not ready after {START_TIMEOUT_S} s")


def server_ended_within(server: Server, seconds: float) -> bool:
    """Wait for the process, no longer than given."""
    try:
        server.process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return False
    return True
