"""Requests that once broke the service: each found by an attack, each refused or answered right since."""

import base64
import json
import time

import httpx
import numpy as np
import pytest

from tests.calls import check_problem
from tests.calls import send as post


def tensor(dtype: str, shape: list[int], data: bytes) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data": base64.b64encode(data).decode()}


@pytest.mark.parametrize(("dtype", "classes"), [("I8", 200), ("I16", 70_000)])
def test_a_negative_label_is_never_taken_for_a_class(dtype: str, classes: int, client: httpx.Client) -> None:
    """-100 in eight bits reads as 156 without a sign."""
    size = {"I8": "i1", "I16": "<i2"}[dtype]
    logits = tensor("F32", [1, classes], bytes(4 * classes))
    body = {"logits": logits, "labels": tensor(dtype, [1], np.array([-100], size).tobytes())}
    assert post(client, json.dumps(body)).json()["ignored"] == 1
    body["labels"] = tensor(dtype, [1], np.array([-99], size).tobytes())
    check_problem(post(client, json.dumps(body)), 422, "label_out_of_range")


NESTING = [
    pytest.param("[[1,2],[[3],[4]]]", "[0,0]", id="row-too-deep"),
    pytest.param("[[[1,2],[3,4]],[[1,2],[3,4]]]", "[[0,0],[[0],[0]]]", id="labels-too-deep"),
    pytest.param("[[1],[[2,3]]]", "[0,0]", id="list-for-a-number"),
    pytest.param("[[1],[[]]]", "[0,0]", id="empty-list-for-a-number"),
    pytest.param('[[1,2,"NaN"],"NaN"]', "[0,0]", id="string-as-long-as-a-row"),
    pytest.param("[0," + "[" * 1010 + '"x"' + "]" * 1010 + "]", "0", id="deep-string"),
    pytest.param("[[1]," + "[" * 1010 + "1" + "]" * 1010 + "]", "0", id="deep-number"),
]


@pytest.mark.parametrize(("logits", "labels"), NESTING)
def test_uneven_nesting_is_refused(logits: str, labels: str, client: httpx.Client) -> None:
    response = post(client, f'{{"logits":{logits},"labels":{labels}}}')
    problem = check_problem(response, response.status_code, "shape_mismatch", "invalid_value", "malformed_json")
    assert response.status_code in {400, 422}
    assert len(json.dumps(problem)) <= 4096


BROKEN_KEYS = [
    pytest.param(r'{"\ud800":1,"\ud800":2}', id="surrogate-twice"),
    pytest.param(r'{"\ud800":99999999999999999999999999}', id="surrogate-out-of-range"),
    pytest.param(r'{"logits":{"a\u0000b":1},"labels":[0]}', id="nul"),
    pytest.param('{"logits":' + "[" * 600 + "1e400" + "]" * 600 + ',"labels":0}', id="deep-out-of-range"),
]


@pytest.mark.parametrize("body", BROKEN_KEYS)
def test_what_python_or_simdjson_stumbles_over_is_a_problem_document(body: str, client: httpx.Client) -> None:
    response = post(client, body)
    assert response.status_code in {400, 422}, response.text[:500]
    assert response.headers["content-type"] == "application/problem+json"


def test_many_keys_take_time_in_proportion(client: httpx.Client) -> None:
    """A search through the keys before each made 20,000 of them take seconds."""
    keys = ",".join(f'"a{number}":1' for number in range(20_000))
    started = time.perf_counter()
    for body in (f'{{"logits":{{{keys},"a19999":1}},"labels":[0]}}', f'{{"x":{{{keys},"a1":1}},"y":1e400}}'):
        assert post(client, body).status_code == 400
    assert time.perf_counter() - started < 1.5, "quadratic, not slow"


@pytest.mark.parametrize("shape", [[0, 2**63], [0, 2**62, 16], [0, 2**20, 2**44], [10_000_000, 2, 0]])
def test_an_empty_tensor_can_not_claim_to_be_huge(shape: list[int], client: httpx.Client) -> None:
    body = {"logits": tensor("F32", shape, b""), "labels": tensor("I64", [0], b"")}
    check_problem(post(client, json.dumps(body)), 422, "invalid_value")


ROW = {"logits": [[0, 1], [2, 1]], "labels": [0, 1]}


@pytest.mark.parametrize(
    "factors",
    [
        pytest.param({"sample_weight": [1e-46, 1e-46]}, id="below-float32"),
        pytest.param({"sample_weight": [1e-41, 1e-41]}, id="subnormal"),
        pytest.param({"weight": [1e-30, 1e-30], "sample_weight": [1e-30, 1e-30]}, id="product-below-float32"),
        pytest.param({"weight": [1e30, 1e30], "sample_weight": [1e30, 1e30]}, id="product-above-float32"),
    ],
)
def test_a_mean_does_not_depend_on_the_scale_of_the_weights(factors: dict[str, object], client: httpx.Client) -> None:
    answer = post(client, json.dumps({**ROW, **factors, "include": ["loss", "gradients"]})).json()
    plain = post(client, json.dumps({**ROW, "include": ["loss", "gradients"]})).json()
    assert answer["loss"] == pytest.approx(plain["loss"], rel=1e-6)
    np.testing.assert_allclose(answer["gradients"], plain["gradients"], rtol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"sample_weight": [1e-300, 1e-300], "temperature": 1e-300}, id="scale"),
        pytest.param({"sample_weight": [1.7e308, 1.7e308]}, id="normalizer"),
    ],
)
def test_factors_beyond_float64_are_named(fields: dict[str, object], client: httpx.Client) -> None:
    body = {**ROW, **fields, "include": ["gradients"]}
    check_problem(post(client, json.dumps(body)), 422, "number_out_of_range")


def test_z_loss_squares_no_further_than_it_must(client: httpx.Client) -> None:
    answer = post(client, '{"logits":[[1e20,0]],"labels":[0],"z_loss":1e-12}').json()
    assert answer["loss"] == pytest.approx(1e28, rel=1e-6)


@pytest.mark.parametrize("labels", [[[0.0, 1.0]], [[1.0, 0.0]], [0], [1]])
@pytest.mark.parametrize("row", [["Infinity", 0], ["NaN", 0], ["-Infinity", "-Infinity"]])
def test_a_row_without_softmax_is_nan_throughout(row: list[object], labels: list[object], client: httpx.Client) -> None:
    include = ["losses", "gradients", "probabilities", "nll", "logsumexp", "entropy", "gradient_norm"]
    answer = post(client, json.dumps({"logits": [row], "labels": labels, "include": include})).json()
    for name in include:
        assert set(np.ravel(answer[name])) == {"NaN"}, name
    assert {warning["code"] for warning in answer["warnings"]} == {"nonfinite_logits", "nonfinite_loss"}


@pytest.mark.parametrize("axis", ["true", "1.0"])
def test_what_equals_an_axis_is_not_one(axis: str, client: httpx.Client) -> None:
    response = post(client, f'{{"logits":[[1,2]],"labels":[0],"class_axis":{axis}}}')
    assert check_problem(response, 422, "invalid_value")["errors"][0]["pointer"] == "#/class_axis"


def test_a_string_that_contains_the_name_of_a_number_is_only_a_string(client: httpx.Client) -> None:
    response = post(client, r'{"logits":[[1,"NaN"]],"labels":[0],"encoding":"\"NaN"}')
    check_problem(response, 422, "invalid_value")


def test_pointers_are_uri_fragments(client: httpx.Client) -> None:
    problem = check_problem(post(client, '{"logits":[[1]],"labels":[0],"a/b~c d":1}'), 400, "unknown_field")
    assert problem["errors"][0]["pointer"] == "#/a~1b~0c%20d"


def test_an_unknown_version_of_openmetrics_gets_text(client: httpx.Client) -> None:
    response = client.get("/metrics", headers={"accept": "application/openmetrics-text;version=abc"})
    assert response.status_code == 200
    assert "losseval_build_info" in response.text


def test_documentation_takes_no_ranges_and_names_its_methods(client: httpx.Client) -> None:
    response = client.get("/docs/swagger-ui.css", headers={"range": "bytes=5-1"})
    assert (response.status_code, len(response.content)) == (200, int(response.headers["content-length"]))
    refused = client.post("/docs/swagger-ui.css")
    check_problem(refused, 405, "method_not_allowed")
    assert refused.headers["allow"] == "GET, HEAD, OPTIONS"
