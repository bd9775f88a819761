"""Limits of size and time, on both sides of each boundary, on a server with small ones."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import pytest

from tests.api.test_raw_socket import head, read_response
from tests.calls import EXAMPLE, check_problem, evaluate, post, send
from tests.conftest import StartServer
from tests.server import Server
from tests.wire import encode

MAX_JSON_BYTES = 2000
MAX_CLASSES = 8
MAX_ELEMENTS = 64
INFLIGHT_BYTES = 20 * 4000
REQUEST_TIMEOUT_S = 2


@pytest.fixture(scope="module")
def small_server(start_server: StartServer) -> Iterator[Server]:
    limits = {
        "max_json_bytes": MAX_JSON_BYTES,
        "max_classes": MAX_CLASSES,
        "max_elements": MAX_ELEMENTS,
        "max_inflight_bytes": INFLIGHT_BYTES,
        "request_timeout": REQUEST_TIMEOUT_S,
    }
    with start_server(device="cpu", **limits) as running:
        yield running


@pytest.fixture(scope="module")
def small(small_server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=small_server.url, timeout=30) as client:
        yield client


def padded(size: int) -> bytes:
    """Worked example as a body of exactly so many bytes."""
    return encode(EXAMPLE).ljust(size)


def check_limit(response: httpx.Response, name: str, limit: int, actual: int | None) -> None:
    problem = check_problem(response, 413, "limit_exceeded")
    assert problem["limit_name"].lower() == name
    assert problem["limit"] == limit
    assert problem["actual"] > limit
    assert actual is None or problem["actual"] == actual


@pytest.mark.parametrize("chunked", [pytest.param(False, id="content-length"), pytest.param(True, id="chunked")])
def test_body_may_be_as_long_as_the_limit_and_no_longer(small: httpx.Client, *, chunked: bool) -> None:
    def deliver(body: bytes) -> httpx.Response:
        content: Any = iter([body[:1000], body[1000:]]) if chunked else body
        return small.post("/v1/cross-entropy", content=content, headers={"content-type": "application/json"})

    assert deliver(padded(MAX_JSON_BYTES)).json()["loss"] == pytest.approx(1.2130, abs=5e-5)
    actual = None if chunked else MAX_JSON_BYTES + 1
    check_limit(deliver(padded(MAX_JSON_BYTES + 1)), "max_json_bytes", MAX_JSON_BYTES, actual)


def test_body_that_lies_about_its_length_is_refused_before_it_is_sent(small_server: Server) -> None:
    with socket.create_connection(("127.0.0.1", small_server.port), timeout=10) as connection:
        connection.sendall(head(f"Content-Length: {2**40}"))
        check_limit(read_response(connection), "max_json_bytes", MAX_JSON_BYTES, 2**40)


def test_classes_up_to_the_limit(small: httpx.Client) -> None:
    row = evaluate(small, {"logits": [[0.0] * MAX_CLASSES], "labels": [0]})
    assert row["losses"] == pytest.approx([np.log(MAX_CLASSES)])
    response = post(small, {"logits": [[0.0] * (MAX_CLASSES + 1)], "labels": [0]})
    check_limit(response, "max_classes", MAX_CLASSES, MAX_CLASSES + 1)


@pytest.mark.parametrize("arrays", ["nested", "base64"])
def test_elements_up_to_the_limit(arrays: str, small: httpx.Client) -> None:
    def fields(rows: int) -> dict[str, Any]:
        return {"logits": np.zeros((rows, 4), np.float32), "labels": np.zeros(rows, np.int64)}

    answer = evaluate(small, fields(MAX_ELEMENTS // 4), arrays=arrays)
    assert answer["losses"] == pytest.approx([np.log(4)] * (MAX_ELEMENTS // 4))
    too_many = post(small, fields(MAX_ELEMENTS // 4 + 1), arrays=arrays)
    check_limit(too_many, "max_elements", MAX_ELEMENTS, MAX_ELEMENTS + 4)


def test_limits_in_force_are_told(small: httpx.Client) -> None:
    limits = {name.lower(): value for name, value in small.get("/v1/info").json()["limits"].items()}
    assert limits["max_json_bytes"] == MAX_JSON_BYTES
    assert limits["max_classes"] == MAX_CLASSES
    assert limits["max_elements"] == MAX_ELEMENTS


def test_body_that_does_not_come_is_a_request_timeout(small_server: Server) -> None:
    with socket.create_connection(("127.0.0.1", small_server.port), timeout=20) as connection:
        connection.sendall(head("Content-Length: 1000") + b"{")
        check_problem(read_response(connection), 408, "request_timeout")


@contextmanager
def hold_upload(server: Server, size: int) -> Iterator[None]:
    """Open an upload whose head the server accepts and whose body never comes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head(f"Content-Length: {size}", "Expect: 100-continue"))
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
        yield


def test_bytes_on_their_way_are_reserved_and_released(small_server: Server, small: httpx.Client) -> None:
    """Two uploads of 2,000 bytes fill 20 × 4,000; the third is refused until one has gone."""
    size = MAX_JSON_BYTES
    with hold_upload(small_server, size), hold_upload(small_server, size):
        response = send(small, padded(1000))
        check_problem(response, 503, "overloaded")
        assert int(response.headers["retry-after"]) >= 1
        assert small.get("/readyz").status_code == 200
    response = send(small, padded(size))
    for _ in range(1000):  # until the server has noticed that both have gone
        if response.status_code == httpx.codes.OK:
            break
        response = send(small, padded(size))
    assert response.json()["loss"] == pytest.approx(1.2130, abs=5e-5)


def test_other_media_types_still_come_first(small: httpx.Client) -> None:
    response = small.post("/v1/cross-entropy", content=b"x" * 10_000, headers={"content-type": "text/plain"})
    check_problem(response, 415, "unsupported_media_type")
