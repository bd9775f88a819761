"""The service, Prometheus and Alertmanager as child processes on free ports, and who is woken by an alert."""

from __future__ import annotations

import contextlib
import json
import queue
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, Final

import httpx
import yaml

from examples.pipeline import rules
from examples.pipeline.traffic import ROOT

START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 10.0
LOOKBACK_S: Final = 300
"""Age above which Prometheus takes a value for gone; its own default."""
# Debian's name, and everybody else's.
_PROMETHEUS, _ALERTMANAGER = ("prometheus",), ("prometheus-alertmanager", "alertmanager")


class StackError(Exception):
    """Something that is needed is missing, or did not start; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Tools:
    """Paths of the programs that are not Python's."""

    prometheus: str
    alertmanager: str

    @classmethod
    def found(cls) -> Tools:
        """Looks for them in PATH.

        Raises:
            StackError: One is not installed.
        """
        paths = [next(filter(None, map(shutil.which, names)), None) for names in (_PROMETHEUS, _ALERTMANAGER)]
        if None in paths:
            raise StackError(
                "Prometheus and Alertmanager are needed: apt-get install prometheus prometheus-alertmanager (Debian, "
                "Ubuntu), or put `prometheus` and `alertmanager` from https://prometheus.io/download/ into the PATH."
            )
        return cls(*map(str, paths))


@dataclass(frozen=True, slots=True)
class Alert:
    """What Alertmanager says about an alert."""

    received_at: float
    status: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]

    @property
    def name(self) -> str:
        """Name of its rule."""
        return self.labels["alertname"]


class Child:
    """A process in a session of its own, so that Ctrl-C in the terminal ends it by us and in our order."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self._name, self._log = name, log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait_until_ready(self, url: str) -> None:
        """Asks until it answers 200.

        Raises:
            StackError: It ended instead, or doesn't in a minute; the message has the end of its log.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(url, timeout=1, trust_env=False).is_success:
                    return
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.05)
        written = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        raise StackError("\n".join([f"{self._name} did not start:", *written[-10:]]))

    def stop(self) -> None:
        """Ends it, kindly at first."""
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Prometheus:
    """Prometheus' query API."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._http = httpx.Client(base_url=url, timeout=10, trust_env=False)

    def close(self) -> None:
        """Closes the connection."""
        self._http.close()

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Returns labels and value of each series, now."""
        return [(one["metric"], float(one["value"][1])) for one in self._ask("query", query=expression)]

    def value(self, expression: str) -> float | None:
        """Returns the value of the only series, or None if there is none."""
        found = self.query(expression)
        return found[0][1] if found else None

    def query_range(
        self, expression: str, start: float, end: float, step: float = 1.0
    ) -> list[tuple[dict[str, str], list[tuple[float, float]]]]:
        """Returns labels, times and values of each series."""
        found = self._ask("query_range", query=expression, start=start, end=end, step=step)
        return [(one["metric"], [(at, float(value)) for at, value in one["values"]]) for one in found]

    def _ask(self, kind: str, **parameters: str | float) -> list[dict[str, Any]]:
        answer = self._http.get(f"/api/v1/{kind}", params=parameters)
        content = answer.json()
        if content["status"] != "success":
            raise StackError(f"Prometheus refuses {parameters['query']}: {content['error']}")
        found: list[dict[str, Any]] = content["data"]["result"]
        return found


class Receiver:
    """Where Alertmanager posts to.

    Attributes:
        alerts: What was news: each message repeats all that is firing in its group.
    """

    def __init__(self) -> None:
        self.alerts: list[Alert] = []
        self._status: dict[tuple[tuple[str, str], ...], str] = {}
        self._arrived: queue.Queue[None] = queue.Queue()
        self._server = HTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """Address of the webhook."""
        return f"http://127.0.0.1:{self._server.server_port}/"

    def close(self) -> None:
        """Stops listening."""
        self._server.shutdown()
        self._server.server_close()

    def wait(self, is_enough: Callable[[list[Alert]], bool], timeout_s: float) -> bool:
        """Waits until what was received is enough; returns whether it came to that."""
        deadline = time.monotonic() + timeout_s
        while not is_enough(self.alerts):
            try:
                self._arrived.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return is_enough(self.alerts)
        return True

    def _take(self, alert: Alert) -> None:
        key = tuple(sorted(alert.labels.items()))
        if self._status.get(key) != alert.status:
            self._status[key] = alert.status
            self.alerts.append(alert)
            self._arrived.put(None)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                for one in content["alerts"]:
                    receiver._take(Alert(time.time(), one["status"], one["labels"], one["annotations"]))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Alerts are reported by whoever waits for them."""

        return Handler


@dataclass(frozen=True, slots=True)
class Stack:
    """What runs."""

    services: Sequence[str]
    prometheus: Prometheus
    alertmanager_url: str
    receiver: Receiver


@contextlib.contextmanager
def running(folder: Path, models_file: Path, *, speed: int = 60) -> Iterator[Stack]:
    """Runs everything until the block is left, however it is left.

    Args:
        folder: For configuration, data and logs.
        models_file: What the service is told of the models.
        speed: How many times faster than in earnest the rules look and wait.

    Raises:
        StackError: See there.
    """
    tools = Tools.found()
    with contextlib.ExitStack() as stack:
        receiver = Receiver()
        stack.callback(receiver.close)
        service = started_service(stack, folder, models_file)
        alertmanager = _start_alertmanager(stack, tools, folder, receiver.url, speed)
        prometheus = started_prometheus(stack, tools, folder, [service], alertmanager=alertmanager, speed=speed)
        yield Stack([service], prometheus, f"http://{alertmanager}", receiver)


def started_service(stack: contextlib.ExitStack, folder: Path, models_file: Path, *, port: int = 0) -> str:
    """Starts the service and returns its address."""
    port = port or find_free_port()
    command = [sys.executable, "-m", "service", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    _start(stack, "service", [*command, "--models-file", str(models_file)], folder, f"http://127.0.0.1:{port}/readyz")
    return f"http://127.0.0.1:{port}"


def started_prometheus(  # noqa: PLR0913 - options by name
    stack: contextlib.ExitStack,
    tools: Tools,
    folder: Path,
    services: Sequence[str],
    *,
    alertmanager: str | None = None,
    speed: int = 60,
) -> Prometheus:
    """Starts Prometheus with the repository's rules; it scrapes and evaluates every second."""
    quick = folder / "rules"
    quick.mkdir()
    rules.write(quick, speed)
    targets = [url.removeprefix("http://") for url in services]
    configuration = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(quick / "*.yml")],
        "scrape_configs": [{"job_name": "losseval", "static_configs": [{"targets": targets}]}],
    }
    if alertmanager:
        configuration["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]}
    file = _written(folder / "prometheus.yml", configuration)
    port = find_free_port()
    command = [tools.prometheus, f"--config.file={file}", f"--web.listen-address=127.0.0.1:{port}"]
    command += [f"--storage.tsdb.path={folder / 'data'}", f"--query.lookback-delta={max(LOOKBACK_S // speed, 5)}s"]
    url = f"http://127.0.0.1:{port}"
    _start(stack, "prometheus", command, folder, f"{url}/-/ready")
    prometheus = Prometheus(url)
    stack.callback(prometheus.close)
    return prometheus


def _start_alertmanager(stack: contextlib.ExitStack, tools: Tools, folder: Path, webhook: str, speed: int) -> str:
    """Starts it with the repository's configuration, but for who is told."""
    own = (ROOT / "deploy" / "alertmanager" / "alertmanager.yml").read_text(encoding="utf-8")
    configuration = yaml.safe_load(rules.quickened(own, speed))
    for receiver in configuration["receivers"]:
        receiver["webhook_configs"] = [{"url": webhook}]
    file = _written(folder / "alertmanager.yml", configuration)
    address = f"127.0.0.1:{find_free_port()}"
    command = [tools.alertmanager, f"--config.file={file}", f"--web.listen-address={address}"]
    # Without a cluster it listens on no second port.
    command += [f"--storage.path={folder / 'alertmanager'}", "--cluster.listen-address="]
    _start(stack, "alertmanager", command, folder, f"http://{address}/-/ready")
    return address


def _start(stack: contextlib.ExitStack, name: str, command: Sequence[str], folder: Path, ready_url: str) -> None:
    child = Child(name, command, folder / f"{name}.log")
    stack.callback(child.stop)
    child.wait_until_ready(ready_url)


def _written(file: Path, configuration: Mapping[str, object]) -> Path:
    file.write_text(yaml.safe_dump(configuration), encoding="utf-8")
    return file


def find_free_port() -> int:
    """Returns a port the kernel has just handed out and taken back."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
