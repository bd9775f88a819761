"""Both clients against a server that stalls, resets, cuts short, and answers with what is not an answer."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
import scripted
from scripted import Server

from losseval import AsyncClient, Client, errors
from losseval.exchange import RetryBudget

LOGITS, LABELS = np.zeros((2, 3), np.float32), np.zeros(2, np.int64)
LARGE = np.zeros((2048, 1024), np.float32), np.zeros(2048, np.int64)
Perform = Callable[..., list[Any]]


@pytest.fixture(params=["sync", "httpcore", "async"])
def perform(request: pytest.FixtureRequest) -> Perform:
    """Makes calls one after the other on one client that doesn't really wait; returns results and errors."""

    def perform_sync(url: str, *batches: Any, waits: list[float] | None = None, **options: Any) -> list[Any]:
        transport = httpx.HTTPTransport() if request.param == "httpcore" else None
        with Client(url, transport=transport, **options) as client:
            vars(client)["_sleep"] = ([] if waits is None else waits).append
            return [_outcome_of(client, batch) for batch in batches]

    async def perform_async(url: str, *batches: Any, waits: list[float] | None = None, **options: Any) -> list[Any]:
        async def sleep(seconds: float) -> None:
            if waits is not None:
                waits.append(seconds)

        async with AsyncClient(url, **options) as client:
            vars(client)["_sleep"] = sleep
            return [await _outcome_of_async(client, batch) for batch in batches]

    def run_async(url: str, *batches: Any, **options: Any) -> list[Any]:
        return asyncio.run(perform_async(url, *batches, **options))

    return run_async if request.param == "async" else perform_sync


def _outcome_of(client: Client, batch: Any) -> Any:
    try:
        return client.cross_entropy(*batch)
    except errors.LossevalError as error:
        return error


async def _outcome_of_async(client: AsyncClient, batch: Any) -> Any:
    try:
        return await client.cross_entropy(*batch)
    except errors.LossevalError as error:
        return error


SMALL = (LOGITS, LABELS)


def test_connections_are_kept(perform: Perform) -> None:
    with Server() as server:
        results = perform(server.url, SMALL, SMALL, SMALL)
    assert [result.loss for result in results] == [0.5] * 3
    assert server.connections == 1


@pytest.mark.parametrize("fault", [scripted.hang_up, scripted.reset, scripted.truncate])
def test_a_lost_connection_is_tried_again(perform: Perform, fault: scripted.Step) -> None:
    with Server(fault, fault) as server:
        (result,) = perform(server.url, SMALL)
    assert (result.loss, result.meta.attempts, server.connections) == (0.5, 3, 3)


_JSON = (
    b'{"loss": 0.5, "loss_sum": 1, "normalizer": 2, "count": 2, "ignored": 0, "losses": [0.25, 0.75], "warnings": []}'
)
_JSON_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
_CHUNKS = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (_JSON[:20], _JSON[20:], b""))


@pytest.mark.parametrize(
    "whole",
    [
        pytest.param(_JSON_HEAD + b"content-length: %d\r\n\r\n" % len(_JSON) + _JSON, id="sized"),
        # The answer is there when the size of the last chunk is.
        pytest.param(_JSON_HEAD + b"transfer-encoding: chunked\r\n\r\n" + _CHUNKS[:-4], id="chunked"),
        pytest.param(
            scripted.message(422, b'{"code": "invalid_value"}', content_type="application/json"), id="refusal"
        ),
    ],
)
def test_an_answer_cut_anywhere_is_tried_again(perform: Perform, whole: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every byte of the head and the body; neither a part is taken for the whole, nor is it the call's error."""
    monkeypatch.setattr(RetryBudget, "withdraw", lambda _: True)
    good = scripted.answer(connection="close")  # so that no connection can have gone stale
    steps = [step for count in range(len(whole)) for step in (scripted.cut(whole, count), good)]
    with Server(*steps) as server:
        outcomes = perform(server.url, *[SMALL] * len(whole))
    found = [
        outcome if isinstance(outcome, Exception) else (outcome.loss, outcome.meta.attempts) for outcome in outcomes
    ]
    assert dict(enumerate(found)) == dict.fromkeys(range(len(whole)), (0.5, 2))
    assert server.connections == 2 * len(whole)


def test_an_answer_without_a_length_is_tried_again(perform: Perform) -> None:
    """The service always sends one: without it nobody can tell that the rest is missing."""
    unsized = scripted.cut(_JSON_HEAD + b"\r\n" + _JSON, 999)
    with Server(unsized, unsized) as server:
        results = perform(server.url, SMALL)
    assert [result.meta.attempts for result in results] == [3]


def test_an_answer_longer_than_its_length_is_no_answer(perform: Perform) -> None:
    """What is left over is never read as the next call's answer."""
    longer = scripted.answer(content_length=str(len(scripted.ANSWER) - 4))
    with Server(longer) as server:
        first, second = perform(server.url, SMALL, SMALL)
    assert isinstance(first, errors.APIResponseError) or first.meta.attempts == 2
    assert second.loss == 0.5


@pytest.mark.parametrize("fault", [scripted.hang_up, scripted.reset, scripted.truncate])
def test_three_attempts_are_all(perform: Perform, fault: scripted.Step) -> None:
    with Server(fault, fault, fault) as server:
        (error,) = perform(server.url, SMALL)
    assert type(error) is errors.APIConnectionError
    assert len(server.exchanges) == 3
    assert error.request_id == server.exchanges[0].header("x-request-id")


@pytest.mark.parametrize("fault", [scripted.hang_up, scripted.reset])
def test_a_connection_that_went_stale_is_replaced_for_free(perform: Perform, fault: scripted.Step) -> None:
    """The server closes an idle connection just as the next request comes."""
    waits: list[float] = []
    with Server(scripted.answer(), fault) as server:
        results = perform(server.url, SMALL, SMALL, waits=waits, max_attempts=1)
    assert [result.meta.attempts for result in results] == [1, 1]
    assert (server.connections, waits) == (2, [])


def test_a_connection_closed_while_idle_is_replaced(perform: Perform) -> None:
    def answer_and_close(exchange: scripted.Exchange) -> bool:
        return not scripted.answer()(exchange)

    with Server(answer_and_close) as server:
        results = perform(server.url, SMALL, SMALL, max_attempts=1)
    assert [result.loss for result in results] == [0.5, 0.5]
    assert server.connections == 2


def test_an_announced_close_is_heeded(perform: Perform) -> None:
    with Server(scripted.answer(connection="close")) as server:
        results = perform(server.url, SMALL, SMALL, max_attempts=1)
    assert [result.meta.attempts for result in results] == [1, 1]
    assert server.connections == 2


def test_retry_after_is_honoured(perform: Perform) -> None:
    waits: list[float] = []
    with Server(scripted.problem(503, "overloaded", retry_after="2")) as server:
        (result,) = perform(server.url, SMALL, waits=waits)
    assert result.meta.attempts == 2
    assert len(waits) == 1
    assert 2 <= waits[0] <= 2.25
    ids = {exchange.header("x-request-id") for exchange in server.exchanges}
    assert len(ids) == 1


def test_html_of_a_proxy_is_survived(perform: Perform) -> None:
    html = b"<html><h1>502 Bad Gateway</h1></html>"
    page = scripted.answer(status=502, body=html, content_type="text/html")
    with Server(page, page, page) as server:
        (error,) = perform(server.url, SMALL)
    assert type(error) is errors.APIStatusError
    assert (error.status_code, error.code, error.problem["detail"]) == (502, "", html.decode())


def test_html_with_status_200_is_not_an_answer(perform: Perform) -> None:
    page = scripted.answer(body=b"<html>Please log in</html>", content_type="text/html; charset=utf-8")
    with Server(page) as server:
        (error,) = perform(server.url, SMALL)
    assert type(error) is errors.APIResponseError
    assert "text/html" in str(error)
    assert len(server.exchanges) == 1


def test_a_chunked_answer_is_read(perform: Perform) -> None:
    def step(exchange: scripted.Exchange) -> bool:
        exchange.read_body()
        head = "HTTP/1.1 200 OK\r\ncontent-type: application/x-safetensors\r\ntransfer-encoding: chunked\r\n\r\n"
        middle = len(scripted.ANSWER) // 2
        halves = (scripted.ANSWER[:middle], scripted.ANSWER[middle:])
        body = b"".join(b"%x\r\n%b\r\n" % (len(half), half) for half in halves)
        exchange.sock.sendall(head.encode() + body + b"0\r\n\r\n")
        return True

    with Server(step, step) as server:
        results = perform(server.url, SMALL, SMALL)
    np.testing.assert_array_equal(results[1].losses, np.array([0.25, 0.75], np.float32))
    assert server.connections == 1


def test_a_refusal_in_the_middle_of_a_large_body_arrives(perform: Perform) -> None:
    with Server(scripted.refuse_early) as server:
        (error,) = perform(server.url, LARGE)
    assert type(error) is errors.LimitExceededError
    assert len(server.exchanges) == 1


def test_a_large_body_arrives_whole_and_once_for_each_attempt(perform: Perform) -> None:
    lengths: list[int] = []

    def step(exchange: scripted.Exchange) -> bool:
        lengths.append(exchange.read_body())
        return False

    with Server(step, step, step) as server:
        perform(server.url, LARGE)
    assert len(lengths) == 3
    assert all(length > LARGE[0].nbytes + LARGE[1].nbytes for length in lengths)


@pytest.mark.parametrize("chunk", [b"", b"x"], ids=["stalled", "dripping"])
def test_the_time_budget_is_kept(perform: Perform, chunk: bytes) -> None:
    started = time.monotonic()
    with Server(scripted.until_closed(chunk)) as server:
        (error,) = perform(server.url, SMALL, timeout=0.3)
        took_s = time.monotonic() - started
    assert type(error) is errors.APITimeoutError
    assert 0.3 <= took_s < 0.9
    assert 0.2 < float(server.exchanges[0].header("x-request-timeout")) <= 0.3


_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-safetensors\r\n"


# Not httpcore without asyncio: it looks the time for all headers up once.
@pytest.mark.parametrize("perform", ["sync", "async"], indirect=True)
@pytest.mark.parametrize(
    ("head", "drop"),
    [
        (_HEAD + b"transfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (_HEAD, b"x"),
        (b"HTTP/1.1 2", b"0"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["chunked", "headers", "status", "continue"],
)
def test_the_time_budget_is_kept_whatever_drips(perform: Perform, head: bytes, drop: bytes) -> None:
    def step(exchange: scripted.Exchange) -> bool:
        exchange.read_body()
        exchange.sock.sendall(head)
        for _ in range(100):
            exchange.sock.sendall(drop)
            time.sleep(0.02)
        return False

    started = time.monotonic()
    with Server(step) as server:
        (error,) = perform(server.url, SMALL, timeout=0.3)
        took_s = time.monotonic() - started
    assert type(error) is errors.APITimeoutError
    assert 0.3 <= took_s < 0.9


@pytest.mark.parametrize("length", [4 * 10**10, 10**15, 10**30])
def test_a_length_that_is_a_lie_is_a_connection_error(perform: Perform, length: int) -> None:
    def step(exchange: scripted.Exchange) -> bool:
        exchange.read_body()
        exchange.sock.sendall(scripted.message(200, b"x", content_length=str(length)))
        return False

    with Server(step) as server:
        (error,) = perform(server.url, SMALL, max_attempts=1)
    assert type(error) is errors.APIConnectionError


@pytest.mark.parametrize("perform", ["sync"], indirect=True)
def test_a_chunk_size_that_is_a_lie_is_a_connection_error(perform: Perform) -> None:
    def step(exchange: scripted.Exchange) -> bool:
        exchange.read_body()
        exchange.sock.sendall(_HEAD + b"transfer-encoding: chunked\r\n\r\n38d7ea4c68000\r\nx")
        return False

    with Server(step) as server:
        (error,) = perform(server.url, SMALL, max_attempts=1)
    assert type(error) is errors.APIConnectionError


def test_a_buffer_that_grows_holds_the_same(perform: Perform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("losseval.transport._STEP_BYTES", 7)
    with Server() as server:
        (result,) = perform(server.url, SMALL)
    np.testing.assert_array_equal(result.losses, np.array([0.25, 0.75], np.float32))


def test_the_time_budget_is_kept_by_a_server_that_does_not_read(perform: Perform) -> None:
    def step(exchange: scripted.Exchange) -> bool:
        released.wait(5)
        return False

    released = threading.Event()
    started = time.monotonic()
    with Server(step) as server:
        logits = np.zeros((64, 1 << 18), np.float32)  # more than the sockets' buffers hold
        (error,) = perform(server.url, (logits, np.zeros(64, np.int64)), timeout=0.3)
        took_s = time.monotonic() - started
        released.set()
    assert type(error) is errors.APITimeoutError
    assert took_s < 1.5


def test_nobody_there_is_a_connection_error(perform: Perform) -> None:
    with Server() as server:
        url = server.url
    waits: list[float] = []
    (error,) = perform(url, SMALL, waits=waits)
    assert type(error) is errors.APIConnectionError
    assert len(waits) == 2


def test_the_key_goes_as_a_bearer_token(perform: Perform, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    with Server(scripted.problem(401, "authentication_required")) as server:
        (error,) = perform(server.url, SMALL, api_key="k-123")
    assert type(error) is errors.AuthenticationError
    assert server.exchanges[0].header("authorization") == "Bearer k-123"
    assert server.exchanges[0].header("user-agent").startswith("losseval-python/")
    assert "k-123" not in caplog.text + str(error)


def test_defaults_are_not_sent_and_everything_else_is() -> None:
    with Server() as server, Client(server.url) as client:
        client.cross_entropy(*SMALL, temperature=1.0, reduction="mean", include=("loss", "losses"), ignore_index=-100)
        client.cross_entropy(*SMALL, temperature=np.float64(0.5), include=["loss"], reduction="sum", class_axis=-1)
    first, second = (exchange.head.split(" ")[1] for exchange in server.exchanges)
    assert first == "/v1/cross-entropy"
    assert second == "/v1/cross-entropy?temperature=0.5&reduction=sum&class_axis=-1&include=loss"
