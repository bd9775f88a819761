"""What `losseval evaluate` reads and writes."""

import csv
import json
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from safetensors.numpy import load_file, save_file

from .conftest import Command
from .data import DataSet, make_data

SAMPLE = ["id", "label", "prediction", "nll", "self_confidence", "margin"]


def write_npz(path: Path, data: DataSet) -> list[Path]:
    np.savez(path / "set.npz", logits=data.logits, labels=data.labels, id=np.array(data.ids))
    return [path / "set.npz"]


def write_compressed(path: Path, data: DataSet) -> list[Path]:
    np.savez_compressed(path / "set.npz", logits=data.logits, labels=data.labels, id=np.array(data.ids))
    return [path / "set.npz"]


def write_npy(path: Path, data: DataSet) -> list[Path]:
    np.save(path / "logits.npy", data.logits)
    np.save(path / "labels.npy", data.labels)
    np.save(path / "id.npy", np.array(data.ids))
    return [path / "labels.npy", path / "id.npy", path / "logits.npy"]


def write_safetensors(path: Path, data: DataSet) -> list[Path]:
    save_file({"logits": data.logits, "labels": data.labels}, path / "set.safetensors", {"made_by": "a test"})
    return [path / "set.safetensors"]


def write_parquet(path: Path, data: DataSet) -> list[Path]:
    columns = {"id": data.ids, "logits": list(data.logits), "labels": data.labels, "text": ["…"] * len(data.ids)}
    parquet.write_table(pa.table(columns), path / "set.parquet", use_dictionary=False)
    return [path / "set.parquet"]


def write_fixed_size_parquet(path: Path, data: DataSet) -> list[Path]:
    logits = pa.FixedSizeListArray.from_arrays(pa.array(data.logits.ravel()), data.logits.shape[1])
    parquet.write_table(pa.table({"id": data.ids, "logits": logits, "labels": data.labels}), path / "set.parquet")
    return [path / "set.parquet"]


def write_csv(path: Path, data: DataSet) -> list[Path]:
    with (path / "set.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "labels", *(f"logits_{column}" for column in range(data.logits.shape[1]))])
        writer.writerows(np.column_stack([data.ids, data.labels, data.logits]))
    return [path / "set.csv"]


def write_jsonl(path: Path, data: DataSet) -> list[Path]:
    rows = zip(data.ids, data.labels.tolist(), data.logits.tolist(), strict=True)
    lines = [json.dumps({"id": name, "labels": label, "logits": row}) + "\n" for name, label, row in rows]
    (path / "set.jsonl").write_text("".join(lines))
    return [path / "set.jsonl"]


WRITERS = [
    write_npz,
    write_compressed,
    write_npy,
    write_safetensors,
    write_parquet,
    write_fixed_size_parquet,
    write_csv,
    write_jsonl,
]


@pytest.mark.parametrize("write", WRITERS)
def test_every_format_gives_the_numbers_of_the_reference(
    write: Callable[[Path, DataSet], list[Path]], losseval: Command, tmp_path: Path, data: DataSet
) -> None:
    answer = losseval("evaluate", *write(tmp_path, data), "--json", "--top-k", 3)
    assert (answer.code, answer.err) == (0, "")
    document = answer.document
    assert document["loss"] == pytest.approx(data.loss, rel=1e-6)
    assert document["count"] == data.kept.sum()
    assert document["ignored"] == (~data.kept).sum()
    assert document["summary"]["accuracy"] == pytest.approx(data.accuracy)
    worst = np.argsort(-data.nll, kind="stable")[:3]
    assert document["top"]["nll"] == pytest.approx(data.nll[worst], rel=1e-6)
    named = write is not write_safetensors  # which has no strings
    assert document["top"]["id"] == ([data.ids[row] for row in worst] if named else worst.tolist())


def read_csv(path: Path) -> dict[str, list[Any]]:
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    kinds = {"id": str, "label": int, "prediction": int}
    columns = zip(header, zip(*rows, strict=True), strict=True)
    return {name: [kinds.get(name, float)(cell) for cell in column] for name, column in columns}


def read_jsonl(path: Path) -> dict[str, list[Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {name: [row[name] for row in rows] for name in rows[0]}


READERS: dict[str, Callable[[Path], Any]] = {
    "csv": read_csv,
    "jsonl": read_jsonl,
    "parquet": lambda path: parquet.read_table(path).to_pydict(),
    "npz": lambda path: {name: array.tolist() for name, array in np.load(path, allow_pickle=False).items()},
}


@pytest.mark.parametrize("ending", READERS)
def test_out_holds_a_row_for_each_sample_that_is_not_ignored(
    ending: str, losseval: Command, tmp_path: Path, data: DataSet
) -> None:
    out = tmp_path / f"losses.{ending}"
    assert losseval("evaluate", *write_csv(tmp_path, data), "--out", out).code == 0
    written = READERS[ending](out)
    kept, rows = np.flatnonzero(data.kept), np.arange(len(data.labels))
    others = np.where(np.eye(5, dtype=bool)[data.labels.clip(0)], -np.inf, data.logits).max(axis=1)
    margin = data.logits[rows, data.labels.clip(0)] - others
    assert [*written] == SAMPLE
    assert written["id"] == [data.ids[row] for row in kept]
    assert written["label"] == data.labels[kept].tolist()
    assert written["prediction"] == data.logits.argmax(axis=1)[kept].tolist()
    assert written["nll"] == pytest.approx(data.nll[kept], rel=1e-5)
    assert written["self_confidence"] == pytest.approx(np.exp(-data.nll[kept]), rel=1e-5)
    assert written["margin"] == pytest.approx(margin[kept], rel=1e-4, abs=1e-6)


def test_rows_without_ids_are_numbered_and_ids_keep_their_leading_zeros(
    losseval: Command, tmp_path: Path, data: DataSet
) -> None:
    np.savez(tmp_path / "set.npz", logits=data.logits, labels=data.labels)
    losseval("evaluate", tmp_path / "set.npz", "--out", tmp_path / "out.npz")
    assert np.load(tmp_path / "out.npz")["id"].tolist() == np.flatnonzero(data.kept).tolist()
    (tmp_path / "zeros.csv").write_text("key,labels,logits_0,logits_1\n007,0,1,2\n008,1,1,2\n")
    answer = losseval("evaluate", tmp_path / "zeros.csv", "--ids", "key", "--top-k", 2, "--json")
    assert answer.document["top"]["id"] == ["007", "008"]


def test_gradients_are_those_of_the_mean_over_all_requests(losseval: Command, tmp_path: Path) -> None:
    data = make_data(1500, 2048)  # two requests
    np.save(tmp_path / "logits.npy", data.logits)
    np.save(tmp_path / "labels.npy", data.labels)
    out = tmp_path / "gradients.safetensors"
    files = [tmp_path / "logits.npy", tmp_path / "labels.npy"]
    assert losseval("evaluate", *files, "--gradients-out", out).code == 0
    gradients = load_file(out)["gradients"]
    assert gradients.dtype == np.float32
    np.testing.assert_allclose(gradients, data.gradients, rtol=1e-5, atol=1e-7 / data.kept.sum())
    options = ["--reduction", "sum", "--gradient-dtype", "F16"]
    assert losseval("evaluate", *files, "--gradients-out", out, *options).code == 0
    gradients = load_file(out)["gradients"]
    assert gradients.dtype == np.float16
    np.testing.assert_allclose(gradients, data.gradients * data.kept.sum(), rtol=1e-3, atol=1e-7)


def test_16_bit_gradients_of_a_mean_are_rounded_once(losseval: Command, tmp_path: Path, data: DataSet) -> None:
    """The sums that come back are beyond float16, their mean is not."""
    np.savez(tmp_path / "set.npz", logits=data.logits, labels=data.labels)
    out = tmp_path / "gradients.safetensors"
    options = ["--gradient-dtype", "F16", "--grad-output", 1e5]
    assert losseval("evaluate", tmp_path / "set.npz", "--gradients-out", out, *options).code == 0
    gradients = load_file(out)["gradients"]
    assert gradients.dtype == np.float16
    np.testing.assert_allclose(gradients, (data.gradients * 1e5).astype(np.float16), rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", ["<f8", "<f2"])
def test_logits_keep_their_dtype(dtype: str, losseval: Command, tmp_path: Path, data: DataSet) -> None:
    logits = data.logits.astype(dtype)
    np.savez(tmp_path / "set.npz", logits=logits, labels=data.labels.astype(np.int16))
    document = losseval("evaluate", tmp_path / "set.npz", "--json").document
    assert document["loss"] == pytest.approx(DataSet(logits, data.labels).loss, rel=1e-12 if dtype == "<f8" else 1e-6)


def test_bfloat16_of_safetensors_is_read(losseval: Command, tmp_path: Path, data: DataSet) -> None:
    bits = (data.logits.view(np.uint32) >> 16).astype("<u2")
    end = bits.nbytes + data.labels.nbytes
    header = {"logits": {"dtype": "BF16", "shape": bits.shape, "data_offsets": (0, bits.nbytes)}}
    header["labels"] = {"dtype": "I64", "shape": data.labels.shape, "data_offsets": (bits.nbytes, end)}
    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text)) + text + bits.tobytes() + data.labels.tobytes()
    (tmp_path / "set.safetensors").write_bytes(content)
    rounded = (bits.astype(np.uint32) << 16).view(np.float32)
    document = losseval("evaluate", tmp_path / "set.safetensors", "--json").document
    assert document["loss"] == pytest.approx(DataSet(rounded, data.labels).loss, rel=1e-6)


def test_files_follow_one_another(losseval: Command, tmp_path: Path, data: DataSet) -> None:
    for half in (slice(None, 150), slice(150, None)):
        write_jsonl(tmp_path, DataSet(data.logits[half], data.labels[half]))
        (tmp_path / "set.jsonl").rename(tmp_path / f"part-{half.stop or 400}.jsonl")
    answer = losseval("evaluate", tmp_path / "part-150.jsonl", tmp_path / "part-400.jsonl", "--json")
    assert answer.document["loss"] == pytest.approx(data.loss, rel=1e-6)
    assert answer.document["count"] == data.kept.sum()


@pytest.mark.parametrize("write", [write_npz, write_parquet, write_jsonl])
def test_memory_holds_some_requests_not_the_file(
    write: Callable[[Path, DataSet], list[Path]], environment: dict[str, str], tmp_path: Path
) -> None:
    data, times = make_data(20, 1000), {"write_npz": 1200, "write_parquet": 2400, "write_jsonl": 250}[write.__name__]
    (tmp_path / "small").mkdir()
    (small,), (path,) = write(tmp_path / "small", data), write(tmp_path, data)
    if write is write_jsonl:
        path.write_text(path.read_text() * times)
    else:
        write(tmp_path, DataSet(np.tile(data.logits, (times, 1)), np.tile(data.labels, times)))
    assert path.stat().st_size > 80 << 20
    processes = [evaluate_in_a_process(one, environment) for one in (small, path)]
    (loss, before), (same_loss, peak) = map(read_loss_and_peak, processes)
    print(f"{path.name}: {path.stat().st_size >> 20} MiB, in memory {before >> 20} and then {peak - before >> 20} MiB")
    assert loss == pytest.approx(data.loss, rel=1e-6)
    assert same_loss == pytest.approx(data.loss, rel=1e-6)
    assert peak - before < {".npz": 40, ".parquet": 150, ".jsonl": 95}[path.suffix] << 20


def evaluate_in_a_process(path: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    script = "import sys; from losseval.cli import main; main(sys.argv[1:]); print(open('/proc/self/status').read())"
    command = [sys.executable, "-c", script, "evaluate", str(path), "--json"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)


def read_loss_and_peak(process: subprocess.Popen[bytes]) -> tuple[float, int]:
    """Returns the peak of resident memory in bytes."""
    document, _, status = process.communicate()[0].decode().partition("\n")
    return json.loads(document)["loss"], int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024
