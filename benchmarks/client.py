"""Section `client`: what the Python client costs beside the same bytes sent without it."""

import contextlib
import http.client
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import httpx
import numpy as np
import safetensors.numpy
from losseval import Client

from benchmarks import servers
from benchmarks.report import Row, Table, at_most, median, progress, row

_MIB: Final = 1 << 20
_CHUNK: Final = 8 * _MIB
_CLASSES: Final = 2048
_ROWS: Final = 131_072
_QUICK_ROWS: Final = 16_384
_HEADERS: Final = {"Content-Type": "application/x-safetensors"}
_PATH: Final = "/v1/cross-entropy"
_IMPORT: Final = "import time; begun = time.process_time(); import {}; print(time.process_time() - begun)"


def cpu_s(work: Callable[[], object]) -> float:
    """Returns the CPU seconds of this process, all threads."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def alternate(rounds: int, *works: Callable[[], object]) -> list[float]:
    """Returns the median CPU seconds of each; they take turns, and the first round is not counted."""
    times = [[cpu_s(work) for work in works] for _ in range(1 + rounds)]
    return [median(column) for column in zip(*times[1:], strict=True)]


def small_calls(url: str, rounds: int) -> Row:
    """Compares a call of 32 × 10 with plain httpx posting the same bytes and reading none of the answer."""
    logits, labels = np.zeros((32, 10), np.float32), np.zeros(32, np.int64)
    body = safetensors.numpy.save({"logits": logits, "labels": labels})
    with Client(url) as client, httpx.Client(base_url=url) as plain:

        def ours() -> None:
            for _ in range(100):
                client.cross_entropy(logits, labels)

        def theirs() -> None:
            for _ in range(100):
                plain.post(_PATH, content=body, headers=_HEADERS).raise_for_status()

        figure, reference = alternate(rounds, ours, theirs)
    what = "32×10: CPU µs a call, against plain httpx"
    return row(what, figure=figure * 1e4, reference=reference * 1e4, bar=at_most(1.3))


def upload(port: int, logits: np.ndarray, labels: np.ndarray) -> None:
    """Sends the same chunks as views by `http.client`, which copies nothing."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    rows = _CHUNK // (4 * _CLASSES)
    empty = safetensors.numpy.save({"labels": labels[:rows], "logits": np.zeros((rows, _CLASSES), np.float32)})
    header = empty[: -rows * (8 + 4 * _CLASSES)]
    with contextlib.closing(connection):
        for start in range(0, len(labels), rows):
            chunks = (part[start : start + rows].reshape(-1).view(np.uint8) for part in (labels, logits))
            parts: list[bytes | memoryview] = [header, *(chunk.data for chunk in chunks)]
            headers = {**_HEADERS, "Content-Length": str(sum(map(len, parts)))}
            connection.request("POST", _PATH, (part for part in parts), headers)
            response = connection.getresponse()
            if response.status != http.HTTPStatus.OK:
                raise RuntimeError(response.read())
            response.read()


@contextlib.contextmanager
def mapped_file(rows: int) -> Iterator[Path]:
    """Writes logits of `rows` × 2,048 float32 to a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "logits.npy"
        logits = np.lib.format.open_memmap(path, "w+", np.float32, (rows, _CLASSES))
        block = np.random.default_rng(0).standard_normal((4096, _CLASSES), np.float32)
        for start in range(0, rows, len(block)):
            logits[start : start + len(block)] = block
        logits.flush()
        del logits
        yield path


def large_arrays(port: int, rounds: int, rows: int) -> list[Row]:
    """Compares `evaluate_arrays` of a memory-mapped file with a bare upload: CPU time, and memory in chunks."""
    labels = np.arange(rows) % _CLASSES
    with mapped_file(rows) as path, Client(f"http://127.0.0.1:{port}") as client:
        figure, reference = alternate(
            rounds,
            lambda: client.evaluate_arrays(np.load(path, mmap_mode="r"), labels),
            lambda: upload(port, np.load(path, mmap_mode="r"), labels),
        )
        peak = peak_bytes(client, path, labels)
    name = f"{rows:,}×{_CLASSES:,} from a file"
    return [
        row(f"{name}: CPU s, against http.client", figure=figure, reference=reference, bar=at_most(1.5)),
        row(f"{name}: peak MiB, against a chunk", figure=peak / _MIB, reference=_CHUNK / _MIB, bar=at_most(4)),
    ]


def peak_bytes(client: Client, path: Path, labels: np.ndarray) -> int:
    """Returns by how much one evaluation raises this process's resident memory, pages of the file included."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _status_bytes("VmRSS")
    client.evaluate_arrays(np.load(path, mmap_mode="r"), labels)
    return _status_bytes("VmHWM") - before


def _status_bytes(field: str) -> int:
    _, _, line = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").partition(f"{field}:")
    return int(line.split()[0]) * 1024


def import_time(rounds: int) -> Row:
    """Compares the import with the bar, as the bar is absolute."""

    def import_ms(module: str) -> float:
        command = [sys.executable, "-c", _IMPORT.format(module)]
        return float(subprocess.run(command, check=True, capture_output=True, env=os.environ).stdout) * 1e3

    figure = median(import_ms("losseval") for _ in range(rounds))
    return row("import: CPU ms, against 150", figure=figure, reference=150.0, bar=at_most(1))


def run(*, is_quick: bool) -> list[Table]:
    """Measures a small call, a large evaluation and the import."""
    rounds, rows = (3, _QUICK_ROWS) if is_quick else (9, _ROWS)
    with servers.running(servers.service()) as server:
        progress("client: small calls")
        lines = [small_calls(f"http://127.0.0.1:{server.port}", rounds)]
        progress("client: large arrays")
        lines += large_arrays(server.port, rounds, rows)
    lines.append(import_time(rounds))
    return [Table("Client: its cost beside that of the same bytes without it", lines)]
