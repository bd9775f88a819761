"""The answer to a good request: which fields come, in which form, and how they relate."""

from typing import Any

import httpx
import numpy as np
import pytest

from tests.calls import EXAMPLE, evaluate, post
from tests.reference import cross_entropy
from tests.wire import NUMPY_DTYPES, Array, read_array, tensor_object

ALWAYS = {"loss_sum", "normalizer", "count", "ignored", "warnings"}
PER_ROW = ["losses", "nll", "logsumexp", "entropy", "margin", "gradient_norm", "predictions"]
PER_LOGIT = ["gradients", "probabilities"]
GENERATOR = np.random.default_rng(11)
LOGITS = GENERATOR.normal(size=(4, 7, 3)).astype(np.float32) * 3
INDEX = GENERATOR.integers(0, 7, (4, 3))
INDEX[2, 1] = -100
SOFT = np.exp(GENERATOR.normal(size=(4, 7, 3))).astype(np.float32)
SOFT /= SOFT.sum(axis=1, keepdims=True)
EVERYTHING = [*PER_ROW, *PER_LOGIT, "loss", "summary"]


def assert_close(found: Array, expected: Array, relative: float = 5e-6, absolute: float = 2e-7) -> None:
    np.testing.assert_allclose(found.astype(float), np.asarray(expected).astype(float), relative, absolute)


def test_worked_example(client: httpx.Client) -> None:
    answer = evaluate(client, EXAMPLE)
    assert set(answer) == ALWAYS | {"loss", "losses"}
    assert answer["loss"] == pytest.approx(1.2130, abs=5e-5)
    assert answer["losses"] == pytest.approx([0.6884, 1.5846, 1.3660], abs=5e-5)
    assert (answer["normalizer"], answer["count"], answer["ignored"], answer["warnings"]) == (3, 3, 0, [])


@pytest.mark.parametrize("name", EVERYTHING)
def test_one_output_brings_itself_and_the_totals(name: str, client: httpx.Client) -> None:
    alone = evaluate(client, {**EXAMPLE, "include": [name]})
    assert set(alone) == ALWAYS | {name}
    together = evaluate(client, {**EXAMPLE, "include": EVERYTHING})
    assert alone[name] == together[name]
    assert alone["loss_sum"] == together["loss_sum"]


OPTIONS = [
    pytest.param({}, id="defaults"),
    pytest.param({"reduction": "sum"}, id="sum"),
    pytest.param({"reduction": "none"}, id="none"),
    pytest.param({"weight": np.linspace(0, 2, 7)}, id="weight"),
    pytest.param({"sample_weight": np.linspace(0, 2, 12).reshape(4, 3)}, id="sample-weight"),
    pytest.param({"label_smoothing": 0.3}, id="smoothing"),
    pytest.param({"temperature": 2.5}, id="temperature"),
    pytest.param({"z_loss": 0.01}, id="z-loss"),
    pytest.param({"grad_output": -3.5}, id="grad-output"),
    pytest.param({"reduction": "none", "grad_output": GENERATOR.normal(size=(4, 3))}, id="grad-output-a-row"),
    pytest.param({"precision": "high"}, id="high"),
    pytest.param(
        {
            "weight": np.linspace(0, 2, 7),
            "sample_weight": np.linspace(0, 2, 12).reshape(4, 3),
            "label_smoothing": 0.3,
            "temperature": 2.5,
            "z_loss": 0.01,
            "grad_output": -3.5,
        },
        id="all-at-once",
    ),
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("labels", [pytest.param(INDEX, id="index"), pytest.param(SOFT, id="probability")])
def test_every_output_under_every_option_is_that_of_the_definition(
    options: dict[str, Any], labels: Array, client: httpx.Client
) -> None:
    fields = {"logits": LOGITS, "labels": labels, "include": [*PER_ROW, *PER_LOGIT, "loss"], **options}
    answer = evaluate(client, fields)
    definition = {name: value for name, value in options.items() if name != "precision"}
    expected = cross_entropy(LOGITS, labels, **definition)
    for name in [*PER_ROW, *PER_LOGIT]:
        assert_close(read_array(answer[name], "F64"), getattr(expected, name), absolute=1e-6)
    assert ("loss" in answer) == (options.get("reduction") != "none")
    if "loss" in answer:
        assert answer["loss"] == pytest.approx(float(expected.loss), rel=5e-6)
    assert answer["loss_sum"] == pytest.approx(float(expected.loss_sum), rel=5e-6)
    assert answer["normalizer"] == pytest.approx(float(expected.normalizer), rel=1e-6)
    assert (answer["count"], answer["ignored"]) == (expected.count, expected.ignored)


@pytest.mark.parametrize("options", OPTIONS)
def test_totals_follow_from_the_losses(options: dict[str, Any], client: httpx.Client) -> None:
    answer = evaluate(client, {"logits": LOGITS, "labels": INDEX, **options})
    losses = read_array(answer["losses"])
    assert answer["loss_sum"] == pytest.approx(float(losses.sum(dtype=np.float64)), rel=1e-6)
    assert answer["count"] + answer["ignored"] == losses.size == 12
    if options.get("reduction", "mean") == "mean":
        assert (
            answer.get("loss", answer["loss_sum"] / answer["normalizer"]) == answer["loss_sum"] / answer["normalizer"]
        )
    if options.get("reduction") == "sum":
        assert answer["loss"] == answer["loss_sum"]


def test_classes_last_gives_the_same_rows_in_its_own_order(client: httpx.Client) -> None:
    first = evaluate(client, {"logits": LOGITS, "labels": INDEX, "include": EVERYTHING})
    moved = {"logits": np.moveaxis(LOGITS, 1, -1), "labels": INDEX, "class_axis": -1, "include": EVERYTHING}
    last = evaluate(client, moved)
    for name in PER_ROW:
        assert last[name] == first[name]
    for name in PER_LOGIT:
        assert np.array_equal(np.moveaxis(read_array(last[name]), -1, 1), read_array(first[name]))


def test_single_sample_has_scalars(client: httpx.Client) -> None:
    batch = evaluate(client, {"logits": LOGITS[:1, :, 0], "labels": INDEX[:1, 0], "include": EVERYTHING})
    single = evaluate(client, {"logits": LOGITS[0, :, 0], "labels": int(INDEX[0, 0]), "include": EVERYTHING})
    for name in [*PER_ROW, *PER_LOGIT]:
        assert np.array_equal(read_array(single[name]), read_array(batch[name])[0]), name
    assert single["loss"] == batch["loss"]
    base64 = evaluate(client, {"logits": [1.0, 2.0], "labels": 0, "include": PER_ROW, "encoding": "base64"})
    assert all(isinstance(base64[name], int | float) for name in PER_ROW), "a scalar is no tensor"


SENT_AS = [
    pytest.param("F32", "F32", id="F32"),
    pytest.param("F64", "F64", id="F64"),
    pytest.param("F16", "F32", id="F16"),
    pytest.param("BF16", "F32", id="BF16"),
]


def typed_logits(dtype: str) -> object:
    """Numbers that every dtype holds exactly, so that all must give the same losses."""
    values = np.array([[1.0, -2.0, 0.5], [3.0, 0.25, -1.5]], np.float32)
    if dtype == "BF16":
        raw = (values.view("<u4") >> 16).astype("<u2")
        return {**tensor_object(raw), "dtype": "BF16"}
    return tensor_object(values.astype(NUMPY_DTYPES[dtype]))


@pytest.mark.parametrize(("dtype", "row_dtype"), SENT_AS)
@pytest.mark.parametrize("precision", ["standard", "high"])
def test_output_dtypes_follow_the_logits(dtype: str, row_dtype: str, precision: str, client: httpx.Client) -> None:
    fields = {"logits": typed_logits(dtype), "labels": [2, 0], "include": EVERYTHING, "precision": precision}
    answer = evaluate(client, {**fields, "encoding": "base64"})
    found = {name: answer[name]["dtype"] for name in [*PER_ROW, *PER_LOGIT]}
    assert found == {**dict.fromkeys(found, row_dtype), "predictions": "I64"}
    expected = cross_entropy([[1.0, -2.0, 0.5], [3.0, 0.25, -1.5]], [2, 0])
    assert_close(read_array(answer["losses"]), expected.losses)
    assert_close(read_array(answer["gradients"]), expected.gradients)


@pytest.mark.parametrize("gradient_dtype", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize(("dtype", "row_dtype"), SENT_AS)
def test_gradients_come_in_the_dtype_asked_for(
    gradient_dtype: str, dtype: str, row_dtype: str, client: httpx.Client
) -> None:
    fields = {"logits": typed_logits(dtype), "labels": [2, 0], "include": EVERYTHING, "encoding": "base64"}
    asked = evaluate(client, {**fields, "gradient_dtype": gradient_dtype})
    default = evaluate(client, fields)
    assert asked["gradients"]["dtype"] == gradient_dtype
    assert {name: value for name, value in asked.items() if name != "gradients"} == {
        name: value for name, value in default.items() if name != "gradients"
    }
    tolerance = {"BF16": 2**-8, "F16": 2**-10}.get(gradient_dtype, 2**-23)
    assert_close(read_array(asked["gradients"]), read_array(default["gradients"]), tolerance, 1e-7)
    assert asked["losses"]["dtype"] == row_dtype


def test_both_encodings_carry_the_same_bits(client: httpx.Client) -> None:
    fields = {"logits": LOGITS, "labels": INDEX, "include": EVERYTHING}
    nested, base64 = evaluate(client, fields), evaluate(client, {**fields, "encoding": "base64"}, arrays="base64")
    for name in [*PER_ROW, *PER_LOGIT]:
        dtype = "I64" if name == "predictions" else "F32"
        assert read_array(nested[name], dtype).tobytes() == read_array(base64[name]).tobytes(), name
    for name in ("loss", "loss_sum", "normalizer", "count", "ignored", "warnings"):
        assert nested[name] == base64[name]


def test_null_is_the_same_as_leaving_out(client: httpx.Client) -> None:
    optional = [
        *("input", "weight", "sample_weight", "ignore_index", "label_smoothing", "temperature", "z_loss"),
        *("reduction", "grad_output", "class_axis", "include", "precision", "gradient_dtype", "encoding"),
    ]
    spelled_out = post(client, {**EXAMPLE, **dict.fromkeys(optional)})
    assert spelled_out.content == post(client, EXAMPLE).content


def test_ignore_index_given_as_null_goes_with_probabilities(client: httpx.Client) -> None:
    fields = {"logits": [[0.0, 0.0]], "labels": [[0.5, 0.5]], "ignore_index": None}
    assert evaluate(client, fields)["losses"] == pytest.approx([np.log(2)])


def test_non_finite_numbers_are_strings_in_and_out(client: httpx.Client) -> None:
    logits = [["NaN", 0], ["Infinity", 0], ["-Infinity", 0], [0, 0]]
    answer = evaluate(client, {"logits": logits, "labels": [0, 0, 0, 0], "include": EVERYTHING})
    assert answer["losses"] == ["NaN", "NaN", "Infinity", pytest.approx(np.log(2))]
    assert answer["gradients"][:2] == [["NaN", "NaN"], ["NaN", "NaN"]]
    assert answer["gradients"][2] == [-0.25, 0.25]
    assert answer["margin"][2:] == ["-Infinity", 0]
    assert answer["loss"] == answer["loss_sum"] == "NaN"
