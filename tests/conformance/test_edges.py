"""The edges of cross-entropy, each beside what PyTorch does there."""

import math
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.calls import evaluate, pointers, post, refuse, words
from tests.reference import cross_entropy
from tests.wire import Array, read_array

NAN, INFINITY = math.nan, math.inf
GOOD_ROW = [1.0, 2.0, 3.0]
INCLUDE = ["loss", "losses", "gradients"]


def pytorch(logits: Array, labels: Array, **options: Any) -> tuple[Array, Array]:  # noqa: ANN401  PyTorch's options
    """Losses and gradients of their sum by `F.cross_entropy` in float32."""
    leaf = torch.tensor(logits, dtype=torch.float32, requires_grad=True)
    options = {name: torch.tensor(value) if name == "weight" else value for name, value in options.items()}
    losses = functional.cross_entropy(leaf, torch.as_tensor(labels), reduction="none", **options)
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    return losses.detach().numpy(), leaf.grad.numpy()


def evaluate_rows(
    client: httpx.Client,
    logits: Array,
    labels: Array,
    **options: Any,  # noqa: ANN401  the contract's options
) -> tuple[Array, Array, dict[str, Any]]:
    """Losses, gradients of their sum and the whole answer."""
    fields = {"logits": logits, "labels": labels, "include": INCLUDE, "reduction": "sum", **options}
    answer = evaluate(client, fields)
    return read_array(answer["losses"]), read_array(answer["gradients"]), answer


def warned_rows(answer: dict[str, Any], *codes: str) -> list[int]:
    """Rows named by the first warning of one of these codes."""
    found = [warning for warning in answer["warnings"] if warning["code"] in codes]
    assert found, f"no warning of {codes} among {answer['warnings']}"
    assert found[0]["count"] == len(found[0]["first"])
    assert found[0]["detail"]
    return list(found[0]["first"])


def is_positive_zero(values: Array) -> bool:
    return bool((values == 0).all() and not np.signbit(values).any())


UNDEFINED_ROWS = [
    pytest.param([NAN, 1.0, 2.0], id="nan"),
    pytest.param([INFINITY, 1.0, 2.0], id="plus-infinity"),
    pytest.param([-INFINITY, -INFINITY, -INFINITY], id="only-minus-infinity"),
]


@pytest.mark.parametrize("row", UNDEFINED_ROWS)
def test_undefined_row_is_nan_and_leaves_its_neighbours_alone(row: list[float], client: httpx.Client) -> None:
    logits, labels = np.array([GOOD_ROW, row, GOOD_ROW]), np.array([0, 1, 2])
    losses, gradients, answer = evaluate_rows(client, logits, labels)
    theirs, _ = pytorch(logits, labels)
    assert np.isnan(losses).tolist() == np.isnan(theirs).tolist() == [False, True, False]
    assert np.isnan(gradients).all(axis=1).tolist() == [False, True, False]
    expected = cross_entropy(logits[[0, 2]], labels[[0, 2]], reduction="sum")
    np.testing.assert_allclose(losses[[0, 2]], expected.losses.astype(float), rtol=5e-6)
    np.testing.assert_allclose(gradients[[0, 2]], expected.gradients.astype(float), rtol=1e-6, atol=6e-8)
    assert answer["loss"] == answer["loss_sum"] == "NaN"
    assert warned_rows(answer, "nonfinite_logits", "nonfinite_loss") == [1]


@pytest.mark.parametrize("row", UNDEFINED_ROWS)
def test_undefined_row_that_is_ignored_gives_exact_zeros(row: list[float], client: httpx.Client) -> None:
    """PyTorch multiplies by 0 and leaves NaN in the gradient."""
    logits, labels = np.array([GOOD_ROW, row]), np.array([0, -100])
    losses, gradients, answer = evaluate_rows(client, logits, labels)
    assert np.isnan(pytorch(logits, labels)[1][1]).all()
    assert is_positive_zero(losses[1:])
    assert is_positive_zero(gradients[1])
    assert answer["loss"] == pytest.approx(float(losses[0]), rel=1e-6)


def test_masked_class_is_legitimate(client: httpx.Client) -> None:
    """−inf at a class that is not the label: right, gradient exactly 0, no warning."""
    logits, labels = np.array([[1.0, -INFINITY, 2.0]]), np.array([2])
    losses, gradients, answer = evaluate_rows(client, logits, labels)
    theirs = pytorch(logits, labels)
    np.testing.assert_allclose(losses, theirs[0], rtol=1e-6)
    np.testing.assert_allclose(gradients, theirs[1], rtol=1e-6)
    assert gradients[0, 1] == theirs[1][0, 1] == 0
    assert answer["warnings"] == []


def test_minus_infinity_at_the_label_is_an_infinite_loss_with_a_finite_gradient(client: httpx.Client) -> None:
    logits, labels = np.array([[1.0, 1.0, -INFINITY]]), np.array([2])
    losses, gradients, answer = evaluate_rows(client, logits, labels)
    assert losses.tolist() == pytorch(logits, labels)[0].tolist() == [INFINITY]
    assert gradients.tolist() == pytorch(logits, labels)[1].tolist() == [[0.5, 0.5, -1.0]]
    assert answer["loss"] == "Infinity"
    assert warned_rows(answer, "nonfinite_loss") == [0]


def test_masked_class_with_probability_zero_is_finite(client: httpx.Client) -> None:
    """0 · −inf is never formed; PyTorch forms it."""
    logits, labels = np.array([[-INFINITY, 1.0, 2.0]]), np.array([[0.0, 0.5, 0.5]], np.float32)
    losses, gradients, answer = evaluate_rows(client, logits, labels)
    assert np.isnan(pytorch(logits, labels)[0]).all()
    np.testing.assert_allclose(losses, [math.log(1 + math.e) - 0.5], rtol=1e-6)
    assert gradients[0, 0] == 0
    assert gradients[0, 1] == pytest.approx(-gradients[0, 2])
    assert answer["warnings"] == []


def test_masked_class_with_smoothing_is_infinite(client: httpx.Client) -> None:
    logits, labels = np.array([[-INFINITY, 1.0, 2.0]]), np.array([1])
    losses, gradients, answer = evaluate_rows(client, logits, labels, label_smoothing=0.1)
    assert losses.tolist() == pytorch(logits, labels, label_smoothing=0.1)[0].tolist() == [INFINITY]
    np.testing.assert_allclose(gradients, pytorch(logits, labels, label_smoothing=0.1)[1], rtol=1e-5)
    assert warned_rows(answer, "nonfinite_loss") == [0]


def test_masked_class_with_smoothing_and_weight_zero_is_finite(client: httpx.Client) -> None:
    logits, labels, weight = np.array([[-INFINITY, 1.0, 2.0]]), np.array([1]), [0.0, 1.0, 1.0]
    losses, gradients, _ = evaluate_rows(client, logits, labels, label_smoothing=0.1, weight=weight)
    assert np.isnan(pytorch(logits, labels, label_smoothing=0.1, weight=weight)[0]).all()
    expected = cross_entropy(logits, labels, label_smoothing=0.1, weight=weight, reduction="sum")
    np.testing.assert_allclose(losses, expected.losses.astype(float), rtol=1e-6)
    np.testing.assert_allclose(gradients, expected.gradients.astype(float), rtol=1e-6, atol=6e-8)


@pytest.mark.parametrize("row", UNDEFINED_ROWS)
@pytest.mark.parametrize(
    "zero", [{"weight": [0.0, 1.0, 1.0]}, {"sample_weight": [0.0, 1.0]}], ids=lambda zero: next(iter(zero))
)
def test_weight_zero_silences_an_undefined_row(row: list[float], zero: dict[str, Any], client: httpx.Client) -> None:
    logits, labels = np.array([row, GOOD_ROW]), np.array([0, 1])
    losses, gradients, answer = evaluate_rows(client, logits, labels, reduction="mean", **zero)
    assert np.isnan(pytorch(logits, labels, weight=[0.0, 1.0, 1.0])[0][0])
    assert is_positive_zero(losses[:1])
    assert is_positive_zero(gradients[0])
    assert answer["normalizer"] == 1
    assert answer["loss"] == answer["loss_sum"] == pytest.approx(float(losses[1]), rel=1e-6)


NOTHING_COUNTS = [
    pytest.param({"labels": [-100, -100]}, (0, 2), id="all-ignored"),
    pytest.param({"weight": [0.0, 0.0, 0.0]}, (2, 0), id="all-class-weights-zero"),
    pytest.param({"weight": [0.0, 0.0, 1.0], "label_smoothing": 0.1}, (2, 0), id="own-weights-zero-with-smoothing"),
    pytest.param({"sample_weight": [0.0, 0.0]}, (2, 0), id="all-sample-weights-zero"),
]


@pytest.mark.parametrize(("fields", "counts"), NOTHING_COUNTS)
def test_mean_over_nothing_is_nan_with_zero_gradients(
    fields: dict[str, Any], counts: tuple[int, int], client: httpx.Client
) -> None:
    """PyTorch: NaN, and gradients of 0 or NaN."""
    given = {"labels": [0, 1], **fields}
    _, gradients, answer = evaluate_rows(client, np.array([GOOD_ROW, GOOD_ROW]), reduction="mean", **given)
    assert answer["loss"] == "NaN"
    assert answer["normalizer"] == 0
    assert is_positive_zero(gradients)
    assert (answer["count"], answer["ignored"]) == counts
    assert "all_ignored" in [warning["code"] for warning in answer["warnings"]]


@pytest.mark.parametrize("kind", ["index", "probability"])
@pytest.mark.parametrize(("reduction", "loss"), [("mean", "NaN"), ("sum", 0)])
def test_empty_batch_is_an_answer(reduction: str, loss: object, kind: str, client: httpx.Client) -> None:
    labels = np.zeros(0, np.int64) if kind == "index" else np.zeros((0, 3), np.float32)
    fields = {"logits": np.zeros((0, 3), np.float32), "labels": labels, "include": INCLUDE, "reduction": reduction}
    answer = evaluate(client, {**fields, "encoding": "base64"}, arrays="base64")
    assert answer["loss"] == loss
    assert (answer["loss_sum"], answer["normalizer"], answer["count"], answer["ignored"]) == (0, 0, 0, 0)
    assert answer["losses"] == {"dtype": "F32", "shape": [0], "data": ""}
    assert answer["gradients"] == {"dtype": "F32", "shape": [0, 3], "data": ""}


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(
            {"logits": np.zeros((2, 0), np.float32), "labels": np.zeros(2, np.int64)}, id="rows-without-classes"
        ),
        pytest.param({"logits": np.zeros(0, np.float32), "labels": np.array(0)}, id="no-batch"),
        pytest.param({"logits": [], "labels": []}, id="empty-list"),
        pytest.param({"logits": [], "labels": 0}, id="empty-list-with-one-label"),
        pytest.param({"logits": [[], []], "labels": [0, 0]}, id="empty-rows"),
    ],
)
def test_no_classes_is_refused(fields: dict[str, Any], client: httpx.Client) -> None:
    """PyTorch: IndexError or NaN."""
    response = post(client, fields, arrays="base64")
    assert response.status_code == 422, response.text
    assert pointers(response.json())[0] == "#/logits"


def test_single_class_has_loss_zero_without_a_sign(client: httpx.Client) -> None:
    logits, labels = np.array([[3.0], [-2.0]]), np.array([0, 0])
    fields = {"logits": logits, "labels": labels, "include": [*INCLUDE, "margin"]}
    response = post(client, fields)
    answer = response.json()
    assert np.signbit(pytorch(logits, labels)[0]).all()
    assert answer["losses"] == [0, 0]
    assert is_positive_zero(read_array(answer["losses"]))
    assert answer["margin"] == ["Infinity", "Infinity"]
    assert read_array(answer["gradients"]).tolist() == [[0], [0]]
    assert answer["loss"] == 0
    assert not math.copysign(1, answer["loss"]) < 0


def test_labels_on_both_sides_of_the_class_range(client: httpx.Client) -> None:
    logits = np.array([GOOD_ROW] * 4)
    losses, _, _ = evaluate_rows(client, logits, np.array([0, 2, -100, 0]))
    assert (losses > 0).tolist() == [True, True, False, True]
    with pytest.raises(IndexError):
        pytorch(logits, np.array([0, 3, -100, -1]))
    problem = refuse(client, {"logits": logits, "labels": [0, 3, -100, -1]}, 422, "label_out_of_range")
    assert pointers(problem) == ["#/labels/1", "#/labels/3"]
    assert "[0, 2]" in words(problem)


INTEGERS = [np.int64, np.int32, np.int16, np.int8, np.uint64, np.uint32, np.uint16, np.uint8]


@pytest.mark.parametrize("dtype", [pytest.param(dtype, id=dtype.__name__) for dtype in INTEGERS])
def test_every_integer_dtype_labels_the_same(dtype: type[np.integer[Any]], client: httpx.Client) -> None:
    """PyTorch takes int64 and uint8."""
    fields = {"logits": np.array([GOOD_ROW, GOOD_ROW[::-1]], np.float32), "include": INCLUDE}
    typed = post(client, {**fields, "labels": np.array([2, 1], dtype)}, arrays="base64")
    assert typed.content == post(client, {**fields, "labels": [2, 1]}, arrays="base64").content
    assert typed.json()["losses"] == pytest.approx([0.40760597, 1.40760597])
