"""safetensors bodies in and out over HTTP: forms, options, dtypes, and what the answer holds."""

import json
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from tests.calls import (
    ALIAS,
    BINARY,
    EXAMPLE,
    JSON,
    PATH,
    assert_golden,
    check_problem,
    evaluate,
    evaluate_tensors,
    pointers,
    post,
    post_tensors,
    read_answer,
    send_tensors,
    words,
)
from tests.wire import Array, as_arrays, encode, encode_tensors, read_array, read_header

SAFETENSORS, OCTETS = BINARY["content-type"], ALIAS["content-type"]
ALWAYS = {"loss_sum", "normalizer", "count", "ignored", "warnings"}
PER_ROW = ["losses", "nll", "logsumexp", "entropy", "margin", "gradient_norm", "predictions"]
PER_LOGIT = ["gradients", "probabilities"]
EVERYTHING = [*PER_ROW, *PER_LOGIT, "loss", "summary"]
GENERATOR = np.random.default_rng(29)
LOGITS = (3 * GENERATOR.normal(size=(4, 7, 3))).astype(np.float32)
INDEX = GENERATOR.integers(0, 7, (4, 3))
INDEX[2, 1] = -100
SOFT = np.exp(GENERATOR.normal(size=LOGITS.shape)).astype(np.float32)
SOFT /= SOFT.sum(axis=1, keepdims=True)
FIELDS: dict[str, Any] = {"logits": LOGITS, "labels": INDEX, "include": EVERYTHING}
TENSORS = as_arrays(EXAMPLE)
GOOD = encode_tensors(TENSORS)


def bits(value: Any) -> bytes:  # noqa: ANN401  an output of either form
    """Bits of an output; bfloat16, which numpy does not know, as float32."""
    if isinstance(value, torch.Tensor):
        array: Array = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        return array.tobytes()
    return read_array(value).tobytes()


def assert_same_answer(binary: dict[str, Any], base64: dict[str, Any]) -> None:
    """Binary answer and the one in JSON with tensor objects, which are in its summary as well."""
    assert set(binary) == set(base64)
    for name, value in base64.items():
        if name == "summary":
            assert set(binary[name]) == set(value)
        elif isinstance(value, dict):
            assert tuple(binary[name].shape) == tuple(value["shape"]), name
            assert bits(binary[name]) == bits(value), name
        elif isinstance(binary[name], torch.Tensor):
            assert binary[name].item() == value
        else:
            assert repr(binary[name]) == repr(value) or binary[name] == value, name


@pytest.mark.parametrize("sent", [JSON, BINARY, ALIAS], ids=["json-in", "safetensors-in", "alias-in"])
@pytest.mark.parametrize("accept", [JSON["content-type"], SAFETENSORS, OCTETS], ids=["json", "safetensors", "alias"])
def test_either_form_is_answered_in_either_form(sent: dict[str, str], accept: str, client: httpx.Client) -> None:
    body = encode(EXAMPLE) if sent is JSON else GOOD
    response = client.post(PATH, content=body, headers={**sent, "accept": accept})
    assert response.headers["content-type"] == accept
    assert_golden(response)
    assert response.headers["content-length"] == str(len(response.content))
    assert response.headers["server-timing"].endswith('batch;desc="requests=1 rows=3"')
    assert response.headers["cache-control"] == "no-store"


NEGOTIATED = [
    pytest.param(JSON, None, JSON["content-type"], id="json-and-no-accept"),
    pytest.param(BINARY, None, SAFETENSORS, id="safetensors-and-no-accept"),
    pytest.param(ALIAS, None, SAFETENSORS, id="alias-and-no-accept"),
    pytest.param(JSON, "*/*", JSON["content-type"], id="json-and-anything"),
    pytest.param(BINARY, "*/*", SAFETENSORS, id="safetensors-and-anything"),
    pytest.param(ALIAS, "*/*", SAFETENSORS, id="alias-and-anything"),
    pytest.param(ALIAS, "application/*", SAFETENSORS, id="alias-and-any-application"),
    pytest.param(ALIAS, "application/octet-stream", OCTETS, id="alias-only"),
    pytest.param(ALIAS, "application/octet-stream, application/x-safetensors", SAFETENSORS, id="alias-not-only"),
    pytest.param(ALIAS, "application/json, */*;q=0.5", JSON["content-type"], id="alias-in-json-out"),
    pytest.param(BINARY, "application/json, application/x-safetensors", SAFETENSORS, id="safetensors-and-both"),
    pytest.param(JSON, "application/x-safetensors, application/json", JSON["content-type"], id="json-and-both"),
    pytest.param(JSON, "application/json;q=0.5, application/x-safetensors", SAFETENSORS, id="json-and-rather-binary"),
    pytest.param(BINARY, "application/json, application/*;q=0.9", JSON["content-type"], id="binary-and-rather-json"),
    pytest.param(BINARY, "text/html, */*;q=0.1", SAFETENSORS, id="safetensors-at-worst"),
    pytest.param(JSON, "*/*, application/json;q=0", SAFETENSORS, id="anything-but-json"),
]


@pytest.mark.parametrize(("sent", "accept", "expected"), NEGOTIATED)
def test_accept_decides_and_else_the_form_of_the_request(
    sent: dict[str, str], accept: str | None, expected: str, client: httpx.Client
) -> None:
    body = encode(EXAMPLE) if sent is JSON else GOOD
    request = client.build_request("POST", PATH, content=body, headers={**sent, "accept": accept or ""})
    if accept is None:
        del request.headers["accept"]
    response = client.send(request)
    assert response.headers["content-type"] == expected
    assert_golden(response)


@pytest.mark.parametrize("accept", ["text/html", "application/json;q=0", "*/*;q=0", "application/safetensors"])
def test_a_binary_request_that_takes_no_form_is_not_acceptable(accept: str, client: httpx.Client) -> None:
    problem = check_problem(send_tensors(client, GOOD, accept=accept), 406, "not_acceptable")
    assert SAFETENSORS in words(problem)


@pytest.mark.parametrize("weight", ["nan", "-1"])
@pytest.mark.parametrize("sent", [JSON, BINARY], ids=["json", "binary"])
def test_a_weight_that_is_none_does_not_bring_a_form_nobody_named(
    sent: dict[str, str], weight: str, client: httpx.Client
) -> None:
    body = encode(EXAMPLE) if sent is JSON else GOOD
    response = client.post(PATH, content=body, headers={**sent, "accept": f"application/json;q={weight}"})
    assert response.status_code in {200, 406}
    assert response.headers["content-type"] in {"application/json", "application/problem+json"}


def test_a_refusal_is_a_problem_document_whatever_is_accepted(client: httpx.Client) -> None:
    check_problem(send_tensors(client, b"x", accept=SAFETENSORS), 400, "malformed_tensors")


@pytest.mark.parametrize("encoding", ["gzip", "br"])
def test_compressed_tensors_are_unsupported(encoding: str, client: httpx.Client) -> None:
    check_problem(send_tensors(client, GOOD, content_encoding=encoding), 415, "unsupported_content_encoding")


OPTIONS: list[Any] = [
    pytest.param(
        {"input": "log_probabilities", "include": [*PER_ROW, "probabilities", "loss", "summary"]},
        id="log-probabilities",
    ),
    pytest.param({"ignore_index": 3, "labels": np.where(INDEX == -100, 0, INDEX)}, id="ignore-index"),
    pytest.param({"label_smoothing": 0.25}, id="smoothing"),
    pytest.param({"temperature": 2}, id="temperature-an-integer"),
    pytest.param({"temperature": 1e-1}, id="temperature"),
    pytest.param({"z_loss": 1e-3}, id="z-loss"),
    pytest.param({"reduction": "sum"}, id="sum"),
    pytest.param({"reduction": "none"}, id="none"),
    pytest.param({"grad_output": -2.5}, id="grad-output"),
    pytest.param({"grad_output": 3}, id="grad-output-an-integer"),
    pytest.param({"class_axis": -1, "logits": np.moveaxis(LOGITS, 1, -1)}, id="classes-last"),
    pytest.param({"include": ["loss"]}, id="loss-alone"),
    pytest.param({"include": ["summary", "gradients", "losses"]}, id="outputs-in-another-order"),
    pytest.param({"precision": "high"}, id="high"),
    *(pytest.param({"gradient_dtype": dtype}, id=f"gradients-{dtype}") for dtype in ("F64", "F16", "BF16")),
    pytest.param({"weight": np.linspace(0, 2, 7)}, id="weight"),
    pytest.param({"weight": np.linspace(0, 2, 7).astype(np.float32)}, id="weight-F32"),
    pytest.param({"sample_weight": np.linspace(0, 2, 12).reshape(4, 3)}, id="sample-weight"),
    pytest.param({"sample_weight": np.linspace(0, 2, 12).reshape(4, 3).astype(np.float32)}, id="sample-weight-F32"),
    pytest.param({"grad_output": np.array(-2.5)}, id="grad-output-a-tensor"),
    pytest.param({"grad_output": np.array(-2.5, np.float32)}, id="grad-output-a-tensor-F32"),
    pytest.param({"reduction": "none", "grad_output": GENERATOR.normal(size=(4, 3))}, id="grad-output-a-row"),
    pytest.param(
        {
            "reduction": "sum",
            "label_smoothing": 0.1,
            "temperature": 0.5,
            "z_loss": 0.01,
            "weight": np.linspace(0, 2, 7),
        },
        id="several",
    ),
]


@pytest.mark.parametrize("options", OPTIONS)
def test_an_option_means_the_same_in_the_query_and_in_json(options: dict[str, Any], client: httpx.Client) -> None:
    fields = {**FIELDS, "ignore_index": -100, **options}
    in_json = post(client, fields, arrays="base64", accept=JSON["content-type"])
    assert in_json.status_code == 200, in_json.text
    assert post_tensors(client, fields, accept=JSON["content-type"]).content == in_json.content
    assert evaluate(client, FIELDS, arrays="base64") != in_json.json(), "the option changes nothing"
    binary = post_tensors(client, fields)
    assert binary.content == post(client, fields, arrays="base64", accept=SAFETENSORS).content
    base64 = evaluate(client, {**fields, "encoding": "base64"}, arrays="base64")
    assert_same_answer(read_answer(binary), base64)


def test_defaults_spelled_out_are_the_defaults(client: httpx.Client) -> None:
    spelled_out = {
        "input": "logits",
        "ignore_index": -100,
        "label_smoothing": 0,
        "temperature": 1,
        "z_loss": 0,
        "reduction": "mean",
        "grad_output": 1,
        "class_axis": 1,
        "include": ["loss", "losses"],
        "precision": "standard",
        "gradient_dtype": "F32",
    }
    assert post_tensors(client, {**TENSORS, **spelled_out}).content == post_tensors(client, TENSORS).content


@pytest.mark.parametrize("value", ["array", "base64", ""])
def test_encoding_is_no_option_of_binary_requests(value: str, client: httpx.Client) -> None:
    problem = check_problem(send_tensors(client, GOOD, {"encoding": value}), 400, "unknown_field")
    assert pointers(problem) == ["#/encoding"]


@pytest.mark.parametrize("query", ["reduction=sum", "x", "encoding=array", "reduction=sum&reduction=sum"])
def test_a_query_on_a_json_request_is_an_unknown_field(query: str, client: httpx.Client) -> None:
    problem = check_problem(client.post(f"{PATH}?{query}", content=encode(EXAMPLE), headers=JSON), 400, "unknown_field")
    assert pointers(problem) == ["#/" + query.partition("=")[0]]


@pytest.mark.parametrize("headers", [JSON, BINARY], ids=["json", "binary"])
def test_a_question_mark_alone_is_no_query(headers: dict[str, str], client: httpx.Client) -> None:
    body = encode(EXAMPLE) if headers is JSON else GOOD
    assert_golden(client.post(f"{PATH}?", content=body, headers=headers))


WRONG_OPTIONS = [
    pytest.param({"nothing": 1}, id="unknown"),
    pytest.param({"Reduction": "sum"}, id="wrong-case"),
    pytest.param({"a/b~c d": "x"}, id="name-to-escape"),
    pytest.param({"reduction": "average"}, id="unknown-reduction"),
    pytest.param({"reduction": 1}, id="reduction-a-number"),
    pytest.param({"reduction": ""}, id="reduction-empty"),
    pytest.param({"precision": "double"}, id="unknown-precision"),
    pytest.param({"input": "odds"}, id="unknown-input"),
    pytest.param({"gradient_dtype": "I64"}, id="integer-gradients"),
    pytest.param({"gradient_dtype": "f32"}, id="dtype-in-lower-case"),
    pytest.param({"include": ["loss", "accuracy"]}, id="unknown-output"),
    pytest.param({"include": ["loss", "loss"]}, id="output-named-twice"),
    pytest.param({"include": [""]}, id="empty-output"),
    pytest.param({"class_axis": 0}, id="class-axis-0"),
    pytest.param({"class_axis": 2}, id="class-axis-2"),
    pytest.param({"class_axis": 1.0}, id="class-axis-with-a-point"),
    pytest.param({"class_axis": "one"}, id="class-axis-a-word"),
    pytest.param({"ignore_index": 1.5}, id="fractional-ignore-index"),
    pytest.param({"ignore_index": True}, id="boolean-ignore-index"),
    pytest.param({"ignore_index": 2**63}, id="ignore-index-of-64-bits"),
    pytest.param({"label_smoothing": "much"}, id="smoothing-a-word"),
    pytest.param({"label_smoothing": -0.1}, id="smoothing-negative"),
    pytest.param({"label_smoothing": 1.1}, id="smoothing-above-1"),
    pytest.param({"temperature": 0}, id="temperature-0"),
    pytest.param({"temperature": "Infinity"}, id="temperature-infinite"),
    pytest.param({"z_loss": -1}, id="z-loss-negative"),
    pytest.param({"grad_output": "x"}, id="grad-output-a-word"),
    pytest.param({"grad_output": "NaN"}, id="grad-output-nan"),
    pytest.param({"grad_output": True}, id="grad-output-a-boolean"),
    pytest.param({"temperature": 0, "z_loss": -1, "precision": "x"}, id="three-at-once"),
]


@pytest.mark.parametrize("options", WRONG_OPTIONS)
def test_a_wrong_parameter_is_refused_as_the_field_is(options: dict[str, Any], client: httpx.Client) -> None:
    of_field = post(client, {**EXAMPLE, **options})
    of_parameter = post_tensors(client, {**TENSORS, **options})
    expected = check_problem(of_field, of_field.status_code, of_field.json()["code"])
    problem = check_problem(of_parameter, of_field.status_code, expected["code"])
    assert pointers(problem) == pointers(expected) != []


@pytest.mark.parametrize(
    "query", ["reduction=sum&reduction=none", "reduction=sum&reduction=sum", "include=loss&include=losses"]
)
def test_a_parameter_given_twice_is_a_duplicate_field(query: str, client: httpx.Client) -> None:
    problem = check_problem(client.post(f"{PATH}?{query}", content=GOOD, headers=BINARY), 400, "duplicate_field")
    assert pointers(problem) == ["#/" + query.partition("=")[0]]


def test_grad_output_as_a_parameter_and_as_a_tensor_is_a_duplicate_field(client: httpx.Client) -> None:
    body = encode_tensors({**TENSORS, "grad_output": np.array(2.0)})
    problem = check_problem(send_tensors(client, body, {"grad_output": "2.0"}), 400, "duplicate_field")
    assert pointers(problem) == ["#/grad_output"]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_grad_output_as_a_parameter_is_the_tensor_of_rank_0(reduction: str, client: httpx.Client) -> None:
    fields = {**FIELDS, "reduction": reduction}
    as_parameter = post_tensors(client, {**fields, "grad_output": -1.7})
    assert as_parameter.content == post_tensors(client, {**fields, "grad_output": np.array(-1.7)}).content
    assert as_parameter.content != post_tensors(client, fields).content


SECRET = "correct-horse-battery-staple"


@pytest.mark.parametrize("name", ["reduction", "include", "temperature", "grad_output", "class_axis"])
def test_parameters_are_never_echoed(name: str, client: httpx.Client) -> None:
    response = send_tensors(client, GOOD, {name: SECRET * 100})
    check_problem(response, 422, "invalid_value")
    assert SECRET not in response.text


INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8]
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_labels_of_every_integer_dtype_are_class_indices(dtype: torch.dtype, client: httpx.Client) -> None:
    labels = np.where(INDEX == -100, 0, INDEX)
    expected = post_tensors(client, {**FIELDS, "labels": labels})
    assert expected.status_code == 200
    assert post_tensors(client, {**FIELDS, "labels": torch.as_tensor(labels).to(dtype)}).content == expected.content


@pytest.mark.parametrize("dtype", INTEGERS[:4], ids=str)
def test_signed_labels_of_every_size_can_be_ignored(dtype: torch.dtype, client: httpx.Client) -> None:
    answer = evaluate_tensors(client, {**FIELDS, "labels": torch.as_tensor(INDEX).to(dtype)})
    assert (answer["count"], answer["ignored"]) == (11, 1)


@pytest.mark.parametrize("value", [2**63, 2**64 - 1, 2**64 - 100])
def test_an_unsigned_label_beyond_63_bits_is_out_of_range_and_never_negative(value: int, client: httpx.Client) -> None:
    fields = {"logits": np.zeros((2, 3), np.float32), "labels": np.array([0, value], np.uint64)}
    assert pointers(check_problem(post_tensors(client, fields), 422, "label_out_of_range")) == ["#/labels/1"]


@pytest.mark.parametrize("labels", [*DTYPES, "I64", "U8"])
def test_labels_of_the_logits_shape_are_probabilities(labels: str, client: httpx.Client) -> None:
    soft = torch.as_tensor(SOFT).to(DTYPES[labels]) if labels in DTYPES else torch.as_tensor(SOFT.round())
    soft = soft.to({"I64": torch.int64, "U8": torch.uint8}.get(labels, soft.dtype))
    fields = {"logits": LOGITS, "labels": soft, "include": EVERYTHING}
    base64 = evaluate(client, {**fields, "encoding": "base64"}, arrays="base64")
    assert_same_answer(evaluate_tensors(client, fields), base64)


@pytest.mark.parametrize("logits", DTYPES)
@pytest.mark.parametrize("gradient_dtype", [None, *DTYPES])
def test_outputs_have_the_dtypes_of_the_contract(logits: str, gradient_dtype: str | None, client: httpx.Client) -> None:
    """Each output of one number a sample is float32, F64 for F64 logits, whatever the gradients are asked to be."""
    fields = {**FIELDS, "logits": torch.as_tensor(LOGITS).to(DTYPES[logits])}
    if gradient_dtype is not None:
        fields["gradient_dtype"] = gradient_dtype
    response = post_tensors(client, fields)
    header = read_header(response.content)
    del header["__metadata__"]
    own = "F64" if logits == "F64" else "F32"
    expected = dict.fromkeys([*PER_ROW, *PER_LOGIT], own) | {"predictions": "I64", "gradients": gradient_dtype or own}
    expected |= {"loss": "F64", "loss_sum": "F64", "normalizer": "F64", "count": "I64", "ignored": "I64"}
    assert {name: tensor["dtype"] for name, tensor in header.items()} == expected
    shapes = {key: [4, 3] for key in PER_ROW} | {key: [4, 7, 3] for key in PER_LOGIT}
    assert {name: tensor["shape"] for name, tensor in header.items()} == {**{key: [] for key in expected}, **shapes}
    base64 = evaluate(client, {**fields, "encoding": "base64"}, arrays="base64")
    assert_same_answer(read_answer(response), base64)


@pytest.mark.parametrize("precision", ["standard", "high"])
@pytest.mark.parametrize("logits", DTYPES)
def test_precision_changes_the_arithmetic_and_not_the_output(precision: str, logits: str, client: httpx.Client) -> None:
    fields = {**FIELDS, "logits": torch.as_tensor(LOGITS).to(DTYPES[logits]), "precision": precision}
    answer = evaluate_tensors(client, fields)
    expected = torch.float64 if logits == "F64" else torch.float32
    assert {answer[name].dtype for name in [*PER_ROW[:-1], *PER_LOGIT]} == {expected}


WRONG_DTYPES = [
    pytest.param({"logits": LOGITS.astype(np.int64)}, "#/logits/dtype", id="integer-logits"),
    pytest.param({"logits": LOGITS > 0}, "#/logits/dtype", id="boolean-logits"),
    pytest.param({"labels": INDEX > 0}, "#/labels/dtype", id="boolean-labels"),
    pytest.param({"labels": INDEX.astype(np.float32)}, "#/labels", id="float-indices"),
    pytest.param({"weight": np.ones(7, np.float16)}, "#/weight/dtype", id="half-weight"),
    pytest.param({"sample_weight": np.ones((4, 3), np.int64)}, "#/sample_weight/dtype", id="integer-sample-weight"),
    pytest.param({"grad_output": torch.ones((), dtype=torch.bfloat16)}, "#/grad_output/dtype", id="half-grad-output"),
]


@pytest.mark.parametrize(("changes", "pointer"), WRONG_DTYPES)
def test_a_dtype_that_does_not_fit_its_tensor_is_unsupported(
    changes: dict[str, Any], pointer: str, client: httpx.Client
) -> None:
    problem = check_problem(post_tensors(client, {**FIELDS, **changes}), 422, "unsupported_dtype")
    assert pointers(problem) == [pointer]


WRONG_ARRAYS = [
    pytest.param({"logits": ...}, id="no-logits"),
    pytest.param({"labels": ...}, id="no-labels"),
    pytest.param({"logits": ..., "labels": ...}, id="neither"),
    pytest.param({"labels": np.where(INDEX[0, 0] == INDEX, 7, INDEX)}, id="labels-out-of-range"),
    pytest.param({"labels": np.full((4, 3), 9)}, id="more-labels-out-of-range-than-are-listed"),
    pytest.param({"ignore_index": 2}, id="ignored-label-with-another-ignore-index"),
    pytest.param({"labels": INDEX.T.copy()}, id="labels-of-another-shape"),
    pytest.param({"labels": INDEX[:, 0].copy()}, id="labels-of-another-rank"),
    pytest.param({"logits": np.array(1, np.float32)}, id="logits-of-rank-0"),
    pytest.param({"logits": np.zeros((4, 0, 3), np.float32)}, id="no-classes"),
    pytest.param({"weight": np.ones(3)}, id="weight-of-another-shape"),
    pytest.param({"weight": np.array([1, 1, -1, 1, 1, np.nan, 1])}, id="weight-negative-and-nan"),
    pytest.param({"sample_weight": np.full((4, 3), np.inf)}, id="sample-weight-infinite"),
    pytest.param({"grad_output": np.ones((4, 3))}, id="grad-output-a-row-with-mean"),
    pytest.param({"grad_output": np.full((4, 3), np.nan), "reduction": "none"}, id="grad-output-nan"),
    pytest.param({"labels": SOFT, "ignore_index": 1}, id="ignored-probabilities"),
    pytest.param({"input": "probabilities"}, id="gradients-of-probabilities"),
    pytest.param({"input": "probabilities", "include": ["loss"]}, id="logits-that-are-no-probabilities"),
]


@pytest.mark.parametrize("changes", WRONG_ARRAYS)
def test_wrong_tensors_are_refused_as_tensor_objects_are(changes: dict[str, Any], client: httpx.Client) -> None:
    """Same status, code, words and places."""
    fields = {name: value for name, value in {**FIELDS, **changes}.items() if value is not ...}
    of_json = post(client, fields, arrays="base64")
    expected = check_problem(of_json, 422, of_json.json()["code"])
    problem = check_problem(post_tensors(client, fields), 422, expected["code"])
    for member in ("detail", "errors", "errors_omitted"):
        assert problem.get(member) == expected.get(member)


@pytest.mark.parametrize("name", EVERYTHING)
def test_one_output_brings_itself_and_the_totals(name: str, client: httpx.Client) -> None:
    alone = evaluate_tensors(client, {**FIELDS, "include": [name]})
    assert set(alone) == ALWAYS | {name}


@pytest.mark.parametrize("include", [["loss"], ["loss", "losses"], EVERYTHING])
def test_without_reduction_there_is_no_loss(include: list[str], client: httpx.Client) -> None:
    answer = evaluate_tensors(client, {**FIELDS, "include": include, "reduction": "none"})
    assert set(answer) == ALWAYS | {*include} - {"loss"}


WARNED: list[Any] = [
    pytest.param({}, [], id="nothing"),
    pytest.param(
        {"logits": np.where(LOGITS > 5, np.nan, LOGITS)}, ["nonfinite_logits", "nonfinite_loss"], id="nonfinite"
    ),
    pytest.param({"labels": np.full_like(INDEX, -100)}, ["all_ignored"], id="all-ignored"),
    pytest.param({"labels": 2 * SOFT}, ["labels_not_normalized"], id="labels-not-normalized"),
    pytest.param({"logits": SOFT}, ["logits_look_like_probabilities"], id="softmax-twice"),
]


@pytest.mark.parametrize(("changes", "codes"), WARNED)
def test_warnings_and_summary_are_json_in_the_metadata(
    changes: dict[str, Any], codes: list[str], client: httpx.Client
) -> None:
    fields = {**FIELDS, **changes}
    response = post_tensors(client, fields)
    metadata = read_header(response.content)["__metadata__"]
    answer = evaluate(client, fields, arrays="base64")
    assert set(metadata) == {"warnings", "summary"}
    assert all(isinstance(text, str) for text in metadata.values())
    assert json.loads(metadata["warnings"]) == answer["warnings"]
    assert [warning["code"] for warning in answer["warnings"]] == codes
    assert json.loads(metadata["summary"]) == answer["summary"]
    alone = read_header(post_tensors(client, {**fields, "include": ["losses"]}).content)["__metadata__"]
    assert set(alone) == {"warnings"}


def test_a_single_sample_has_tensors_of_rank_0(client: httpx.Client) -> None:
    fields = {"logits": LOGITS[0, :, 0], "labels": np.array(3), "include": EVERYTHING}
    answer = evaluate_tensors(client, fields)
    assert {name: tuple(answer[name].shape) for name in [*PER_ROW, *PER_LOGIT]} == {
        **dict.fromkeys(PER_ROW, ()),
        **dict.fromkeys(PER_LOGIT, (7,)),
    }
    batch = evaluate_tensors(client, {**fields, "logits": LOGITS[:1, :, 0], "labels": np.array([3])})
    assert all(bits(answer[name]) == bits(batch[name]) for name in [*PER_ROW, *PER_LOGIT])


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 2), (2, 3, 0), (0, 3, 0)])
@pytest.mark.parametrize("soft", [False, True], ids=["index", "probability"])
def test_an_empty_batch_has_an_empty_answer(shape: tuple[int, ...], soft: bool, client: httpx.Client) -> None:
    rows = shape[:1] + shape[2:]
    labels = np.zeros(shape, np.float32) if soft else np.zeros(rows, np.int64)
    fields = {"logits": np.zeros(shape, np.float32), "labels": labels, "include": EVERYTHING}
    answer = evaluate_tensors(client, fields)
    assert all(tuple(answer[name].shape) == rows for name in PER_ROW)
    assert all(tuple(answer[name].shape) == shape for name in PER_LOGIT)
    assert (answer["loss_sum"], answer["normalizer"], answer["count"], answer["ignored"]) == (0, 0, 0, 0)
    assert np.isnan(answer["loss"])
    assert [warning["code"] for warning in answer["warnings"]] == ["all_ignored"]
    in_json = post_tensors(client, fields, accept=JSON["content-type"]).json()
    assert in_json["losses"] == np.zeros(rows).tolist()
    assert in_json["gradients"] == np.zeros(shape).tolist()


def test_equal_requests_get_equal_bodies(client: httpx.Client) -> None:
    assert post_tensors(client, FIELDS).content == post_tensors(client, FIELDS).content
