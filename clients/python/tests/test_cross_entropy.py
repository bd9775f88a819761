"""Every option, through both clients, both encodings, over a socket and in process, against extended precision."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from losseval import errors
from tests import reference

Call = Callable[..., Any]
RNG = np.random.default_rng(4)
LOGITS = RNG.standard_normal((6, 5)).astype(np.float32) * 3
LABELS = np.array([0, 4, 2, 2, 1, 3])
PROBABILITIES = RNG.dirichlet(np.ones(5), 6).astype(np.float32)
DEEP = RNG.standard_normal((2, 5, 3)).astype(np.float32)
DEEP_LABELS = RNG.integers(0, 5, (2, 3))
PER_SAMPLE = ("losses", "nll", "logsumexp", "entropy", "margin", "gradient_norm", "predictions")

CASES = [
    pytest.param(LOGITS, LABELS, {}, id="defaults"),
    pytest.param(LOGITS, PROBABILITIES, {}, id="probability labels"),
    pytest.param(LOGITS[0], 3, {}, id="one sample"),
    pytest.param(DEEP, DEEP_LABELS, {}, id="more axes"),
    pytest.param(np.moveaxis(DEEP, 1, -1), DEEP_LABELS, {"class_axis": -1}, id="classes last"),
    pytest.param(LOGITS, LABELS, {"weight": [0.5, 1, 2, 0, 1]}, id="weight"),
    pytest.param(LOGITS, LABELS, {"sample_weight": np.linspace(0, 2, 6)}, id="sample weight"),
    pytest.param(LOGITS, np.where(LABELS == 2, -1, LABELS), {"ignore_index": -1}, id="ignore index"),
    pytest.param(LOGITS, LABELS, {"ignore_index": -100, "label_smoothing": np.float64(0.1)}, id="smoothing"),
    pytest.param(LOGITS, LABELS, {"temperature": 2.5, "z_loss": 0.01}, id="temperature and z-loss"),
    pytest.param(LOGITS, LABELS, {"reduction": "sum", "grad_output": -2.5}, id="sum"),
    pytest.param(LOGITS, LABELS, {"reduction": "none", "grad_output": np.arange(6.0)}, id="none"),
    pytest.param(LOGITS, LABELS, {"grad_output": None, "weight": None, "reduction": None}, id="nothing"),
]


@pytest.mark.parametrize(("logits", "labels", "options"), CASES)
def test_every_output_is_that_of_the_formula(call: Call, logits: Any, labels: Any, options: dict[str, Any]) -> None:
    include = [*PER_SAMPLE, "loss", "gradients", "probabilities"]
    result = call("cross_entropy", logits, labels, include=include, **options)
    given = {name: value for name, value in options.items() if value is not None}
    expected = reference.cross_entropy(logits, labels, **given)
    for name in (*PER_SAMPLE, "gradients", "probabilities"):
        np.testing.assert_allclose(getattr(result, name), getattr(expected, name), rtol=2e-6, atol=1e-7, err_msg=name)
        if np.ndim(logits) > 1:  # a lone number in JSON has no dtype
            assert getattr(result, name).dtype == (np.int64 if name == "predictions" else np.float32), name
    assert result.loss_sum == pytest.approx(float(expected.loss_sum), rel=1e-6)
    assert result.normalizer == pytest.approx(float(expected.normalizer), rel=1e-12)
    assert (result.count, result.ignored) == (expected.count, expected.ignored)
    if expected.loss is None:
        assert "loss" not in result.outputs
    else:
        assert result.loss == pytest.approx(float(expected.loss), rel=1e-6)
    assert result.warnings == ()


def test_float64_logits_are_answered_in_float64(call: Call) -> None:
    logits = LOGITS.astype(np.float64)
    result = call("cross_entropy", logits, LABELS, include=["losses", "gradients"])
    expected = reference.cross_entropy(logits, LABELS)
    assert result.losses.dtype == result.gradients.dtype == np.float64
    np.testing.assert_allclose(result.gradients, expected.gradients.astype(np.float64), rtol=1e-13)


@pytest.mark.parametrize(
    ("dtype", "received"), [("F64", np.float64), ("F32", np.float32), ("F16", np.float16), ("BF16", np.float32)]
)
def test_gradients_have_the_dtype_asked_for(call: Call, dtype: str, received: type) -> None:
    """bfloat16 comes as the float32 numbers that it stands for."""
    result = call("cross_entropy", LOGITS, LABELS, include=["gradients"], gradient_dtype=dtype)
    exact = reference.cross_entropy(LOGITS, LABELS).gradients.astype(np.float64)
    assert result.gradients.dtype == received
    np.testing.assert_allclose(result.gradients, exact, rtol={"F16": 1e-3, "BF16": 8e-3}.get(dtype, 2e-6), atol=1e-7)
    if dtype == "BF16":
        rounded = torch.from_numpy(result.gradients).bfloat16().float().numpy()
        np.testing.assert_array_equal(rounded, result.gradients)


@pytest.mark.parametrize("kind", ["log_probabilities", "probabilities"])
def test_input_may_be_normalized_already(call: Call, kind: str) -> None:
    sent = PROBABILITIES if kind == "probabilities" else np.log(PROBABILITIES)
    result = call("cross_entropy", sent, LABELS, input=kind)
    chosen = -np.log(PROBABILITIES[np.arange(6), LABELS].astype(np.float64))
    assert result.loss == pytest.approx(chosen.mean(), rel=1e-6)


def test_high_precision_is_passed_on(call: Call) -> None:
    """Rows so confident that float32 has hardly a digit of the loss left unless it is computed wider."""
    logits = np.array([[20.0, 3.3, 1.1], [17.0, 2.0, 1.7]], np.float32)
    high = call("cross_entropy", logits, [0, 0], precision="high").losses
    np.testing.assert_array_equal(high, reference.cross_entropy(logits, [0, 0]).losses.astype(np.float32))


def test_all_ways_give_the_same_bits(call: Call, client: Any) -> None:
    include = ["losses", "gradients", "summary"]
    other = client.cross_entropy(LOGITS, LABELS, include=include)
    result = call("cross_entropy", LOGITS, LABELS, include=include)
    assert result.loss_sum == other.loss_sum
    np.testing.assert_array_equal(result.gradients, other.gradients)
    np.testing.assert_equal(result.summary, other.summary)


def test_non_finite_numbers_go_both_ways(call: Call) -> None:
    logits = np.array([[np.nan, 1], [0, -np.inf], [1, 2]], np.float32)
    result = call("cross_entropy", logits, [0, 1, 1], include=["loss", "losses", "summary"])
    np.testing.assert_array_equal(np.isfinite(result.losses), [False, False, True])
    assert np.isinf(result.losses[1])
    assert np.isnan(result.loss)
    assert np.isnan(result.summary["mean_nll"])
    assert [(one.code, one.count, list(one.first)) for one in result.warnings] == [
        ("nonfinite_logits", 1, [0]),
        ("nonfinite_loss", 2, [0, 1]),
    ]


def test_an_empty_batch_is_an_answer(call: Call) -> None:
    result = call("cross_entropy", np.zeros((0, 4), np.float32), np.zeros(0, np.int64), include=["losses", "gradients"])
    assert result.losses.shape == (0,)
    assert result.gradients.shape == (0, 4)
    assert [warning.code for warning in result.warnings] == ["all_ignored"]


def test_a_refusal_is_the_error_of_its_status_with_the_problem(call: Call) -> None:
    with pytest.raises(errors.UnprocessableError) as caught:
        call("cross_entropy", LOGITS, LABELS + 1, request_id="mine")
    assert (caught.value.status_code, caught.value.code, caught.value.request_id) == (422, "label_out_of_range", "mine")
    assert caught.value.problem["errors"] == [{"pointer": "#/labels/1", "detail": "5 is not in [0, 4]"}]
    assert "label_out_of_range" in str(caught.value)
    assert "mine" in str(caught.value)


def test_info_and_readiness(call: Call) -> None:
    info = call("info")
    assert info["name"] == "losseval"
    assert info["limits"]["max_body_bytes"] == 256 << 20
    assert call("ready") is True


def test_the_answer_says_where_the_time_went(call: Call) -> None:
    meta = call("cross_entropy", LOGITS, LABELS, request_id="about-time").meta
    assert (meta.request_id, meta.attempts) == ("about-time", 1)
    assert {"decode", "queue", "compute", "encode"} <= meta.timings.keys()
    assert all(duration >= 0 for duration in meta.timings.values())
    assert meta.service_version
