"""The figures of samples against plain Python in float64."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from service.engine.device import TorchDevice
from service.loss.evaluation import Evaluation
from service.loss.options import LossOptions
from service.loss.samples import LABEL_PROBABILITIES, Samples, Tally, canonical, pieces
from service.loss.validation import SizeLimits, validate

DEVICE = TorchDevice("cpu", threads=1)


def evaluation(logits: Any, labels: Any, **options: Any) -> Evaluation:  # noqa: ANN401 - whatever numpy takes
    arrays = {"logits": np.asarray(logits, np.float32), "labels": np.asarray(labels)}
    return validate(arrays, LossOptions(**options), SizeLimits())


def tally(one: Evaluation, *, temperature: float = 1.0, classes: int | None = None) -> Tally:
    plain = canonical(one, temperature=temperature)
    return Tally.of(Samples.of([plain], DEVICE.compute([plain]).rows), classes=classes)


def expected_nll(logits: Any, labels: Any, temperature: float) -> np.ndarray[Any, Any]:  # noqa: ANN401 - as above
    """Torch's own log_softmax in float64."""
    scaled = torch.tensor(np.asarray(logits, np.float64)) / temperature
    return -torch.log_softmax(scaled, 1).gather(1, torch.tensor(np.asarray(labels))[:, None])[:, 0].numpy()


@pytest.mark.parametrize("temperature", [pytest.param(1.0, id="T=1"), pytest.param(2.5, id="T=2.5")])
def test_the_loss_is_plain_whatever_was_asked_for(temperature: float) -> None:
    random = np.random.default_rng(5)
    logits, labels = random.normal(size=(200, 7)) * 3, random.integers(0, 7, 200)
    asked: dict[str, Any] = {"temperature": 7.0, "label_smoothing": 0.3, "z_loss": 1e-3, "include": ("loss",)}
    found = tally(evaluation(logits, labels, **asked), temperature=temperature, classes=7)
    nll = expected_nll(logits.astype(np.float32), labels, temperature)
    assert found.loss_sum == pytest.approx(nll.sum(), rel=1e-6)
    assert found.loss_buckets.sum() == 200
    for edge, count in zip(LABEL_PROBABILITIES, np.cumsum(found.loss_buckets), strict=False):
        assert count == (np.exp(-nll) >= edge).sum()
    hits = logits.argmax(1) == labels
    assert (found.correct, found.incorrect, found.ignored) == (hits.sum(), 200 - hits.sum(), 0)
    assert found.class_count is not None
    assert found.class_loss is not None
    for label in range(7):
        assert found.class_count[label] == (labels == label).sum()
        assert found.class_loss[label] == pytest.approx(nll[labels == label].sum(), rel=1e-6)


def test_confidence_is_counted_by_right_closed_bins() -> None:
    confidences = np.array([0.55, 0.9, 0.95, 0.999])
    found = tally(evaluation([[math.log(p), math.log(1 - p)] for p in confidences], [0, 0, 1, 0]))
    assert found.bin_count.tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 1, 2]
    assert found.bin_correct.tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 1, 1]
    assert found.bin_confidence[[5, 8, 9]] == pytest.approx([0.55, 0.9, 0.95 + 0.999], rel=1e-5)


def test_losses_that_are_no_numbers_are_counted_apart() -> None:
    logits = [[math.nan, 0.0], [-math.inf, 0.0], [0.0, 0.0], [math.inf, 0.0]]
    found = tally(evaluation(logits, [0, 0, 0, 0]), classes=2)
    assert (found.nan, found.infinite, found.loss_buckets.sum()) == (2, 1, 1)
    assert found.loss_sum == pytest.approx(math.log(2))
    assert (found.correct, found.incorrect) == (1, 3)
    assert found.bin_count.sum() == 2
    assert found.class_count is not None
    assert found.class_count.tolist() == [1, 0]


def test_ignored_rows_are_only_counted_as_ignored() -> None:
    found = tally(evaluation([[math.nan, 1.0], [0.0, 1.0]], [-100, 1]))
    assert (found.correct, found.incorrect, found.ignored, found.nan) == (1, 0, 1, 0)
    assert found.loss_buckets.sum() == 1


def test_probability_labels_have_the_largest_as_their_class() -> None:
    found = tally(evaluation([[2.0, 0.0, 0.0]], [[0.2, 0.7, 0.1]]), classes=3)
    q = torch.log_softmax(torch.tensor([2.0, 0.0, 0.0], dtype=torch.float64), 0)
    assert found.loss_sum == pytest.approx(-(0.2 * q[0] + 0.7 * q[1] + 0.1 * q[2]).item(), rel=1e-7)
    assert (found.correct, found.incorrect) == (0, 1)
    assert found.class_count is not None
    assert found.class_count.tolist() == [0, 1, 0]


@pytest.mark.parametrize("kind", ["log_probabilities", "probabilities"])
def test_other_inputs_have_the_same_loss(kind: str) -> None:
    logits = np.array([[2.0, 0.5, -1.0]])
    q = torch.softmax(torch.tensor(logits), 1).numpy()
    given = q if kind == "probabilities" else np.log(q)
    found = tally(evaluation(given, [1], input=kind), temperature=2.0)
    assert found.loss_sum == pytest.approx(expected_nll(logits, [1], 2.0).sum(), rel=1e-6)


def test_pieces_together_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.loss.samples._PIECE_ELEMENTS", 12)
    one = canonical(evaluation(np.arange(40.0).reshape(10, 4), [*range(4), -100, *range(4), 1]), temperature=1.0)
    parts = list(pieces(one))
    assert [part.rows for part in parts] == [3, 3, 3, 1]
    assert np.array_equal(np.concatenate([part.logits for part in parts]), one.logits)
    assert np.array_equal(np.concatenate([part.labels for part in parts]), one.labels)
    assert [part.ignored is not None and part.ignored.tolist() for part in parts][1] == [False, True, False]
