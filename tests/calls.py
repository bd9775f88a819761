"""Requests to the service and what every answer must look like."""

import re
from collections.abc import Mapping
from typing import Any

import httpx

from tests.wire import encode

PATH = "/v1/cross-entropy"
JSON = {"content-type": "application/json"}

# The worked example of the README.
EXAMPLE: dict[str, Any] = {
    "logits": [
        [0.3703, -0.1607, -0.7473, -2.2135],
        [0.6929, -0.2042, -0.7660, -0.3613],
        [-0.3363, 0.6417, 0.3103, 0.3132],
    ],
    "labels": [0, 1, 2],
}


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
