"""Requests to the service and what every answer must look like."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import httpx

from tests.wire import encode, encode_query, encode_tensors, read_header, read_tensors

TOTALS = {"loss", "loss_sum", "normalizer", "count", "ignored"}
PATH = "/v1/cross-entropy"
JSON = {"content-type": "application/json"}
BINARY = {"content-type": "application/x-safetensors"}
ALIAS = {"content-type": "application/octet-stream"}

# The worked example of the README.
EXAMPLE: dict[str, Any] = {
    "logits": [
        [0.3703, -0.1607, -0.7473, -2.2135],
        [0.6929, -0.2042, -0.7660, -0.3613],
        [-0.3363, 0.6417, 0.3103, 0.3132],
    ],
    "labels": [0, 1, 2],
}
GOLDEN_LOSS = 1.2130


def send(client: httpx.Client, content: bytes | str, **headers: str) -> httpx.Response:
    """Post bytes as JSON; underscores in header names become hyphens."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post(PATH, content=content, headers={**JSON, **given})


def post(client: httpx.Client, fields: Mapping[str, Any], *, arrays: str = "nested", **headers: str) -> httpx.Response:
    """Post fields, arrays among them as nested lists or tensor objects."""
    return send(client, encode(fields, arrays=arrays), **headers)


def evaluate(client: httpx.Client, fields: Mapping[str, Any], *, arrays: str = "nested") -> dict[str, Any]:
    """Post fields that must be accepted, and return the answer."""
    response = post(client, fields, arrays=arrays)
    assert response.status_code == httpx.codes.OK, response.text
    assert response.headers["content-type"] == "application/json"
    answer: dict[str, Any] = response.json()
    return answer


def send_tensors(
    client: httpx.Client,
    content: bytes | Iterable[bytes],
    params: Mapping[str, Any] | None = None,
    **headers: str,
) -> httpx.Response:
    """Post bytes, or an iterator of them, as safetensors; underscores in header names become hyphens."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post(PATH, content=content, params=params, headers={**BINARY, **given})


def post_tensors(client: httpx.Client, fields: Mapping[str, Any], **headers: str) -> httpx.Response:
    """Post fields, arrays among them as tensors and the others as query parameters."""
    return send_tensors(client, encode_tensors(fields), encode_query(fields), **headers)


def evaluate_tensors(client: httpx.Client, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Post fields that must be accepted, and return the answer as JSON would have it, but tensors as tensors."""
    response = post_tensors(client, fields)
    assert response.status_code == httpx.codes.OK, response.text
    return read_answer(response)


def read_answer(response: httpx.Response) -> dict[str, Any]:
    """Read a binary answer: tensors of rank 0 that are always numbers as numbers, what JSON says in words parsed."""
    assert response.headers["content-type"] in {BINARY["content-type"], ALIAS["content-type"]}
    metadata = read_header(response.content)["__metadata__"]
    answer: dict[str, Any] = dict(read_tensors(response.content))
    for name in TOTALS.intersection(answer):
        answer[name] = answer[name].item()
    return {**answer, **{name: json.loads(text) for name, text in metadata.items()}}


def assert_golden(response: httpx.Response) -> None:
    """The worked example, in either form."""
    assert response.status_code == httpx.codes.OK, response.text
    is_json = response.headers["content-type"] == JSON["content-type"]
    loss = (response.json() if is_json else read_answer(response))["loss"]
    assert abs(loss - GOLDEN_LOSS) < 5e-5


def check_problem(response: httpx.Response, status: int, *codes: str) -> dict[str, Any]:
    """Check what holds for every problem document and return it."""
    assert response.status_code == status, response.text[:1000]
    assert response.headers["content-type"] == "application/problem+json"
    assert len(response.content) <= 4096
    document: dict[str, Any] = response.json()
    assert document["status"] == status
    assert document["code"] in codes, document
    assert document["type"] == "/problems/" + document["code"].replace("_", "-")
    assert re.fullmatch(r"urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", document["instance"])
    assert document["request_id"] == response.headers["x-request-id"]
    assert document["title"]
    assert document["detail"]
    assert len(document.get("errors", [])) <= 10
    for error in document.get("errors", []):
        assert error["pointer"].startswith("#")
        assert error["detail"]
    return document


def refuse(client: httpx.Client, fields: Mapping[str, Any], status: int, *codes: str) -> dict[str, Any]:
    """Post fields that must be refused, and return the problem."""
    return check_problem(post(client, fields), status, *codes)


def pointers(problem: Mapping[str, Any]) -> list[str]:
    """Where the problem lies."""
    return [error["pointer"] for error in problem.get("errors", [])]


def words(problem: Mapping[str, Any]) -> str:
    """Return everything the problem tells a reader, in one string."""
    return " ".join([problem["detail"], *(error["detail"] for error in problem.get("errors", []))])
