"""How binary bodies come over HTTP: in pieces, hostile, too large; and that nobody else notices."""

import itertools
import json
import socket
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlencode

import httpx
import numpy as np
import pytest
import torch

from service.errors import ServiceError
from tests.api.test_raw_socket import head, read_response
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
    send,
    send_tensors,
    words,
)
from tests.conftest import StartServer
from tests.server import Server
from tests.unit.wire.test_safetensors_body import HOSTILE
from tests.wire import as_arrays, encode, encode_query, encode_tensors

SAFETENSORS, OCTETS = BINARY["content-type"], ALIAS["content-type"]
GENERATOR = np.random.default_rng(31)
TENSORS = as_arrays(EXAMPLE)
GOOD = encode_tensors(TENSORS)
FIELDS: dict[str, Any] = {
    "logits": GENERATOR.normal(size=(4, 7, 3)).astype(np.float32),
    "labels": GENERATOR.integers(0, 7, (4, 3)),
    "include": ["loss", "losses", "gradients"],
}


def in_chunks(body: bytes, size: int) -> Iterator[bytes]:
    return (body[start : start + size] for start in range(0, len(body), size))


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_a_chunked_body_is_read(size: int, client: httpx.Client) -> None:
    assert send_tensors(client, in_chunks(GOOD, size)).content == send_tensors(client, GOOD).content


LARGE: dict[str, Any] = {
    "logits": GENERATOR.normal(size=(700, 300)).astype(np.float32),
    "labels": GENERATOR.integers(0, 300, 700),
    "include": ["loss", "losses", "gradients", "predictions"],
}


@pytest.mark.parametrize("shift", range(8))
def test_tensors_at_any_address_give_the_same_answer(shift: int, client: httpx.Client) -> None:
    """Small bodies come whole and are read-only; large ones come in pieces and are written to."""
    for fields in (FIELDS, LARGE):
        body = encode_tensors(fields)
        start = 8 + int.from_bytes(body[:8], "little")
        shifted = (start - 8 + shift).to_bytes(8, "little") + body[8:start] + b" " * shift + body[start:]
        expected = send_tensors(client, body, encode_query(fields)).content
        assert send_tensors(client, shifted, encode_query(fields)).content == expected
        assert send_tensors(client, in_chunks(shifted, 50_000), encode_query(fields)).content == expected


@pytest.fixture
def connection(server: Server) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as opened:
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield opened


@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_a_body_that_comes_in_odd_pieces_is_put_together(
    framing: str, connection: socket.socket, client: httpx.Client
) -> None:
    """Between two pieces the server answers somebody else, so that it has seen the first one."""
    body = encode_tensors(LARGE)
    expected = send_tensors(client, body, encode_query(LARGE)).content
    line = f"Content-Length: {len(body)}" if framing == "length" else "Transfer-Encoding: chunked"
    path = f"{PATH}?{urlencode(encode_query(LARGE))}"
    cuts = [0, 1, 8, 9, 100, 101, 65_536, 65_539, 300_001, len(body) - 1, len(body)]
    pieces = [body[start:stop] for start, stop in itertools.pairwise(cuts)]
    if framing == "chunks":
        pieces = [b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces] + [b"0\r\n\r\n"]
    for piece in [head(line, path=path, content_type=SAFETENSORS), *pieces]:
        connection.sendall(piece)
        assert client.get("/livez").status_code == 200
    response = read_response(connection)
    assert response.content == expected


def test_refusals_come_before_the_body_is_sent(connection: socket.socket) -> None:
    connection.sendall(head(f"Content-Length: {2**40}", "Expect: 100-continue", content_type=SAFETENSORS))
    problem = check_problem(read_response(connection), 413, "limit_exceeded")
    assert (problem["limit_name"], problem["limit"], problem["actual"]) == ("MAX_BODY_BYTES", 2**28, 2**40)


def test_an_announced_body_that_ends_early_harms_nobody(server: Server, client: httpx.Client) -> None:
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as opened:
            opened.sendall(head(f"Content-Length: {2**28}", content_type=SAFETENSORS) + GOOD)
    assert_golden(send_tensors(client, GOOD))


@pytest.mark.parametrize(("body", "error", "at"), HOSTILE)
def test_a_hostile_body_is_a_problem_document_and_the_next_one_is_read(
    body: bytes,
    error: type[ServiceError],
    at: list[str],
    client: httpx.Client,
) -> None:
    response = send_tensors(client, body)
    problem = check_problem(response, response.status_code, error.code)
    assert response.status_code in {400, 422}
    assert pointers(problem) == at
    assert_golden(send_tensors(client, GOOD))


def test_wrong_bodies_leave_their_connection_and_their_neighbours_alone(server: Server) -> None:
    """Good and bad requests in turn on each of several connections, all sent before any answer is read."""
    good = (GOOD, {**BINARY, "accept": JSON["content-type"]})
    bad = [
        (GOOD[:-1], BINARY),
        (GOOD[:50], BINARY),
        (b"", BINARY),
        (GOOD, JSON),
        (encode(EXAMPLE), BINARY),
        (encode_tensors({**TENSORS, "labels": np.array([0, 1, 4])}), BINARY),
        (encode_tensors({**TENSORS, "labels": np.array([0, 1])}), BINARY),
        (GOOD + b"\0", ALIAS),
    ]
    connections = [HTTPConnection("127.0.0.1", server.port, timeout=20) for _ in range(8)]
    answers = set()
    for turn in range(6):
        for place, connection in enumerate(connections):
            body, headers = good if (turn + place) % 2 else bad[(turn // 2 + place) % len(bad)]
            connection.request("POST", PATH, body, headers)
        for place, connection in enumerate(connections):
            response = connection.getresponse()
            content = response.read()
            if (turn + place) % 2:
                assert response.status == 200
                answers.add(content)
            else:
                assert response.status in {400, 422}, content
                assert json.loads(content)["status"] == response.status
    for connection in connections:
        connection.close()
    assert len(answers) == 1


MAX_JSON_BYTES = 2004
MAX_BODY_BYTES = 4096
MOST_NUMBERS = MAX_JSON_BYTES // 8


@pytest.fixture(scope="module")
def small_server(start_server: StartServer) -> Iterator[Server]:
    limits = {"max_json_bytes": MAX_JSON_BYTES, "max_body_bytes": MAX_BODY_BYTES}
    with start_server(device="cpu", max_classes=300, max_elements=600, **limits) as running:
        yield running


@pytest.fixture(scope="module")
def small(small_server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=small_server.url, timeout=30) as client:
        yield client


def check_limit(response: httpx.Response, name: str, limit: int, actual: int) -> dict[str, Any]:
    problem = check_problem(response, 413, "limit_exceeded")
    assert (problem["limit_name"], problem["limit"], problem["actual"]) == (name, limit, actual)
    return problem


def test_a_json_body_that_is_too_large_is_pointed_to_the_binary_form(small: httpx.Client) -> None:
    problem = check_limit(send(small, encode(EXAMPLE).ljust(2005)), "MAX_JSON_BYTES", MAX_JSON_BYTES, 2005)
    assert SAFETENSORS in words(problem)
    assert str(MAX_BODY_BYTES) in words(problem)


def padded(size: int) -> bytes:
    """Worked example as a file of exactly so many bytes."""
    start = 8 + int.from_bytes(GOOD[:8], "little")
    missing = size - len(GOOD)
    return (start - 8 + missing).to_bytes(8, "little") + GOOD[8:start] + b" " * missing + GOOD[start:]


@pytest.mark.parametrize("content_type", [SAFETENSORS, OCTETS])
@pytest.mark.parametrize("size", [MAX_BODY_BYTES - 1, MAX_BODY_BYTES, MAX_BODY_BYTES + 1])
@pytest.mark.parametrize("chunk", [pytest.param(None, id="length"), 100, 4096, 4097])
def test_a_binary_body_may_be_as_long_as_the_limit_and_no_longer(
    chunk: int | None, size: int, content_type: str, small: httpx.Client
) -> None:
    """Beyond the limit of JSON in any case."""
    body = padded(size)
    content: Any = body if chunk is None else in_chunks(body, chunk)
    response = small.post(PATH, content=content, headers={"content-type": content_type})
    if size <= MAX_BODY_BYTES:
        assert_golden(response)
        return
    problem = check_problem(response, 413, "limit_exceeded")
    assert (problem["limit_name"], problem["limit"]) == ("MAX_BODY_BYTES", MAX_BODY_BYTES)
    assert problem["actual"] == size if chunk is None else problem["actual"] > MAX_BODY_BYTES


def request_of(rows: int, classes: int, include: list[str]) -> dict[str, Any]:
    """Request of few bytes a number."""
    logits = np.zeros((rows, classes), np.float16)
    return {"logits": logits, "labels": np.zeros(rows, np.uint8), "include": include}


ANSWERS = [
    pytest.param((125, 2), ["gradients"], id="gradients"),
    pytest.param((250, 1), ["losses"], id="losses"),
    pytest.param((250, 1), ["losses", "loss", "summary"], id="what-holds-no-array-does-not-count"),
    pytest.param((25, 4), ["gradients", "probabilities", "nll", "predictions", "loss"], id="several"),
    pytest.param((1, 125), ["gradients", "probabilities"], id="one-row"),
]


@pytest.mark.parametrize(("shape", "include"), ANSWERS)
def test_a_json_answer_holds_no_more_numbers_than_its_limit(
    shape: tuple[int, int], include: list[str], small: httpx.Client
) -> None:
    rows, classes = shape
    fields = request_of(rows, classes, include)
    at_limit = post_tensors(small, fields, accept=JSON["content-type"])
    assert at_limit.status_code == 200, at_limit.text
    binary = evaluate_tensors(small, fields)
    numbers = sum(value.numel() for value in binary.values() if isinstance(value, torch.Tensor))
    assert numbers == MOST_NUMBERS
    larger = request_of(rows + 1, classes, include) if rows > 1 else request_of(rows, classes + 1, include)
    tensors = evaluate_tensors(small, larger)
    actual = sum(value.numel() for value in tensors.values() if isinstance(value, torch.Tensor))
    assert actual > MOST_NUMBERS
    problem = check_limit(
        post_tensors(small, larger, accept=JSON["content-type"]), "MAX_JSON_BYTES", MOST_NUMBERS, actual
    )
    assert SAFETENSORS in words(problem)


def test_a_json_request_whose_json_answer_is_too_large_can_have_a_binary_one(small: httpx.Client) -> None:
    fields = {"logits": np.zeros((25, 10)).astype(int), "labels": [0] * 25, "include": ["gradients", "losses"]}
    check_limit(post(small, fields), "MAX_JSON_BYTES", MOST_NUMBERS, 275)
    check_limit(post(small, {**fields, "encoding": "base64"}), "MAX_JSON_BYTES", MOST_NUMBERS, 275)
    for accept in (SAFETENSORS, OCTETS):
        answer = read_answer(post(small, fields, accept=accept))
        assert (answer["gradients"].shape, answer["losses"].shape) == ((25, 10), (25,))
    assert len(evaluate(small, {**fields, "include": ["gradients"]})["gradients"]) == 25


def test_classes_and_elements_up_to_their_limits(small: httpx.Client) -> None:
    assert evaluate_tensors(small, request_of(2, 300, ["loss"]))["loss"] == pytest.approx(np.log(300))
    check_limit(post_tensors(small, request_of(1, 301, ["loss"])), "MAX_CLASSES", 300, 301)
    check_limit(post_tensors(small, request_of(3, 201, ["loss"])), "MAX_ELEMENTS", 600, 603)


def test_a_refused_size_leaves_the_server_usable(small: httpx.Client) -> None:
    for _ in range(3):
        check_limit(small.post(PATH, content=padded(5000), headers=BINARY), "MAX_BODY_BYTES", MAX_BODY_BYTES, 5000)
        assert_golden(send_tensors(small, GOOD))


def test_an_answer_that_nobody_reads_still_counts_as_memory_in_use(start_server: StartServer) -> None:
    """Else callers who ask and don't read take memory without a bound."""
    logits = np.zeros((4000, 1000), np.float32)
    body = encode_tensors({"logits": logits, "labels": np.zeros(4000, np.uint8)})
    with (
        start_server(device="cpu", max_inflight_bytes=3 * len(body)) as server,
        httpx.Client(base_url=server.url, timeout=30) as other,
        socket.socket() as slow,
    ):
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        slow.settimeout(20)
        slow.connect(("127.0.0.1", server.port))
        path = f"{PATH}?include=gradients"
        slow.sendall(head(f"Content-Length: {len(body)}", path=path, content_type=SAFETENSORS) + body)
        assert slow.recv(12, socket.MSG_PEEK) == b"HTTP/1.1 200"
        check_problem(send_tensors(other, GOOD), 503, "overloaded")
        assert read_answer(read_response(slow))["gradients"].shape == logits.shape
        response = send_tensors(other, GOOD)
        for _ in range(1000):  # until the server has noticed that the answer is gone
            if response.status_code == httpx.codes.OK:
                break
            response = send_tensors(other, GOOD)
        assert_golden(response)


def test_chunked_bodies_reserve_what_comes_and_not_the_largest_body_there_may_be(start_server: StartServer) -> None:
    body = GOOD
    with (
        start_server(device="cpu", max_inflight_bytes=10 * len(body)) as server,
        httpx.Client(base_url=server.url, timeout=30) as other,
        socket.create_connection(("127.0.0.1", server.port), timeout=20) as idle,
    ):
        idle.sendall(head("Transfer-Encoding: chunked", content_type=SAFETENSORS) + b"1\r\n\0\r\n")
        for _ in range(5):
            assert_golden(other.post(PATH, content=iter([body]), headers=BINARY))


def test_a_shape_that_is_an_object_is_no_shape(client: httpx.Client) -> None:
    header = b'{"logits":{"dtype":"F32","shape":{},"data_offsets":[0,4]}}'
    body = len(header).to_bytes(8, "little") + header + bytes(4)
    problem = check_problem(client.post(PATH, content=body, headers=BINARY), 422, "invalid_value")
    assert pointers(problem) == ["#/logits/shape"]


def test_a_plus_that_nobody_escaped_is_a_plus(client: httpx.Client) -> None:
    headers = {**BINARY, "Accept": "application/json"}
    answers = [
        client.post(f"{PATH}?temperature={text}", content=GOOD, headers=headers) for text in ("2", "2e+0", "2e%2B0")
    ]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert answers[0].content == answers[1].content == answers[2].content
    assert answers[0].json()["loss"] != client.post(PATH, content=GOOD, headers=headers).json()["loss"]
