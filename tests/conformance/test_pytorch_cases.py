"""The 399 cases PyTorch tests its own cross-entropy with, over HTTP."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from tests import calls
from tests.conformance import shipped_cases
from tests.conformance.shipped_cases import MODULE_DTYPES, OP_DTYPES, Case, differentiate, random_grad_output
from tests.crowd import Crowd, strangers
from tests.server import Server
from tests.wire import Array, encode, read_array

Group = Callable[[torch.dtype], list[Case]]
GROUPS = [
    *[pytest.param(shipped_cases.operator_cases, dtype, id=f"operator-{dtype}") for dtype in OP_DTYPES],
    *[pytest.param(shipped_cases.module_cases, dtype, id=f"module-{dtype}") for dtype in MODULE_DTYPES],
]
FLOAT32_GROUPS = [
    pytest.param(shipped_cases.operator_cases, id="operator"),
    pytest.param(shipped_cases.module_cases, id="module"),
]


@pytest.fixture(scope="module")
def crowd(server: Server) -> Iterator[Crowd]:
    with Crowd(server.port) as opened:
        yield opened


def assert_equals_pytorch(case: Case, grad_output: torch.Tensor, answer: dict[str, Any]) -> None:
    """Compare the answer with float64 autograd, as closely as the dtype of the logits allows."""
    expected = differentiate(case, grad_output)
    is_double = case.logits.dtype == torch.float64
    dtype = "F64" if is_double else "F32"
    rtol, atol = (1e-13, 1e-14) if is_double else (5e-6, 0.0)
    np.testing.assert_allclose(read_array(answer["losses"], dtype), expected.losses.numpy(), rtol, atol)
    assert ("loss" in answer) == (expected.loss is not None)
    if expected.loss is not None:
        np.testing.assert_allclose(read_array(answer["loss"], "F64"), np.float64(expected.loss), rtol, atol)
    largest = max(float(expected.gradients.abs().max()), 1e-3)
    rtol, atol = (1e-12, 1e-14) if is_double else (1e-6, 2e-7 * largest)
    np.testing.assert_allclose(read_array(answer["gradients"], dtype), expected.gradients.numpy(), rtol, atol)


def test_no_shipped_case_disappears() -> None:
    operator = sum(len(shipped_cases.operator_cases(dtype)) for dtype in OP_DTYPES)
    module = sum(len(shipped_cases.module_cases(dtype)) for dtype in MODULE_DTYPES)
    assert (operator, module, operator + module) == (84, 315, 399)
    assert len(shipped_cases.error_cases()) == 7


@pytest.mark.parametrize(("group", "dtype"), GROUPS)
def test_shipped_case_equals_autograd(
    group: Group, dtype: torch.dtype, client: httpx.Client, subtests: pytest.Subtests
) -> None:
    for number, case in enumerate(group(dtype)):
        with subtests.test(case.name):
            grad_output = random_grad_output(case, seed=number)
            fields = {**case.fields(grad_output), "encoding": "base64"}
            answer = calls.evaluate(client, fields, arrays="base64")
            assert_equals_pytorch(case, grad_output, answer)


@pytest.mark.parametrize("group", FLOAT32_GROUPS)
def test_nested_numbers_have_the_bits_of_tensor_objects(
    group: Group, client: httpx.Client, subtests: pytest.Subtests
) -> None:
    for number, case in enumerate(group(torch.float32)):
        with subtests.test(case.name):
            fields = case.fields(random_grad_output(case, seed=number))
            nested = calls.evaluate(client, fields)
            binary = calls.evaluate(client, {**fields, "encoding": "base64"}, arrays="base64")
            for name in ("losses", "gradients"):
                assert_same_bits(read_array(nested[name]), read_array(binary[name]))
            assert_same_bits(read_array(nested.get("loss", 0), "F64"), read_array(binary.get("loss", 0), "F64"))


def assert_same_bits(one: Array, other: Array) -> None:
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize(("group", "dtype"), GROUPS)
def test_shipped_case_has_the_same_bits_in_a_batch_with_strangers(
    group: Group, dtype: torch.dtype, client: httpx.Client, crowd: Crowd, subtests: pytest.Subtests
) -> None:
    generator = torch.Generator().manual_seed(7)
    batched = 0
    for number, case in enumerate(group(dtype)):
        with subtests.test(case.name):
            fields = {**case.fields(random_grad_output(case, seed=number)), "encoding": "base64"}
            alone = calls.post(client, fields, arrays="base64").content
            bodies = strangers(fields, 4, generator)
            place = number % 5
            bodies.insert(place, encode(fields, arrays="base64"))
            reply = crowd.fire(bodies)[place]
            assert reply.content == alone
            batched += reply.companions > 1
    assert batched > len(group(dtype)) / 4, f"only {batched} cases met strangers in a batch"


# PyTorch refuses all seven; here integer labels of the logits' shape are probabilities.
REFUSED = [
    pytest.param(1, {"unsupported_dtype", "invalid_value"}, "#/labels", id="float-labels-for-class-indices"),
    pytest.param(2, {"shape_mismatch"}, "#/labels", id="more-labels-than-rows"),
    pytest.param(3, {"shape_mismatch"}, "#/weight", id="weight-of-the-wrong-length"),
    pytest.param(4, {"invalid_value"}, "#/ignore_index", id="ignore-index-with-probabilities"),
    pytest.param(5, {"invalid_value"}, "#/label_smoothing", id="smoothing-above-one"),
    pytest.param(6, {"shape_mismatch"}, "#/labels", id="labels-of-another-length-along-d1"),
]


@pytest.mark.parametrize(("number", "codes", "pointer"), REFUSED)
@pytest.mark.parametrize("arrays", ["nested", "base64"])
def test_what_pytorch_refuses_is_refused(
    number: int, codes: set[str], pointer: str, arrays: str, client: httpx.Client
) -> None:
    case = shipped_cases.error_cases()[number]
    with pytest.raises((RuntimeError, ValueError)):
        differentiate(case, torch.tensor(1.0))
    response = calls.post(client, case.fields(torch.tensor(1.0)), arrays=arrays)
    problem = calls.check_problem(response, 422, *codes)
    assert any(found.startswith(pointer) for found in calls.pointers(problem))


def test_integer_labels_of_the_logits_shape_are_probabilities_and_not_an_error(client: httpx.Client) -> None:
    case = shipped_cases.error_cases()[0]
    with pytest.raises(RuntimeError, match="Expected floating point type"):
        differentiate(case, torch.tensor(1.0))
    answer = calls.evaluate(client, case.fields(torch.tensor(1.0)))
    assert answer["losses"] == [0, 0]  # the labels are all zeros
    assert [warning["code"] for warning in answer["warnings"]] == ["labels_not_normalized"]


def test_every_shipped_case_survives_json(subtests: pytest.Subtests) -> None:
    """Nested numbers carry each element exactly, whatever its dtype."""
    for case in shipped_cases.every_case():
        with subtests.test(case.name):
            read = json.loads(encode({"logits": case.logits.double()}))["logits"]
            assert torch.equal(torch.tensor(read, dtype=torch.float64).to(case.logits.dtype), case.logits)
