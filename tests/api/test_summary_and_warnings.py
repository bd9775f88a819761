"""The summary of a batch, and the warnings for what is computed but deserves notice."""

import math
from typing import Any

import httpx
import numpy as np
import pytest

from tests.calls import evaluate
from tests.reference import cross_entropy

GENERATOR = np.random.default_rng(5)


def summarize(client: httpx.Client, logits: object, labels: object, **options: object) -> dict[str, Any]:
    answer = evaluate(client, {"logits": logits, "labels": labels, "include": ["summary"], **options})
    summary: dict[str, Any] = answer["summary"]
    return summary


def assert_equals_definition(found: dict[str, Any], expected: dict[str, Any], names: set[str]) -> None:
    for name in names:
        if isinstance(expected[name], dict):
            assert set(found[name]) == set(expected[name])
            assert_equals_definition(found[name], expected[name], set(expected[name]))
        else:
            assert found[name] == pytest.approx(np.asarray(expected[name]).astype(float), rel=1e-5, abs=1e-6), name


INDEX_ONLY = {
    *("accuracy", "mean_nll", "standard_error", "perplexity", "baseline_uniform", "baseline_prior", "skill"),
    *("expected_calibration_error", "calibration"),
}


@pytest.mark.parametrize(
    ("classes", "more"),
    [
        pytest.param(5, {"per_class"}, id="five-classes"),
        pytest.param(6, {"per_class", "top5_accuracy"}, id="six-classes"),
        pytest.param(1000, {"per_class", "top5_accuracy"}, id="1000-classes"),
        pytest.param(1001, {"top5_accuracy"}, id="1001-classes"),
    ],
)
def test_summary_of_class_indices(classes: int, more: set[str], client: httpx.Client) -> None:
    """Weights and smoothing do not touch it; ignored rows do not count."""
    logits = (4 * GENERATOR.normal(size=(50, classes))).astype(np.float32)
    labels = np.where(GENERATOR.random(50) < 0.5, logits.argmax(1), GENERATOR.integers(0, classes, 50))
    labels[7] = -100
    found = summarize(client, logits, labels, weight=GENERATOR.random(classes), label_smoothing=0.3)
    assert set(found) == INDEX_ONLY | more
    assert_equals_definition(found, cross_entropy(logits, labels).summary, INDEX_ONLY | more)


def test_summary_of_probabilities(client: httpx.Client) -> None:
    logits = (2 * GENERATOR.normal(size=(30, 6))).astype(np.float32)
    labels = np.exp(GENERATOR.normal(size=(30, 6)))
    labels = (labels / labels.sum(1, keepdims=True)).astype(np.float32)
    found = summarize(client, logits, labels)
    same = {"accuracy", "mean_nll", "perplexity", "skill", "label_entropy", "kl_divergence", "calibration"}
    assert_equals_definition(found, cross_entropy(logits, labels).summary, same)


def test_confidence_on_the_edge_of_a_bin_belongs_to_the_lower_one(client: httpx.Client) -> None:
    """A softmax of two equal logits is exactly 0.5: bin (0.4, 0.5]."""
    found = summarize(client, [[1.0, 1.0]], [0])["calibration"]
    assert found["count"] == [0, 0, 0, 0, 1, 0, 0, 0, 0, 0]
    assert found["confidence_sum"][4] == 0.5


def test_what_is_undefined_for_one_row_is_nan(client: httpx.Client) -> None:
    found = summarize(client, [[1.0, 2.0]], [0])
    assert found["standard_error"] == "NaN"
    assert found["accuracy"] == 0


def test_what_is_undefined_for_one_class_is_nan(client: httpx.Client) -> None:
    found = summarize(client, [[1.0], [2.0]], [0, 0])
    assert found["skill"] == "NaN"
    assert (found["accuracy"], found["mean_nll"], found["baseline_uniform"]) == (1, 0, 0)


def test_summaries_of_parts_merge(client: httpx.Client) -> None:
    logits, labels = GENERATOR.normal(size=(20, 4)), GENERATOR.integers(0, 4, 20)
    parts = [summarize(client, logits[part], labels[part]) for part in (slice(0, 8), slice(8, 20))]
    whole = summarize(client, logits, labels)
    for group in ("calibration", "per_class"):
        for name, value in whole[group].items():
            merged = np.sum([part[group][name] for part in parts], axis=0)
            assert value == pytest.approx(merged, rel=1e-6)


def warnings_of(client: httpx.Client, **fields: object) -> dict[str, Any]:
    answer = evaluate(client, fields)
    for warning in answer["warnings"]:
        assert set(warning) == {"code", "detail", "count", "first"}
        assert warning["detail"]
    return {warning["code"]: (warning["count"], warning["first"]) for warning in answer["warnings"]}


@pytest.mark.parametrize("rows", [1, 10, 11, 1000])
def test_warning_counts_all_rows_and_lists_ten(rows: int, client: httpx.Client) -> None:
    logits = np.zeros((rows + 1, 2))
    logits[1:, 0] = -math.inf
    found = warnings_of(client, logits=logits, labels=[0] * (rows + 1))
    assert found["nonfinite_loss"] == (rows, list(range(1, min(rows, 10) + 1)))


def test_warning_counts_in_flat_order_of_the_losses(client: httpx.Client) -> None:
    logits = np.zeros((2, 3, 4))
    logits[1, 0, 2] = math.nan
    assert warnings_of(client, logits=logits, labels=np.zeros((2, 4), int))["nonfinite_logits"] == (1, [6])


NORMALIZED = [
    pytest.param("F32", 1 + 0.9e-5, False, id="F32-below"),
    pytest.param("F32", 1 + 1.2e-5, True, id="F32-above"),
    pytest.param("F64", 1 - 0.9e-5, False, id="F64-below"),
    pytest.param("F64", 1 - 1.1e-5, True, id="F64-above"),
    pytest.param("F16", 1 + 0.008, False, id="F16-below"),
    pytest.param("F16", 1 + 0.012, True, id="F16-above"),
]


@pytest.mark.parametrize(("dtype", "total", "noticed"), NORMALIZED)
def test_labels_that_do_not_sum_to_one_are_noticed(
    dtype: str, total: float, client: httpx.Client, *, noticed: bool
) -> None:
    """They are computed as given all the same."""
    kind = {"F32": np.float32, "F64": np.float64, "F16": np.float16}[dtype]
    labels = np.array([[0.5, 0.5], [0.5, total - 0.5]], kind)
    fields = {"logits": np.zeros((2, 2), kind), "labels": labels, "reduction": "sum"}
    answer = evaluate(client, fields, arrays="base64")
    codes = {warning["code"]: warning["first"] for warning in answer["warnings"]}
    assert codes.get("labels_not_normalized") == ([1] if noticed else None)
    assert answer["loss"] == pytest.approx(float(labels.astype(np.float64).sum()) * math.log(2), rel=1e-6)


def test_negative_probability_is_noticed_and_computed_as_given(client: httpx.Client) -> None:
    fields = {"logits": [[1.0, 0.0]], "labels": [[1.5, -0.5]]}
    assert warnings_of(client, **fields)["labels_not_normalized"] == (1, [0])
    expected = float(cross_entropy([[1.0, 0.0]], [[1.5, -0.5]]).loss)
    assert evaluate(client, fields)["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_loss_that_is_infinite_only_in_float32_is_warned_of(client: httpx.Client) -> None:
    fields = {"logits": [[3e38, -3e38], [0, 0]], "labels": [1, 1], "precision": "high"}
    answer = evaluate(client, fields)
    assert (answer["losses"][0], math.isfinite(answer["loss"])) == ("Infinity", True)
    assert [(one["code"], one["first"]) for one in answer["warnings"]] == [("nonfinite_loss", [0])]
