"""What `losseval evaluate` computes and says, and how it fails."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from losseval import APIStatusError, Client

from .conftest import Command
from .data import DataSet, log_softmax, make_data


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, data: DataSet) -> Path:
    """The data set, with weights beside it."""
    random = np.random.default_rng(1)
    path = tmp_path_factory.mktemp("data") / "set.npz"
    class_weight, importance = random.random(5), random.random(len(data.labels))
    np.savez(path, logits=data.logits, labels=data.labels, class_weight=class_weight, importance=importance)
    return path


def weighted(data: DataSet, path: Path) -> float:
    class_weight, importance = np.load(path)["class_weight"], np.load(path)["importance"]
    weight = np.where(data.kept, class_weight[data.labels.clip(0)] * importance, 0)
    return float((weight * data.nll).sum() / weight.sum())


def smoothed(data: DataSet) -> float:
    losses = 0.9 * data.nll - 0.1 * data.log_probabilities.mean(axis=1)
    return float(losses[data.kept].mean())


def z_penalized(data: DataSet) -> float:
    logsumexp = np.log(np.exp(data.logits.astype(np.float64)).sum(axis=1))
    return float((data.nll + 0.1 * logsumexp**2)[data.kept].mean())


def test_options_mean_what_they_mean_in_the_service(losseval: Command, path: Path, data: DataSet) -> None:
    def loss(*options: object) -> float:
        answer = losseval("evaluate", path, "--json", *options)
        assert (answer.code, answer.err) == (0, "")
        return float(answer.document["loss"])

    rows = np.arange(len(data.labels))
    cold = -log_softmax(data.logits / np.float64(0.5))[rows, data.labels.clip(0)][data.kept].mean()
    assert loss("--weight", "class_weight", "--sample-weight", "importance") == pytest.approx(weighted(data, path))
    assert loss("--weight", "1,0,1,1,1") == pytest.approx(data.nll[data.kept & (data.labels != 1)].mean())
    assert loss("--label-smoothing", 0.1) == pytest.approx(smoothed(data))
    assert loss("--temperature", 0.5) == pytest.approx(cold)
    assert loss("--z-loss", 0.1) == pytest.approx(z_penalized(data))
    assert loss("--reduction", "sum") == pytest.approx(data.nll.sum())
    assert loss("--precision", "high") == pytest.approx(data.loss, rel=1e-7)


def test_ignore_index_weight_files_and_kinds_of_input(losseval: Command, tmp_path: Path) -> None:
    data = make_data(50, 3)
    probabilities = np.exp(data.log_probabilities)
    np.savez(tmp_path / "set.npz", logits=probabilities, labels=data.labels.clip(0))
    np.save(tmp_path / "of_classes.npy", np.array([1.0, 2.0, 3.0]))
    options = ["--input", "probabilities", "--ignore-index", 0, "--weight", tmp_path / "of_classes.npy"]
    document = losseval("evaluate", tmp_path / "set.npz", "--json", *options).document
    kept = data.labels > 0
    weight = data.labels[kept] + 1
    assert document["loss"] == pytest.approx((weight * data.nll[kept]).sum() / weight.sum())
    assert document["count"] == kept.sum()


def test_classes_may_come_last_and_labels_be_probabilities(losseval: Command, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(6, 4, 3)), random.dirichlet(np.ones(3), (6, 4))
    np.savez(tmp_path / "set.npz", scores=logits, soft=labels)
    names = ["--logits", "scores", "--labels", "soft", "--class-axis", -1]
    document = losseval("evaluate", tmp_path / "set.npz", *names, "--json", "--top-k", 1).document
    losses = -(labels * log_softmax(logits)).sum(axis=-1)
    assert document["loss"] == pytest.approx(losses.mean(), rel=1e-12)
    assert document["top"]["id"] == [losses.argmax()]


def test_a_pipe_gets_tables_of_tabs(losseval: Command, path: Path, data: DataSet) -> None:
    answer = losseval("evaluate", path, "--top-k", 2, "--per-class")
    assert "\x1b" not in answer.out
    numbers, worst, classes = answer.sections
    assert float(dict(numbers)["loss"]) == pytest.approx(data.loss, rel=1e-5)
    assert worst[0] == ["id", "label", "prediction", "nll", "self_confidence", "margin"]
    assert [int(row[0]) for row in worst[1:]] == np.argsort(-data.nll, kind="stable")[:2].tolist()
    assert classes[0] == ["class", "samples", "nll", "accuracy"]
    for row in classes[1:]:
        mine = data.labels == int(row[0])
        correct = data.logits[mine].argmax(axis=1) == int(row[0])
        expected = [mine.sum(), data.nll[mine].mean(), correct.mean()]
        assert [float(cell) for cell in row[1:]] == pytest.approx(expected, rel=1e-5)


def test_columns_can_be_named_one_by_one_and_in_any_order(losseval: Command, tmp_path: Path) -> None:
    (tmp_path / "set.csv").write_text("cat,dog,truth\n1.5,-1,0\n0,2,1\n3,0,1\n")
    names = ["--logits", "dog,cat", "--labels", "truth"]
    document = losseval("evaluate", tmp_path / "set.csv", *names, "--json").document
    logits = np.array([[-1, 1.5], [2, 0], [0, 3]])
    assert document["loss"] == pytest.approx(-log_softmax(logits)[np.arange(3), [0, 1, 1]].mean(), rel=1e-6)


def test_standard_input_is_json_lines(environment: dict[str, str], data: DataSet) -> None:
    rows = zip(data.logits.tolist(), data.labels.tolist(), strict=True)
    text = "".join(json.dumps({"logits": row, "labels": label}) + "\n" for row, label in rows)
    command = [sys.executable, "-m", "losseval", "evaluate", "-", "--json"]
    done = subprocess.run(command, input=text.encode(), env=environment, capture_output=True, check=True)
    assert json.loads(done.stdout)["loss"] == pytest.approx(data.loss, rel=1e-6)
    assert done.stderr == b""
    done = subprocess.run(command, input=b"logits", env=environment, capture_output=True, check=False)
    assert done.stderr.startswith(b"error: standard input: not a .jsonl file as it should be")


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_closed_standard_streams_are_no_error(options: list[str], path: Path, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "losseval", "evaluate", str(path), *options]
    shell = ["sh", "-c", '"$@" >&-', "sh", *command]
    done = subprocess.run(shell, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    shell[2] = '"$@" 2>&-'
    done = subprocess.run(shell, env=environment, capture_output=True, check=False)
    assert done.returncode == 0
    assert done.stdout


def test_strings_for_what_json_has_no_number_for_are_numbers(losseval: Command, tmp_path: Path) -> None:
    lines = ['{"id": "NaN", "logits": [1, "-Infinity"], "labels": 0}', '{"id": "b", "logits": [1, 2], "labels": 1}']
    (tmp_path / "set.jsonl").write_text("\n".join(lines).replace('"NaN"', '"a"'))
    expected = -log_softmax(np.array([[1.0, 2]]))[0, 1] / 2
    assert losseval("evaluate", tmp_path / "set.jsonl", "--json").document["loss"] == pytest.approx(expected)
    (tmp_path / "set.jsonl").write_text("\n".join(lines).replace('"-Infinity"', "-Infinity"))
    document = losseval("evaluate", tmp_path / "set.jsonl", "--json", "--top-k", 2).document
    assert document["top"]["id"] == ["b", "NaN"]


@pytest.mark.parametrize("errors", [[{"message": "no"}], None, [], [1], {"a": 1}, 5])
def test_a_gateways_refusal_is_told_whatever_its_form(
    errors: object, losseval: Command, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise APIStatusError(403, {"errors": errors}, "0" * 32)

    monkeypatch.setattr(Client, "evaluate_many", refuse)
    answer = losseval("evaluate", path)
    assert answer.code == 1
    assert answer.err.startswith("error: 403 ")
    assert answer.err.endswith(
        f"\nall: {'no' if errors == [{'message': 'no'}] else 'see above'} (counted from sample 0)\n"
    )


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"logits": [1, 2], "labels": 0}\n{"logits": [1, 2, 3], "labels": 0}\n', "rows of 2 to 3 items"),
        ("b.jsonl", b'{"logits": [1, 2], "labels": 0}\n{"logits": [1, null], "labels": 0}\n', "missing in 1 place"),
        ("c.jsonl", b'{"logits": [1, 2], "labels": 0}\n{"logits": [1, 2]}\n', "labels is missing in 1 place"),
        ("d.jsonl", b"logits,labels\n", "not a .jsonl file"),
        ("e.jsonl", b"", "Empty JSON file"),
        ("f.csv", b"logits_0,logits_1,labels\na,b,0\n", "could not convert string to float"),
        ("g.csv", b"logits_0,logits_1,labels\n1,2,0\n1,,0\n", "logits_1 is missing in 1 place"),
        ("h.csv", b"logits_0,logits_1,labels\n", "there are no rows"),
        ("i.npz", b"PK", "not a zip file"),
        ("j.npy", b"\x93NUMPY", "not a .npy file"),
        ("k.parquet", b"logits,labels\n", "not a .parquet file"),
        ("l.safetensors", b"\x10\0\0\0\0\0\0\0{", "not a .safetensors file"),
        ("m.csv", b"logits,labels\n1,0\n", "a row of logits needs one for each class"),
        ("n.txt", b"", "can be read"),
        ("o.safetensors", b"\0\0\0\0\0\0\0\x10{}", "its header can't have 1152921504606846976 bytes"),
        ("missing.npz", None, "No such file or directory"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_a_line(
    name: str, content: bytes | None, said: str, losseval: Command, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    answer = losseval("evaluate", tmp_path / name)
    assert (answer.code, answer.out) == (2 if name == "n.txt" else 1, "")
    assert said in answer.err
    assert name in answer.err or said == "there are no rows"
    assert answer.err.count("\n") == 1


def test_arrays_that_do_not_fit_each_other_are_refused(losseval: Command, tmp_path: Path) -> None:
    np.savez(tmp_path / "lengths.npz", logits=np.zeros((3, 2)), labels=np.zeros(4, int))
    assert "{'logits': 3, 'labels': 4}" in losseval("evaluate", tmp_path / "lengths.npz").err
    np.save(tmp_path / "logits.npy", np.asfortranarray(np.zeros((3, 2))))
    assert "ascontiguousarray" in losseval("evaluate", tmp_path / "logits.npy").err
    np.savez(tmp_path / "cut.npz", logits=np.zeros((3, 2)), labels=np.zeros(3, int))
    np.save(tmp_path / "labels.npy", np.zeros(3, int))
    content = (tmp_path / "labels.npy").read_bytes()
    (tmp_path / "labels.npy").write_bytes(content[:-8])
    np.save(tmp_path / "logits.npy", np.zeros((3, 2)))
    answer = losseval("evaluate", tmp_path / "logits.npy", tmp_path / "labels.npy")
    assert (answer.code, answer.err.count("\n")) == (1, 1)


def test_a_name_is_never_guessed_and_the_error_lists_what_there_is(
    losseval: Command, tmp_path: Path, data: DataSet
) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, output=data.logits, target=data.labels.astype(np.int32), logits=data.logits)
    answer = losseval("evaluate", path)
    assert (answer.code, answer.out) == (1, "")
    assert f"{path} has no 'labels'" in answer.err
    assert "It holds output float32 (400, 5), target int32 (400,), logits float32 (400, 5)." in answer.err
    assert "--labels" in answer.err
    answer = losseval("evaluate", path, "--labels", "target", "--ids", "key")
    assert answer.code == 2
    assert "has no 'key'" in answer.err
    assert losseval("evaluate", path, "--labels", "target").code == 0


def test_a_refusal_names_the_row_and_what_came_before_is_shown(losseval: Command, tmp_path: Path) -> None:
    data = make_data(3000, 1500)  # 1398 rows a request
    labels = data.labels.copy()
    labels[2000] = 1500
    np.savez(tmp_path / "set.npz", logits=data.logits, labels=labels)
    out = tmp_path / "out.csv"
    answer = losseval("evaluate", tmp_path / "set.npz", "--json", "--out", out)
    assert answer.code == 1
    assert "422 label_out_of_range: 1 label is not in [0, 1499]" in answer.err
    assert "#/labels/602: 1500 is not in [0, 1499] (counted from sample 1398)" in answer.err
    done = DataSet(data.logits[:1398], data.labels[:1398])
    assert answer.document["is_complete"] is False
    assert answer.document["loss"] == pytest.approx(done.loss, rel=1e-6)
    assert len(out.read_text().splitlines()) == 1 + done.kept.sum()


def test_a_broken_file_behind_a_good_one_costs_only_itself(losseval: Command, path: Path, data: DataSet) -> None:
    broken = path.parent / "broken.jsonl"
    broken.write_text('{"logits": [1, 2, 3, 4, 5], "labels": 0}\n{"logits": [1, 2], "labels": 0}\n')
    answer = losseval("evaluate", path, broken, "--json")
    assert answer.code == 1
    assert f"stopped: this is of the first {len(data.labels)} samples" in answer.err
    assert f"error: {broken}: logits has rows of 2 to 5 items" in answer.err
    assert answer.document["loss"] == pytest.approx(data.loss, rel=1e-6)


def test_a_row_of_several_samples_gives_them_its_id(losseval: Command, tmp_path: Path) -> None:
    logits = np.zeros((2, 3, 4), np.float32)
    logits[1, 1, 2] = 5
    np.savez(tmp_path / "set.npz", logits=logits, labels=np.zeros((2, 4), int), id=np.array(["first", "second"]))
    answer = losseval("evaluate", tmp_path / "set.npz", "--top-k", 5, "--json")
    assert answer.document["top"]["id"] == ["second/2", "first/0", "first/1", "first/2", "first/3"]
    assert answer.document["count"] == 8


def test_a_mean_of_nothing_is_nan_in_strict_json(losseval: Command, tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", logits=np.zeros((4, 3)), labels=np.full(4, -100))
    answer = losseval("evaluate", tmp_path / "set.npz", "--json", "--fail-above", 100)
    assert answer.document["loss"] == "NaN"
    assert answer.document["warnings"][0]["code"] == "all_ignored"
    assert answer.document["warnings"][0]["first"] == [0, 1, 2, 3]
    assert answer.err.splitlines()[0].startswith("warning: No sample counts")
    assert answer.code == 3


def test_a_loss_above_the_threshold_fails_and_one_that_equals_it_does_not(losseval: Command, path: Path) -> None:
    loss = losseval("evaluate", path, "--json").document["loss"]
    assert losseval("evaluate", path, "--fail-above", loss).code == 0
    answer = losseval("evaluate", path, "--fail-above", loss - 1e-9)
    assert (answer.code, answer.err.count("\n")) == (3, 1)
    assert answer.sections[0][0][0] == "loss"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["evaluate"],
        ["evaluate", "set.npz", "--reduction", "median"],
        ["evaluate", "set.npz", "--top"],
        ["evaluate", "set.npz", "--out", "losses.xlsx"],
        ["evaluate", "set.npz", "--gradients-out", "gradients.npy"],
        ["evaluate", "set.npz", "--plot-file", "losses.gif"],
        ["compare", "a.csv"],
        ["frobnicate"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_exits_with_2(arguments: list[str], losseval: Command) -> None:
    answer = losseval(*arguments)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("error: ")
    assert answer.err.count("\n") == 1


def test_a_server_that_is_not_there_exits_with_4_at_once(losseval: Command, path: Path) -> None:
    answer = losseval("evaluate", path, "--url", "http://127.0.0.1:9", "--out", path.parent / "never.csv")
    assert (answer.code, answer.out) == (4, "")
    assert "--url" in answer.err
    assert answer.err.count("\n") == 2
    assert not (path.parent / "never.csv").exists()


def test_flags_go_before_the_environment(
    losseval: Command, path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOSSEVAL_URL", "http://127.0.0.1:9")
    assert losseval("evaluate", path, "--url", url).code == 0


def test_local_needs_no_server(losseval: Command, path: Path, data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSSEVAL_URL", "http://127.0.0.1:9")
    answer = losseval("evaluate", path, "--local", "--json")
    assert (answer.code, answer.err) == (0, "")
    assert answer.document["loss"] == pytest.approx(data.loss, rel=1e-6)
