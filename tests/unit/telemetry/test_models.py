"""MODELS_FILE: what is taken, what is refused, and when it is read again."""

import os
from pathlib import Path

import pytest

from service.telemetry.models import Models, follow, parse

GOOD = b"""
models:
  - model: digits
    versions: ["1", "2"]
    classes: 10
    segments: [web]
    temperature: 1.5
    baseline: {mean: 0.2, stddev: 0.4, accuracy: 0.97}
    label_interval: 6h
  - {model: digits, versions: ["3"], classes: 10, label_interval: 6h}
"""


def test_everything_declared_is_read() -> None:
    first, second = parse(GOOD).models
    assert (first.model, first.versions, first.classes, first.segments) == ("digits", ("1", "2"), 10, ("web",))
    assert (first.temperature, first.label_interval) == (1.5, 6 * 3600)
    assert first.baseline is not None
    assert (first.baseline.mean, first.baseline.stddev, first.baseline.accuracy) == (0.2, 0.4, 0.97)
    assert (second.temperature, second.baseline, second.label_interval) == (1.0, None, 6 * 3600)
    assert set(parse(GOOD).by_pair()) == {("digits", "1"), ("digits", "2"), ("digits", "3")}


def test_a_model_without_versions_has_the_empty_one() -> None:
    assert list(parse(b"models: [{model: a}]").by_pair()) == [("a", "")]


def test_fifty_pairs_are_taken() -> None:
    assert len(parse(f"models: [{{model: a, versions: {[f'v{i}' for i in range(50)]}}}]".encode()).by_pair()) == 50


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("models: [", "not YAML", id="no-yaml"),
        pytest.param("", "models", id="empty"),
        pytest.param("# nothing yet", "models", id="comment"),
        pytest.param("models: []", "models", id="none"),
        pytest.param(
            "models: [{model: a, versions: ['1'], classes: 2}, {model: a, versions: ['2'], classes: 3}]",
            "differ in classes or label_interval",
            id="contradiction",
        ),
        pytest.param("[1]", "models", id="no-mapping"),
        pytest.param("models: [{model: a, clases: 3}]", "models.0.clases", id="misspelt"),
        pytest.param("models: [{versions: ['1']}]", "models.0.model", id="no-name"),
        pytest.param("models: [{model: a, versions: [1.10]}]", 'write "1.1" in quotes', id="number-as-version"),
        pytest.param("models: [{model: other}]", "stands for all that is not declared", id="reserved"),
        pytest.param("models: [{model: a, segments: [other]}]", "not declared", id="reserved-segment"),
        pytest.param("models: [{model: a}, {model: a}]", "declared twice", id="twice"),
        pytest.param(f"models: [{{model: a, versions: {[f'v{i}' for i in range(51)]}}}]", "at most 50", id="too-many"),
        pytest.param(f"models: [{{model: a, segments: {[f's{i}' for i in range(21)]}}}]", "20", id="many-segments"),
        pytest.param("models: [{model: a, label_interval: 5}]", "such as 30s", id="interval-without-unit"),
        pytest.param("models: [{model: a, label_interval: 0s}]", "such as 30s", id="no-interval"),
        pytest.param("models: [{model: a, temperature: 0}]", "models.0.temperature", id="temperature"),
        pytest.param("models: [{model: a, baseline: {mean: .nan, stddev: 1}}]", "baseline.mean", id="nan"),
        pytest.param("models: [{model: a, baseline: {mean: 1, stddev: 0}}]", "baseline.stddev", id="no-deviation"),
        pytest.param("models: !!python/object/apply:os.getcwd []", "not YAML", id="python-tag"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"^(?!Value error)") as caught:
        parse(text.encode())
    assert said in str(caught.value)


class Declared:
    def __init__(self) -> None:
        self.calls: list[list[str] | None] = []

    def declare(self, models: Models | None) -> None:
        self.calls.append(None if models is None else [one.model for one in models.models])


def write(path: Path, text: str, *, at: int) -> None:
    path.write_text(text)
    os.utime(path, (at, at))


def test_the_file_is_read_again_when_it_changes_and_the_last_good_one_stays(tmp_path: Path) -> None:
    path, declared = tmp_path / "models.yaml", Declared()
    write(path, "models: [{model: a}]", at=1)
    file = follow(path, declared.declare)
    file.refresh()
    assert declared.calls == [["a"]]
    write(path, "models: [{model: b}]", at=2)
    file.refresh()
    assert declared.calls == [["a"], ["b"]]
    write(path, "models: [", at=3)
    file.refresh()
    file.refresh()
    assert declared.calls == [["a"], ["b"], None]
    write(path, "models: [{model: c}]", at=4)
    file.refresh()
    assert declared.calls == [["a"], ["b"], None, ["c"]]


def test_a_file_that_is_away_for_a_while_is_read_when_it_is_back(tmp_path: Path) -> None:
    path, away, declared = tmp_path / "models.yaml", tmp_path / "away", Declared()
    write(path, "models: [{model: a}]", at=1)
    file = follow(path, declared.declare)
    path.rename(away)
    file.refresh()
    file.refresh()
    away.rename(path)
    file.refresh()
    assert declared.calls == [["a"], None, ["a"]]


def test_at_the_start_a_bad_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--models-file .*: No such file"):
        follow(tmp_path / "none.yaml", Declared().declare)
