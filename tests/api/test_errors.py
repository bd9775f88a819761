"""Every refusal of a well-formed JSON body: its status, code, pointer and advice."""

from typing import Any

import httpx
import numpy as np
import pytest

from tests.calls import EXAMPLE, evaluate, pointers, post, refuse, send, words

ONE_ROW: dict[str, Any] = {"logits": [[1.0, 2.0, 3.0]], "labels": [2]}
GOOD_TENSOR = {"dtype": "F32", "shape": [1, 2], "data": "AAAAAAAAgD8="}


def changed(**fields: object) -> dict[str, Any]:
    """Return the one-row request with fields replaced; `...` removes one."""
    return {name: value for name, value in {**ONE_ROW, **fields}.items() if value is not ...}


UNKNOWN_NAMES = [
    pytest.param(changed(ignoreindex=1), "#/ignoreindex", id="misspelt-option"),
    pytest.param(changed(Logits=[[1.0]]), "#/Logits", id="wrong-case"),
    pytest.param(changed(logits={**GOOD_TENSOR, "order": "C"}, labels=[0]), "#/logits/order", id="key-of-a-tensor"),
    pytest.param(changed(**{"a/b~c": 1}), "#/a~1b~0c", id="name-to-escape-in-a-pointer"),
]


@pytest.mark.parametrize(("fields", "pointer"), UNKNOWN_NAMES)
def test_name_that_does_not_belong_is_refused(fields: dict[str, Any], pointer: str, client: httpx.Client) -> None:
    problem = refuse(client, fields, 400, "unknown_field")
    assert pointers(problem) == [pointer]


def test_query_parameter_on_a_json_request_is_refused(client: httpx.Client) -> None:
    response = client.post("/v1/cross-entropy", params={"reduction": "sum"}, json=ONE_ROW)
    assert response.status_code == 400
    assert response.json()["code"] == "unknown_field"
    assert "reduction" in words(response.json())


@pytest.mark.parametrize(
    ("fields", "missing"),
    [
        pytest.param(changed(logits=...), ["#/logits"], id="logits"),
        pytest.param(changed(labels=...), ["#/labels"], id="labels"),
        pytest.param({}, ["#/logits", "#/labels"], id="both"),
        pytest.param(changed(labels=None), ["#/labels"], id="null-labels"),
        pytest.param(changed(logits={"dtype": "F32", "shape": [1, 2]}), ["#/logits/data"], id="data-of-a-tensor"),
        pytest.param(changed(logits={"shape": [1, 1], "data": ""}), ["#/logits/dtype"], id="dtype-of-a-tensor"),
        pytest.param(changed(logits={"dtype": "F32", "data": ""}), ["#/logits/shape"], id="shape-of-a-tensor"),
    ],
)
def test_missing_field_is_named(fields: dict[str, Any], missing: list[str], client: httpx.Client) -> None:
    problem = refuse(client, fields, 422, "missing_field")
    assert pointers(problem)
    assert set(pointers(problem)) <= set(missing)


INVALID = [
    pytest.param(changed(reduction="average"), "#/reduction", "mean", id="unknown-reduction"),
    pytest.param(changed(reduction=1), "#/reduction", "mean", id="reduction-of-another-type"),
    pytest.param(changed(precision="double"), "#/precision", "high", id="unknown-precision"),
    pytest.param(changed(encoding="hex"), "#/encoding", "base64", id="unknown-encoding"),
    pytest.param(changed(input="odds"), "#/input", "probabilities", id="unknown-input"),
    pytest.param(changed(gradient_dtype="I64"), "#/gradient_dtype", "BF16", id="integer-gradients"),
    pytest.param(changed(include=["loss", "accuracy"]), "#/include/1", "summary", id="unknown-output"),
    pytest.param(changed(include=["loss", "loss"]), "#/include", "loss", id="output-named-twice"),
    pytest.param(changed(include=[]), "#/include", "", id="no-output"),
    pytest.param(changed(include="loss"), "#/include", "", id="outputs-as-a-string"),
    pytest.param(changed(class_axis=0), "#/class_axis", "-1", id="class-axis-0"),
    pytest.param(changed(class_axis=2), "#/class_axis", "-1", id="class-axis-2"),
    pytest.param(changed(ignore_index=1.5), "#/ignore_index", "integer", id="fractional-ignore-index"),
    pytest.param(changed(ignore_index=True), "#/ignore_index", "integer", id="boolean-ignore-index"),
    pytest.param(changed(label_smoothing="0.1"), "#/label_smoothing", "number", id="number-as-a-string"),
    pytest.param(changed(label_smoothing=True), "#/label_smoothing", "number", id="boolean-as-a-number"),
    pytest.param(changed(temperature="Infinity"), "#/temperature", "", id="infinite-temperature"),
    pytest.param(changed(labels=[True]), "#/labels/0", "", id="true-as-a-label"),
    pytest.param(changed(labels=["2"]), "#/labels/0", "", id="string-as-a-label"),
    pytest.param(changed(logits=[[1.0, "3", 2.0]]), "#/logits/0/1", "", id="string-as-a-logit"),
    pytest.param(changed(logits=[[1.0, "nan", 2.0]]), "#/logits/0/1", "", id="nan-in-lower-case"),
    pytest.param(changed(logits=[[1.0, None, 2.0]]), "#/logits/0/1", "", id="null-as-a-logit"),
    pytest.param(changed(labels=[None]), "#/labels/0", "", id="null-as-a-label"),
    pytest.param(changed(logits=[[1.0, {}, 2.0]]), "#/logits/0/1", "", id="object-as-a-logit"),
    pytest.param(changed(logits=True), "#/logits", "", id="boolean-logits"),
    pytest.param(changed(labels="2"), "#/labels", "", id="string-labels"),
    pytest.param(changed(ignore_index=0, labels=[[0.0, 0.5, 0.5]]), "#/ignore_index", "prob", id="ignored-probability"),
]


@pytest.mark.parametrize(("fields", "pointer", "advice"), INVALID)
def test_invalid_value_is_named_with_what_to_change(
    fields: dict[str, Any], pointer: str, advice: str, client: httpx.Client
) -> None:
    problem = refuse(client, fields, 422, "invalid_value", "unsupported_dtype")
    assert len(pointers(problem)) == 1
    assert pointers(problem)[0].startswith(pointer)
    assert advice in words(problem)


@pytest.mark.parametrize("body", ["[]", "3", "null", '"text"', "true"])
def test_body_that_is_no_object_is_refused(body: str, client: httpx.Client) -> None:
    response = send(client, body)
    assert response.status_code == 422, response.text
    assert response.json()["code"] == "invalid_value"


TENSORS = [
    pytest.param({"data": "AAAA!"}, "invalid_value", "#/logits/data", id="not-base64"),
    pytest.param({"data": "AAAAAAAAgD8"}, "invalid_value", "#/logits/data", id="base64-without-padding"),
    pytest.param({"data": "AAAA AAAAgD8="}, "invalid_value", "#/logits/data", id="base64-with-a-space"),
    pytest.param({"data": 7}, "invalid_value", "#/logits/data", id="data-no-string"),
    pytest.param({"data": "AAAAAA=="}, "invalid_value", "#/logits", id="too-few-bytes"),
    pytest.param({"shape": [1, 3]}, "invalid_value", "#/logits", id="shape-of-more-bytes"),
    pytest.param({"shape": [-1, -2]}, "invalid_value", "#/logits/shape", id="negative-sizes"),
    pytest.param({"shape": [1.0, 2]}, "invalid_value", "#/logits/shape", id="fractional-size"),
    pytest.param({"shape": [True, 2]}, "invalid_value", "#/logits/shape", id="boolean-size"),
    pytest.param({"shape": [2**63, 2]}, "invalid_value", "#/logits", id="product-overflows"),
    pytest.param({"shape": [2**32, 2**32, 2]}, "invalid_value", "#/logits", id="product-wraps-to-zero"),
    pytest.param({"shape": 2}, "invalid_value", "#/logits/shape", id="shape-no-list"),
    pytest.param({"dtype": "F8_E4M3"}, "unsupported_dtype", "#/logits/dtype", id="unsupported-dtype"),
    pytest.param({"dtype": "f32"}, "unsupported_dtype", "#/logits/dtype", id="dtype-in-lower-case"),
    pytest.param({"dtype": "I64", "shape": [1, 1]}, "unsupported_dtype", "#/logits/dtype", id="integer-logits"),
    pytest.param({"dtype": "BOOL", "shape": [1, 8]}, "unsupported_dtype", "#/logits/dtype", id="boolean-logits"),
]


@pytest.mark.parametrize(("part", "code", "pointer"), TENSORS)
def test_tensor_object_that_does_not_add_up_is_refused(
    part: dict[str, object], code: str, pointer: str, client: httpx.Client
) -> None:
    problem = refuse(client, {"logits": {**GOOD_TENSOR, **part}, "labels": [0]}, 422, code)
    assert pointers(problem)[0].startswith(pointer)


def test_tensor_object_that_adds_up_is_taken(client: httpx.Client) -> None:
    answer = evaluate(client, {"logits": GOOD_TENSOR, "labels": [0]})
    assert answer["losses"] == pytest.approx([1.3132616])


@pytest.mark.parametrize("value", [2**63, 2**64 - 1])
def test_unsigned_label_beyond_63_bits_is_out_of_range_and_never_negative(value: int, client: httpx.Client) -> None:
    """2^64 - 100 must not turn into ignore_index."""
    fields = {"logits": np.zeros((2, 3), np.float32), "labels": np.array([0, value], np.uint64)}
    response = post(client, fields, arrays="base64")
    assert response.status_code == 422
    assert response.json()["code"] == "label_out_of_range"
    assert pointers(response.json()) == ["#/labels/1"]
    fields["labels"] = np.array([0, 2**64 - 100], np.uint64)
    assert post(client, fields, arrays="base64").status_code == 422


RAGGED = [
    pytest.param([[1, 2], [3]], [0, 1], "#/logits/1", id="last-row-short"),
    pytest.param([[1], [2, 3]], [0, 0], "#/logits/1", id="later-row-long"),
    pytest.param([[1, 2], [3, 4, 5], [6]], [0, 0, 0], "#/logits/1", id="lengths-that-average-out"),
    pytest.param([[1, 2], 3], [0, 0], "#/logits/1", id="number-beside-a-row"),
    pytest.param([3, [4]], 0, "#/logits/1", id="row-beside-a-number"),
    pytest.param([[1, 2], [3, [4]]], [0, 0], "#/logits/1/1", id="nesting-hidden-by-the-count"),
    pytest.param([[1, 2], [[3, 4]]], [0, 0], "#/logits/1", id="row-nested-once-more"),
    pytest.param([[1, 2], [[], 3, 4]], [0, 0], "#/logits/1", id="empty-list-in-a-row"),
    pytest.param([[1, 2], []], [0, 0], "#/logits/1", id="empty-row"),
    pytest.param([[[1, 2], [3, 4]], [[5, 6], [7]]], [[0, 0], [0, 0]], "#/logits/1/1", id="third-axis"),
    pytest.param([[[1, 2], [3, 4]], [[5, 6, 7, 8]]], [[0, 0], [0, 0]], "#/logits/1", id="third-axis-same-count"),
]


@pytest.mark.parametrize(("logits", "labels", "pointer"), RAGGED)
def test_ragged_rows_are_refused_wherever_they_are(
    logits: list[object], labels: object, pointer: str, client: httpx.Client
) -> None:
    problem = refuse(client, {"logits": logits, "labels": labels}, 422, "shape_mismatch", "invalid_value")
    assert pointers(problem)[0].startswith(pointer)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param("labels", [[0], [1, 0]], id="labels"),
        pytest.param("weight", [1, [1], 1], id="weight"),
        pytest.param("sample_weight", [1, [2]], id="sample-weight"),
        pytest.param("grad_output", [[1], 2], id="grad-output"),
    ],
)
def test_ragged_side_arrays_are_refused(field: str, value: object, client: httpx.Client) -> None:
    fields = {"logits": [[1, 2, 3], [4, 5, 6]], "labels": [0, 1], "reduction": "none", field: value}
    problem = refuse(client, fields, 422, "shape_mismatch", "invalid_value")
    assert pointers(problem)[0].startswith(f"#/{field}")


@pytest.mark.parametrize(
    ("number", "pointer"),
    [
        pytest.param("1e39", "#/logits/0/1", id="beyond-float32"),
        pytest.param("-3.5e38", "#/logits/0/1", id="below-float32"),
        pytest.param("1e400", "#/logits/0/1", id="beyond-float64"),
    ],
)
def test_finite_number_that_overflows_is_out_of_range(number: str, pointer: str, client: httpx.Client) -> None:
    response = send(client, f'{{"logits": [[1, {number}]], "labels": [0]}}')
    assert response.status_code == 422, response.text
    assert response.json()["code"] == "number_out_of_range"
    assert pointers(response.json()) == [pointer]


def test_largest_float32_is_in_range(client: httpx.Client) -> None:
    response = send(client, '{"logits": [[0, 3.4028235e38]], "labels": [0]}')
    assert response.json()["losses"] == [pytest.approx(3.4028235e38)]


def test_ignored_label_with_another_ignore_index_is_recognised(client: httpx.Client) -> None:
    problem = refuse(client, {**EXAMPLE, "labels": [0, -100, 2], "ignore_index": 9}, 422, "label_out_of_range")
    assert "did you mean ignore_index=-100?" in words(problem)
    assert pointers(problem) == ["#/labels/1"]


def test_label_out_of_range_says_what_the_range_is(client: httpx.Client) -> None:
    problem = refuse(client, {**EXAMPLE, "labels": [0, 12, 2]}, 422, "label_out_of_range")
    assert problem["errors"] == [{"pointer": "#/labels/1", "detail": "12 is not in [0, 3]"}]
    assert "ignore_index (-100)" in problem["detail"]
    assert problem.get("errors_omitted", 0) == 0


def test_pointer_into_a_higher_rank_has_one_step_an_axis(client: httpx.Client) -> None:
    fields = {"logits": np.zeros((2, 3, 2)), "labels": [[0, 1], [3, 2]]}
    assert pointers(refuse(client, fields, 422, "label_out_of_range")) == ["#/labels/1/0"]


@pytest.mark.parametrize(("wrong", "shown"), [(9, 9), (10, 10), (11, 10), (100_000, 10)])
def test_at_most_ten_errors_are_listed(wrong: int, shown: int, client: httpx.Client) -> None:
    fields = {"logits": np.zeros((wrong + 1, 1)), "labels": [0] + [5] * wrong}
    problem = refuse(client, fields, 422, "label_out_of_range")
    assert pointers(problem) == [f"#/labels/{row}" for row in range(1, shown + 1)]
    assert problem.get("errors_omitted", 0) == wrong - shown


SECRET = "correct-horse-battery-staple"


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(changed(reduction=SECRET * 1000), id="choice"),
        pytest.param(changed(include=[SECRET * 1000]), id="output"),
        pytest.param(changed(label_smoothing=SECRET), id="number"),
        pytest.param(changed(labels=[SECRET]), id="label"),
        pytest.param(changed(labels=SECRET), id="labels"),
        pytest.param(changed(logits=[[SECRET] * 100]), id="logits"),
        pytest.param(changed(logits={"dtype": SECRET, "shape": [1], "data": SECRET}), id="tensor"),
    ],
)
def test_input_is_never_echoed(fields: dict[str, Any], client: httpx.Client) -> None:
    response = post(client, fields)
    assert response.status_code == 422, response.text[:500]
    assert SECRET not in response.text
    assert len(response.content) <= 4096


@pytest.mark.parametrize("count", [1, 50])
def test_long_unknown_names_do_not_grow_the_answer(count: int, client: httpx.Client) -> None:
    fields = changed(**{f"{number}{'x' * 50_000}": 1 for number in range(count)})
    response = post(client, fields)
    assert response.json()["code"] == "unknown_field"
    assert len(response.content) <= 4096
