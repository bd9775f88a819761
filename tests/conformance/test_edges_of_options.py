"""Edges where PyTorch accepts something silently or loses the result: dtypes, options, shapes."""

import math
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.calls import evaluate, pointers, refuse, words
from tests.reference import cross_entropy
from tests.wire import read_array

LOGITS = [[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]


@pytest.mark.parametrize("labels", [[0.0, 1.0], [0.5, 1.0]], ids=["whole", "fractional"])
def test_float_class_indices_are_refused_with_the_cast_to_make(labels: list[float], client: httpx.Client) -> None:
    problem = refuse(client, {"logits": LOGITS, "labels": labels}, 422, "unsupported_dtype", "invalid_value")
    assert pointers(problem)[0].startswith("#/labels")
    assert any(word in words(problem).lower() for word in ("int64", "i64", "integer")), problem


def test_float_tensor_of_class_indices_is_refused_with_the_cast_to_make(client: httpx.Client) -> None:
    labels = {"dtype": "F32", "shape": [2], "data": "AAAAAAAAgD8="}
    problem = refuse(client, {"logits": LOGITS, "labels": labels}, 422, "unsupported_dtype")
    assert any(word in words(problem).lower() for word in ("int64", "i64", "integer")), problem


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param([True, False], id="nested"),
        pytest.param({"dtype": "BOOL", "shape": [2], "data": "AQA="}, id="tensor-object"),
    ],
)
def test_boolean_labels_are_refused(labels: object, client: httpx.Client) -> None:
    problem = refuse(client, {"logits": LOGITS, "labels": labels}, 422, "unsupported_dtype", "invalid_value")
    assert pointers(problem)[0].startswith("#/labels")


def test_ignore_index_may_be_a_class(client: httpx.Client) -> None:
    fields = {"logits": LOGITS, "labels": [1, 2], "ignore_index": 1, "include": ["losses", "gradients"]}
    answer = evaluate(client, fields)
    theirs = functional.cross_entropy(torch.tensor(LOGITS), torch.tensor([1, 2]), ignore_index=1, reduction="none")
    np.testing.assert_allclose(read_array(answer["losses"]), theirs.numpy(), rtol=1e-6)
    assert answer["gradients"][0] == [0, 0, 0]
    assert (answer["count"], answer["ignored"], answer["normalizer"]) == (1, 1, 1)


def test_integer_labels_of_the_logits_shape_are_one_hot(client: httpx.Client) -> None:
    fields = {"logits": LOGITS, "include": ["losses", "gradients"]}
    onehot = evaluate(client, {**fields, "labels": [[0, 0, 1], [0, 1, 0]]})
    index = evaluate(client, {**fields, "labels": [2, 1]})
    for name in ("losses", "gradients"):
        np.testing.assert_allclose(read_array(onehot[name]), read_array(index[name]), rtol=1e-6, atol=6e-8)
    assert onehot["warnings"] == []


NEVER_VALID = [
    pytest.param({"weight": [1.0, 1.0]}, "#/weight", id="weight-too-short"),
    pytest.param({"weight": [1.0] * 4}, "#/weight", id="weight-too-long"),
    pytest.param({"weight": 1.0}, "#/weight", id="weight-scalar"),
    pytest.param({"weight": [[1.0, 1.0, 1.0]]}, "#/weight", id="weight-of-rank-two"),
    pytest.param({"weight": [1.0, -1e-9, 1.0]}, "#/weight/1", id="weight-negative"),
    pytest.param({"weight": [1.0, 1.0, "NaN"]}, "#/weight/2", id="weight-nan"),
    pytest.param({"weight": ["Infinity", 1.0, 1.0]}, "#/weight/0", id="weight-infinite"),
    pytest.param({"sample_weight": [1.0]}, "#/sample_weight", id="sample-weight-too-short"),
    pytest.param({"sample_weight": [1.0, -0.5]}, "#/sample_weight/1", id="sample-weight-negative"),
    pytest.param({"sample_weight": ["NaN", 0.5]}, "#/sample_weight/0", id="sample-weight-nan"),
    pytest.param({"label_smoothing": -0.001}, "#/label_smoothing", id="smoothing-negative"),
    pytest.param({"label_smoothing": 1.001}, "#/label_smoothing", id="smoothing-above-one"),
    pytest.param({"label_smoothing": "NaN"}, "#/label_smoothing", id="smoothing-nan"),
    pytest.param({"temperature": 0}, "#/temperature", id="temperature-zero"),
    pytest.param({"temperature": -1}, "#/temperature", id="temperature-negative"),
    pytest.param({"z_loss": -1e-6}, "#/z_loss", id="z-loss-negative"),
    pytest.param({"grad_output": "Infinity"}, "#/grad_output", id="grad-output-infinite"),
]


@pytest.mark.parametrize(("option", "pointer"), NEVER_VALID)
def test_option_outside_its_range_is_refused(option: dict[str, Any], pointer: str, client: httpx.Client) -> None:
    """PyTorch accepts some of these silently."""
    fields = {"logits": LOGITS, "labels": [0, 1], **option}
    problem = refuse(client, fields, 422, "invalid_value", "shape_mismatch")
    assert pointers(problem)[0] == pointer


@pytest.mark.parametrize(
    "option",
    [
        pytest.param({"weight": [0.0, 1.0, 1e30]}, id="weight"),
        pytest.param({"sample_weight": [0.0, 1e-30]}, id="sample-weight"),
        pytest.param({"label_smoothing": 0}, id="smoothing-zero"),
        pytest.param({"label_smoothing": 1}, id="smoothing-one"),
        pytest.param({"temperature": 1e-6}, id="temperature-small"),
        pytest.param({"z_loss": 0}, id="z-loss-zero"),
    ],
)
def test_option_at_the_end_of_its_range_is_taken(option: dict[str, Any], client: httpx.Client) -> None:
    answer = evaluate(client, {"logits": LOGITS, "labels": [2, 1], "reduction": "sum", **option})
    expected = cross_entropy(LOGITS, [2, 1], reduction="sum", **option)
    np.testing.assert_allclose(read_array(answer["losses"]), expected.losses.astype(float), rtol=1e-5)


BROADCASTS = [
    pytest.param({"labels": [[0], [1]]}, "#/labels", id="labels-N-by-1"),
    pytest.param({"labels": [0]}, "#/labels", id="one-label-for-all"),
    pytest.param({"labels": 0}, "#/labels", id="scalar-label-for-a-batch"),
    pytest.param({"weight": [1.0]}, "#/weight", id="one-weight"),
    pytest.param({"sample_weight": 1.0}, "#/sample_weight", id="scalar-sample-weight"),
    pytest.param({"sample_weight": [[1.0], [1.0]]}, "#/sample_weight", id="sample-weight-N-by-1"),
    pytest.param({"reduction": "none", "grad_output": [1.0]}, "#/grad_output", id="one-grad-output"),
    pytest.param({"reduction": "none", "grad_output": [[1.0, 1.0]]}, "#/grad_output", id="grad-output-1-by-N"),
    pytest.param({"reduction": "sum", "grad_output": [1.0, 1.0]}, "#/grad_output", id="grad-output-for-a-sum"),
]


@pytest.mark.parametrize(("fields", "pointer"), BROADCASTS)
def test_nothing_is_broadcast(fields: dict[str, Any], pointer: str, client: httpx.Client) -> None:
    problem = refuse(client, {"logits": LOGITS, "labels": [0, 1], **fields}, 422, "shape_mismatch", "invalid_value")
    assert pointers(problem)[0] == pointer


def test_classes_last_is_said_not_guessed(client: httpx.Client) -> None:
    """(N, T, V) with T = V: PyTorch takes axis 1 silently, `class_axis` says which one is meant."""
    logits = np.random.default_rng(0).normal(size=(2, 3, 3))
    labels = [[0, 1, 2], [2, 1, 0]]
    for axis in (1, -1):
        fields = {"logits": logits, "labels": labels, "class_axis": axis, "include": ["losses", "gradients"]}
        answer = evaluate(client, fields)
        expected = cross_entropy(logits.astype(np.float32), labels, class_axis=axis)
        np.testing.assert_allclose(read_array(answer["losses"]), expected.losses.astype(float), rtol=5e-6)
        np.testing.assert_allclose(
            read_array(answer["gradients"]), expected.gradients.astype(float), rtol=1e-6, atol=2e-8
        )


def test_shapes_that_fit_with_classes_last_suggest_it(client: httpx.Client) -> None:
    fields = {"logits": np.zeros((2, 3, 5)), "labels": np.zeros((2, 3), np.int64)}
    problem = refuse(client, fields, 422, "shape_mismatch")
    assert "did you mean class_axis=-1?" in words(problem)
    assert evaluate(client, {**fields, "class_axis": -1})["losses"] == pytest.approx(np.full((2, 3), math.log(5)))


def test_float16_with_many_classes_and_smoothing_stays_finite(client: httpx.Client) -> None:
    """PyTorch sums 50,000 terms in float16: inf."""
    logits = torch.randn((1, 50_000), generator=torch.Generator().manual_seed(0)).half()
    labels = torch.tensor([3])
    fields = {"logits": logits, "labels": labels, "label_smoothing": 0.1}
    answer = evaluate(client, fields, arrays="base64")
    assert functional.cross_entropy(2 * logits, labels, label_smoothing=0.1).isinf()
    expected = functional.cross_entropy(logits.double(), labels, label_smoothing=0.1).item()
    assert answer["loss"] == pytest.approx(expected, rel=5e-6)


def test_float16_mean_over_many_rows_keeps_loss_and_gradient(client: httpx.Client) -> None:
    """PyTorch's divisor overflows float16: a loss of 0 or NaN, and gradients of exactly 0."""
    logits = torch.randn((70_000, 2), generator=torch.Generator().manual_seed(0)).half()
    labels = torch.zeros(70_000, dtype=torch.int64)
    leaf = logits.clone().requires_grad_()
    theirs = functional.cross_entropy(leaf, labels)
    torch.autograd.backward(theirs)
    assert leaf.grad is not None
    assert not leaf.grad.any()
    fields = {"logits": logits, "labels": labels, "include": ["loss", "gradients"], "encoding": "base64"}
    answer = evaluate(client, fields, arrays="base64")
    expected = cross_entropy(logits.double().numpy(), labels.numpy())
    assert answer["loss"] == pytest.approx(float(expected.loss), rel=5e-6)
    np.testing.assert_allclose(
        read_array(answer["gradients"]), expected.gradients.astype(float), rtol=1e-6, atol=6e-8 / 70_000
    )
