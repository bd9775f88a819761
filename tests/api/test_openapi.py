"""The OpenAPI document: valid, complete, and its examples are what the service does."""

from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema_rs
import pytest
from schemathesis.specs.openapi import definitions

from tests.calls import EXAMPLE, PATH, post
from tests.wire import read_number

Document = dict[str, Any]
OPTIONS = {
    *("logits", "labels", "input", "weight", "sample_weight", "ignore_index", "label_smoothing", "temperature"),
    *("z_loss", "reduction", "grad_output", "class_axis", "include", "precision", "gradient_dtype", "encoding"),
    *("model", "version", "segment", "predicted_at", "monitor"),
}


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> Document:
    loaded: Document = client.get("/openapi.json").json()
    return loaded


@pytest.fixture(scope="module")
def operation(document: Document) -> Document:
    found: Document = document["paths"][PATH]["post"]
    return found


def resolve(document: Document, node: Document) -> Document:
    """Follow a reference into the same document."""
    while "$ref" in node:
        found: Any = document
        for step in node["$ref"].removeprefix("#/").split("/"):
            found = found[step.replace("~1", "/").replace("~0", "~")]
        node = found
    return node


def check_instance(document: Document, schema: Document, instance: object) -> None:
    """Validate against a schema that may refer to the document's components."""
    jsonschema_rs.validate({**schema, "components": document["components"]}, instance)


def named_examples(content: Document) -> dict[str, Any]:
    """Examples of a media type, written in either of OpenAPI's two forms."""
    examples = {name: example["value"] for name, example in content.get("examples", {}).items()}
    if "example" in content:
        examples["example"] = content["example"]
    return examples


def test_document_is_valid_openapi(document: Document) -> None:
    assert document["openapi"].startswith("3.1.")
    definitions.OPENAPI_31_VALIDATOR.validate(document)
    for schema in document["components"]["schemas"].values():
        jsonschema_rs.meta.validate(schema)


def test_document_holds_every_path_and_the_operation(document: Document, operation: Document) -> None:
    assert {PATH, "/v1/info", "/livez", "/readyz"} <= set(document["paths"])
    assert operation["operationId"] == "cross_entropy"
    schema = resolve(document, operation["requestBody"]["content"]["application/json"]["schema"])
    assert set(schema["properties"]) == OPTIONS
    assert set(schema["required"]) == {"logits", "labels"}
    assert schema["additionalProperties"] is False
    for name in OPTIONS:
        described = {**resolve(document, schema["properties"][name]), **schema["properties"][name]}
        assert described.get("description"), name


def test_binary_bodies_are_declared_behind_json_and_without_a_schema(operation: Document) -> None:
    for content in (operation["requestBody"]["content"], operation["responses"]["200"]["content"]):
        assert list(content) == ["application/json", "application/x-safetensors", "application/octet-stream"]
        assert content["application/x-safetensors"] == content["application/octet-stream"] == {}


def test_query_parameters_are_the_options_of_binary_requests(document: Document, operation: Document) -> None:
    parameters = {parameter["name"]: parameter for parameter in operation["parameters"]}
    assert set(parameters) == OPTIONS - {"logits", "labels", "weight", "sample_weight", "encoding"}
    fields = resolve(document, operation["requestBody"]["content"]["application/json"]["schema"])["properties"]
    for name, parameter in parameters.items():
        assert parameter["in"] == "query"
        assert not parameter.get("required"), name
        assert fields[name]["description"] in parameter["description"] or name == "grad_output"  # here a number only
        assert {"type": "null"} not in parameter["schema"].get("anyOf", ())
        assert parameter["schema"].get("default") == fields[name].get("default")


def test_operation_identifiers_are_unique(document: Document) -> None:
    found = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(set(found)) == len(found)


def declared_errors(document: Document) -> Iterator[tuple[str, str, Document]]:
    for path, methods in document["paths"].items():
        for method, described in methods.items():
            for status, response in described["responses"].items():
                if status[0] in "45":
                    yield f"{method} {path}", status, resolve(document, response)


def test_every_error_is_declared_as_a_problem(document: Document, operation: Document) -> None:
    for where, status, response in declared_errors(document):
        if where not in {"get /readyz", "get /livez"}:
            assert "application/problem+json" in response["content"], f"{where} {status}"
    assert {"400", "406", "408", "413", "415", "422", "500", "503", "504"} <= set(operation["responses"])


def test_declared_problems_have_valid_examples(document: Document) -> None:
    for where, status, response in declared_errors(document):
        content = response.get("content", {}).get("application/problem+json", {})
        for example in named_examples(content).values():
            check_instance(document, content["schema"], example)
            assert example["status"] == int(status), where


def test_request_examples_are_answered_as_the_response_examples_say(
    document: Document, operation: Document, client: httpx.Client, subtests: pytest.Subtests
) -> None:
    request = operation["requestBody"]["content"]["application/json"]
    response = resolve(document, operation["responses"]["200"])["content"]["application/json"]
    sent, promised = named_examples(request), named_examples(response)
    assert sent
    assert set(promised) <= set(sent)
    for name, body in sent.items():
        with subtests.test(name):
            check_instance(document, request["schema"], body)
            answer = post(client, body)
            assert answer.status_code == 200, answer.text
            check_instance(document, response["schema"], answer.json())
            if name in promised:
                check_instance(document, response["schema"], promised[name])
                assert_alike(answer.json(), promised[name])


def assert_alike(found: Any, promised: Any) -> None:  # noqa: ANN401  any JSON
    """Equal, up to the digits an example may have been shortened to."""
    if isinstance(promised, dict):
        assert set(found) == set(promised)
        for key, value in promised.items():
            assert_alike(found[key], value)
    elif isinstance(promised, list):
        assert len(found) == len(promised)
        for one, other in zip(found, promised, strict=True):
            assert_alike(one, other)
    elif isinstance(promised, float):
        assert read_number(found) == pytest.approx(promised, abs=1e-4)
    else:
        assert found == promised


ANSWERS = [
    pytest.param({}, id="defaults"),
    pytest.param({"include": ["losses", "gradients", "probabilities", "summary"]}, id="rows"),
    pytest.param({"include": ["losses", "gradients"], "encoding": "base64"}, id="base64"),
    pytest.param({"logits": [[0, "NaN"], [0, 1], [1, 0]], "labels": [0, -100, 1]}, id="non-finite-and-warned"),
    pytest.param({"logits": [0.5, 1.5], "labels": 0, "include": ["losses", "margin", "predictions"]}, id="one-sample"),
    pytest.param({"label_smoothing": None, "reduction": None, "include": None, "weight": None}, id="null-is-absent"),
    pytest.param({"labels": [-100] * 3, "include": ["loss", "summary"]}, id="nothing-counts"),
]


@pytest.mark.parametrize("fields", ANSWERS)
def test_answers_are_what_the_document_declares(
    fields: Document, document: Document, operation: Document, client: httpx.Client
) -> None:
    body = {**EXAMPLE, **fields}
    check_instance(document, operation["requestBody"]["content"]["application/json"]["schema"], body)
    answer = post(client, body)
    assert answer.status_code == 200, answer.text
    schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
    check_instance(document, schema, answer.json())
    assert set(answer.json()) <= set(resolve(document, schema)["properties"])


def test_refusals_are_what_the_document_declares(document: Document, operation: Document, client: httpx.Client) -> None:
    for fields, status in (({}, "422"), ({**EXAMPLE, "labels": [7] * 3}, "422"), ({**EXAMPLE, "x": 1}, "400")):
        response = resolve(document, operation["responses"][status])
        answer = post(client, fields)
        assert answer.status_code == int(status)
        check_instance(document, response["content"]["application/problem+json"]["schema"], answer.json())


def test_info_is_what_the_document_declares(document: Document, client: httpx.Client) -> None:
    content = document["paths"]["/v1/info"]["get"]["responses"]["200"]["content"]["application/json"]
    check_instance(document, content["schema"], client.get("/v1/info").json())
