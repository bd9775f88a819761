"""What a person sees: colours and bars on a terminal, plots, Ctrl-C, help."""

import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ

import numpy as np
import pytest

from losseval import __version__
from losseval.cli.report import count_losses

from .conftest import Command
from .data import DataSet

COMMAND = [sys.executable, "-m", "losseval"]
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A command on a terminal of 80 columns."""

    def __init__(self, *arguments: object, environment: dict[str, str]) -> None:
        self._end, inner = pty.openpty()
        ioctl(inner, TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
        command = [*COMMAND, *map(str, arguments)]
        self.process = subprocess.Popen(command, stdin=inner, stdout=inner, stderr=inner, env=environment)
        os.close(inner)
        self.shown = ""

    def read_until(self, text: str | None, timeout_s: float = 30) -> str:
        """Reads until it shows a text, or ends."""
        deadline = time.monotonic() + timeout_s
        while text is None or text not in self.shown:
            ready, _, _ = select.select([self._end], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"nothing more than {self.shown!r}"
            try:
                self.shown += os.read(self._end, 1 << 16).decode()
            except OSError:  # Linux says so when the other end is closed
                break
        return self.shown

    def close(self) -> int:
        """Returns the exit code."""
        self.read_until(None)
        os.close(self._end)
        return self.process.wait(10)


@pytest.fixture
def path(tmp_path: Path, data: DataSet) -> Path:
    np.savez(tmp_path / "set.npz", logits=data.logits, labels=data.labels)
    return tmp_path / "set.npz"


def test_a_terminal_gets_colours_a_bar_and_tables(path: Path, environment: dict[str, str]) -> None:
    terminal = Terminal("evaluate", path, "--top-k", 3, environment=environment)
    assert terminal.close() == 0
    shown = ESCAPE.sub("", terminal.shown)
    assert "\x1b[36m" in terminal.shown
    assert re.search(r"400 samples, [\d,]+/s, mean 0\.\d{4} ━+ 100%", shown)
    assert re.search(r"loss +0\.\d+", shown)
    assert "Largest nll" in shown
    assert all(len(line) <= 80 for line in shown.splitlines())


def test_no_color_leaves_the_bar_and_takes_the_colours(path: Path, environment: dict[str, str]) -> None:
    terminal = Terminal("evaluate", path, environment={**environment, "NO_COLOR": "1"})
    assert terminal.close() == 0
    assert "━" in terminal.shown
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", terminal.shown)


def test_the_histogram_counts_every_sample_that_is_not_ignored(losseval: Command, path: Path, data: DataSet) -> None:
    answer = losseval("evaluate", path, "--plot")
    header, *lines = answer.out.split("\n\n")[-1].splitlines()
    assert header == "  nll from      samples"
    bars = [(float(line.split()[0]), int(line.split()[1].replace(",", "")), line.count("█")) for line in lines]
    nll = data.nll[data.kept]
    assert 5 < len(bars) <= 20
    assert sum(count for _, count, _ in bars) == len(nll)
    assert bars[0][0] <= nll.min()
    largest = max(bars, key=lambda bar: bar[1])
    assert largest[2] == max(width for _, _, width in bars)
    edges = [edge for edge, _, _ in bars]
    for (low, count, _), high in zip(bars[:-1], edges[1:], strict=True):
        assert count == pytest.approx(((low <= nll) & (nll < high)).sum(), abs=3)  # the edges shown are rounded


@pytest.mark.parametrize("nll", [[0.0, 0, 0], [2.3], [1e-9, 1e3], [np.inf, 1.0], []])
def test_a_histogram_of_anything_can_be_drawn(nll: list[float]) -> None:
    edges, counts = count_losses(np.array(nll, np.float32))
    assert counts.sum() == np.isfinite(nll).sum()
    assert len(counts) <= 20
    assert (np.diff(edges) > 0).all()


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_plot_file_is_a_picture(ending: str, losseval: Command, path: Path) -> None:
    picture = path.parent / f"losses.{ending}"
    assert losseval("evaluate", path, "--plot-file", picture).code == 0
    if ending == "svg":
        root = ET.parse(picture).getroot()
        assert root.tag.endswith("svg")
        assert len(root.findall(".//{http://www.w3.org/2000/svg}path")) > 3
    else:
        assert picture.read_bytes().startswith(b"\x89PNG\r\n")


def test_what_is_not_installed_is_named(
    losseval: Command, path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    answer = losseval("evaluate", path, "--plot-file", path.parent / "losses.svg")
    assert (answer.code, answer.err) == (1, "error: this needs matplotlib: pip install 'losseval[plot]'\n")
    monkeypatch.setitem(sys.modules, "losseval.cli.app", None)
    assert losseval("--help").err == "error: this needs losseval.cli.app: pip install 'losseval[cli]'\n"
    monkeypatch.undo()
    monkeypatch.setenv("LOSSEVAL_URL", url)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    answer = losseval("evaluate", path, "--out", path.parent / "losses.parquet")
    assert (answer.code, answer.err) == (1, "error: this needs pyarrow: pip install 'losseval[cli]'\n")


def test_ctrl_c_prints_what_is_done(tmp_path: Path, environment: dict[str, str]) -> None:
    logits = np.lib.format.open_memmap(tmp_path / "logits.npy", "w+", np.float32, (4_000_000, 1000))  # a sparse file
    np.save(tmp_path / "labels.npy", np.zeros(len(logits), np.int8))
    out, files = tmp_path / "out.csv", [tmp_path / "logits.npy", tmp_path / "labels.npy"]
    terminal = Terminal("evaluate", *files, "--out", out, environment=environment)
    terminal.read_until(" samples, ")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.close() == 130
    shown = ESCAPE.sub("", terminal.shown)
    (done,) = re.findall(r"stopped: this is of the first ([\d,]+) samples", shown)
    assert 0 < int(done.replace(",", "")) < len(logits)
    assert re.search(r"loss +6\.90776", shown)
    assert len(out.read_text().splitlines()) == 1 + int(done.replace(",", ""))
    assert "Traceback" not in shown


def test_ctrl_c_while_waiting_for_input_ends_quietly(environment: dict[str, str]) -> None:
    with subprocess.Popen(
        [*COMMAND, "evaluate", "-"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        wait_for_read(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert process.stderr
        assert b"Traceback" not in process.stderr.read()


def wait_for_read(pid: int) -> None:
    """Waits until a process sleeps in a read of a pipe."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if b"pipe" in Path(f"/proc/{pid}/wchan").read_bytes() or read_syscall(pid).startswith("0 0x0 "):
            return
        time.sleep(0.02)
    pytest.fail("it does not read")


def read_syscall(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/syscall").read_text()
    except OSError:
        return ""


def test_help_names_every_option_and_takes_no_numpy(environment: dict[str, str]) -> None:
    script = "import sys; from losseval.cli import main; main(['evaluate', '--help']); print(*sys.modules)"
    shown = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, check=True, text=True
    ).stdout
    modules = shown.splitlines()[-1].split()
    assert not {"numpy", "httpx", "rich", "pyarrow", "matplotlib"} & {*modules}
    for option in (
        "--logits",
        "--weight",
        "--z-loss",
        "--class-axis",
        "--gradients-out",
        "--model-version",
        "--no-monitor",
        "--local",
    ):
        assert option in shown
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([*COMMAND, "--help"], env=environment, capture_output=True, check=True)
        seconds.append(time.perf_counter() - start)
    print(f"losseval --help: {min(seconds):.2f} s")


def test_version_is_the_packages(losseval: Command) -> None:
    assert losseval("--version")[:2] == (0, f"losseval {__version__}\n")


def test_json_is_one_line_whatever_the_terminal(path: Path, environment: dict[str, str]) -> None:
    terminal = Terminal("evaluate", path, "--json", environment=environment)
    assert terminal.close() == 0
    line = [line for line in ESCAPE.sub("", terminal.shown).splitlines() if line.startswith("{")]
    assert json.loads(line[0])["count"] > 0
