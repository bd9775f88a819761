"""Outputs: never an input, in their places only when they are whole."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from losseval.cli import files as io

from .conftest import Command
from .data import DataSet

NOBODY = ["--url", "http://127.0.0.1:9"]


@pytest.fixture
def path(tmp_path: Path, data: DataSet) -> Path:
    np.savez(tmp_path / "set.npz", logits=data.logits, labels=data.labels)
    return tmp_path / "set.npz"


def names(path: Path) -> list[str]:
    return sorted(one.name for one in path.parent.iterdir())


@pytest.mark.parametrize("option", ["--out", "--gradients-out"])
def test_an_input_is_no_output_by_another_name_either(
    option: str, losseval: Command, path: Path, data: DataSet
) -> None:
    if option == "--gradients-out":
        path = path.with_suffix(".safetensors")
        save_file({"logits": data.logits, "labels": data.labels}, path)
    link = path.with_name(f"link{path.suffix}")
    link.symlink_to(path)
    content = path.read_bytes()
    for output in (path, link):
        answer = losseval("evaluate", path, option, output, *NOBODY)
        assert (answer.code, answer.out) == (2, "")
        assert answer.err == f"error: {option} {output}: is read, so it can't be written\n"
    assert path.read_bytes() == content


def test_redirected_standard_input_is_an_input(path: Path, environment: dict[str, str]) -> None:
    rows = path.with_name("rows.jsonl")
    rows.write_text('{"logits": [1, 2], "labels": 0}\n')
    command = [sys.executable, "-m", "losseval", "evaluate", "-", "--out", str(rows)]
    with rows.open() as file:
        assert subprocess.run(command, stdin=file, env=environment, check=False).returncode == 2
    assert rows.read_text().startswith('{"logits"')


def test_a_failed_run_leaves_what_was_there(losseval: Command, path: Path) -> None:
    outputs = [path.with_name(name) for name in ("out.csv", "gradients.safetensors", "nll.svg")]
    for output in outputs:
        output.write_text("old")
    before = names(path)
    options = ["--out", outputs[0], "--gradients-out", outputs[1], "--plot-file", outputs[2]]
    assert losseval("evaluate", path, *options, *NOBODY).code == 4
    assert [output.read_text() for output in outputs] == ["old"] * 3
    assert names(path) == before
    assert losseval("evaluate", path, *options).code == 0
    assert "old" not in [output.read_bytes()[:3].decode("latin-1") for output in outputs]
    assert names(path) == before


@pytest.mark.parametrize(("option", "name"), [("--out", "a.csv"), ("--gradients-out", "a.safetensors")])
@pytest.mark.parametrize("is_folder", [False, True])
def test_what_can_not_be_written_is_told_before_anything_is_sent(
    option: str, name: str, *, is_folder: bool, losseval: Command, path: Path
) -> None:
    output = path.parent / "missing" / name
    if is_folder:
        output.mkdir(parents=True)
    answer = losseval("evaluate", path, option, output, *NOBODY)
    assert (answer.code, answer.out) == (1, "")
    assert answer.err.startswith(f"error: {option} {output}: can't be written: ")
    assert answer.err.count("\n") == 1


def test_a_full_disk_does_not_cost_the_numbers(losseval: Command, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(io, "write_table", fail)
    answer = losseval("evaluate", path, "--out", path.with_name("out.csv"))
    assert answer.code == 1
    assert answer.out.startswith("loss\t")
    assert answer.err == "error: [Errno 28] No space left on device\n"
    assert names(path) == ["set.npz"]
