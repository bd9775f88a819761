"""What an exchange does with each outcome, without I/O: clock, chance and outcomes are given."""

import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from losseval import errors
from losseval.exchange import Attempt, Call, Config, Reply, RetryBudget, exchange, wait_s

CONFIG = Config("http://host:8000/", "secret", timeout=60.0, max_attempts=3, wire="binary")
OK = Reply(200, {"x-request-id": "r"}, bytearray(b"fine"))
REFUSED = httpx.ConnectError("refused")


def refusal(status: int, **headers: str) -> Reply:
    return Reply(status, {name.replace("_", "-"): value for name, value in headers.items()}, bytearray(b"{}"))


class Run:
    """Performs an exchange: each attempt gets the next outcome; waiting moves the clock."""

    def __init__(self, *outcomes: Any, config: Config = CONFIG, call: Call[Any] | None = None, **given: Any) -> None:
        self.now = 100.0
        self.attempts: list[Attempt] = []
        self.waits: list[float] = []
        self.is_reused = given.get("is_reused", [])
        self.budget = given.get("budget") or RetryBudget()
        self._duration = given.get("duration", 0.0)
        self._outcomes: Iterator[Any] = iter(outcomes)
        self._call = call or Call(
            "POST", "/path?a=1", lambda reply, meta: (bytes(reply.body), meta), parts=(b"12", b"3")
        )
        self._config = config

    def perform(self) -> Any:
        steps = exchange(self._call, self._config, self.budget, clock=lambda: self.now, chance=lambda: 0.5)
        step = next(steps)
        try:
            while True:
                step = self._answer(steps, step)
        except StopIteration as end:
            return end.value

    def _answer(self, steps: Any, step: Attempt | float) -> Any:
        if isinstance(step, float):
            self.waits.append(step)
            self.now += step
            return next(steps)
        if len(self.attempts) not in self.is_reused:
            step.timeouts["connect"]  # what httpcore does to open a connection
        self.attempts.append(step)
        self.now += self._duration
        return steps.send(next(self._outcomes))


def test_an_answer_is_read_with_what_is_known_about_it() -> None:
    run = Run(Reply(200, {"x-service-version": "1.2", "server-timing": "decode;dur=1.5"}, bytearray(b"x")))
    body, meta = run.perform()
    assert body == b"x"
    assert (meta.service_version, meta.timings, meta.attempts) == ("1.2", {"decode": 1.5}, 1)
    assert meta.request_id == run.attempts[0].headers["X-Request-Id"]
    assert len(meta.request_id) == 32


def test_an_attempt_says_all_the_server_must_know() -> None:
    call: Call[Any] = Call("POST", "/v1/x?a=1", lambda *_: None, media_type="a/b", parts=(b"12", b"3"), request_id="me")
    run = Run(OK, call=call)
    run.perform()
    (attempt,) = run.attempts
    assert (attempt.method, attempt.url) == ("POST", "http://host:8000/v1/x?a=1")
    assert attempt.headers == {
        "X-Request-Id": "me",
        "X-Request-Timeout": "60.000",
        "Content-Type": "a/b",
        "Content-Length": "3",
        "Authorization": "Bearer secret",
    }


@pytest.mark.parametrize("outcome", [REFUSED, *(refusal(status) for status in (429, 502, 503, 504))], ids=str)
def test_what_may_pass_is_tried_again(outcome: Any) -> None:
    run = Run(outcome, outcome, OK)
    assert run.perform()[1].attempts == 3
    assert run.waits == [0.125, 0.25]


@pytest.mark.parametrize("status", [301, 400, 401, 404, 405, 406, 408, 413, 415, 422, 431, 500, 501])
def test_what_stays_is_not_tried_again(status: int) -> None:
    run = Run(refusal(status))
    with pytest.raises(errors.APIStatusError) as caught:
        run.perform()
    assert caught.value.status_code == status
    assert len(run.attempts) == 1


def test_the_last_of_three_attempts_is_what_is_raised() -> None:
    run = Run(REFUSED, refusal(502), refusal(503, x_request_id="theirs"))
    with pytest.raises(errors.ServiceUnavailableError) as caught:
        run.perform()
    assert caught.value.request_id == "theirs"
    assert len(run.attempts) == 3
    assert len({attempt.headers["X-Request-Id"] for attempt in run.attempts}) == 1


def test_retry_after_is_waited_out_and_the_server_is_told_what_is_left() -> None:
    run = Run(refusal(503, retry_after="7"), OK)
    run.perform()
    assert run.waits == [7.125]
    assert [attempt.headers["X-Request-Timeout"] for attempt in run.attempts] == ["60.000", "52.875"]


@pytest.mark.parametrize(("seconds", "attempts"), [("59", 2), ("60", 1)])
def test_retry_after_beyond_the_time_budget_is_not_waited_for(seconds: str, attempts: int) -> None:
    run = Run(refusal(503, retry_after=seconds), refusal(503, retry_after=seconds))
    with pytest.raises(errors.ServiceUnavailableError):
        run.perform()
    assert len(run.attempts) == attempts
    assert run.now <= 160


def test_a_timeout_is_an_error_of_its_own() -> None:
    run = Run(httpx.ReadTimeout("slow"), duration=60.0)
    with pytest.raises(errors.APITimeoutError, match="ReadTimeout: slow"):
        run.perform()
    assert len(run.attempts) == 1


def test_connecting_may_take_five_seconds_and_everything_else_what_is_left() -> None:
    run = Run(httpx.ConnectTimeout("nobody"), OK, duration=5.0)
    run.perform()
    timeouts = run.attempts[1].timeouts
    assert (timeouts["connect"], timeouts["read"], timeouts.get("write")) == (5, 60 - 5.125 - 5, 60 - 5.125 - 5)
    run.now = 1000
    assert timeouts["read"] == 0.001
    with pytest.raises(TimeoutError):
        timeouts.check()


def test_a_stale_connection_costs_one_attempt_nothing() -> None:
    """Neither an attempt, nor a wait, nor a retry out of the budget."""
    budget = RetryBudget(reserve=0.0)
    run = Run(httpx.RemoteProtocolError("disconnected"), OK, is_reused=[0], budget=budget)
    assert run.perform()[1].attempts == 1
    assert run.waits == []
    assert len(run.attempts) == 2


def test_a_second_stale_connection_counts() -> None:
    run = Run(*[httpx.ReadError("reset")] * 4, is_reused=[0, 1, 2, 3])
    with pytest.raises(errors.APIConnectionError):
        run.perform()
    assert len(run.attempts) == 4


@pytest.mark.parametrize("error", [httpx.ReadError("reset"), httpx.RemoteProtocolError("gone"), REFUSED])
def test_a_fresh_connection_is_never_stale(error: Exception) -> None:
    run = Run(error, error, error)
    with pytest.raises(errors.APIConnectionError):
        run.perform()
    assert len(run.attempts) == 3


@pytest.mark.parametrize("error", [httpx.UnsupportedProtocol("ftp"), httpx.InvalidURL("bad")])
def test_what_cannot_get_better_is_not_tried_again(error: Exception) -> None:
    run = Run(error)
    with pytest.raises(errors.APIConnectionError):
        run.perform()
    assert run.waits == []


def test_the_budget_stops_retries_when_everything_fails() -> None:
    budget = RetryBudget()
    attempts = 0
    for _ in range(200):
        run = Run(refusal(503), refusal(503), refusal(503), budget=budget)
        with pytest.raises(errors.ServiceUnavailableError):
            run.perform()
        attempts += len(run.attempts)
    assert 200 + 10 + 15 <= attempts <= 200 + 10 + 20


def test_the_reserve_does_not_grow_beyond_ten() -> None:
    budget = RetryBudget()
    for _ in range(1000):
        budget.deposit()
    assert [budget.withdraw() for _ in range(11)] == [True] * 10 + [False]


def test_patience_is_bounded_by_time_alone() -> None:
    config = Config("http://host", None, timeout=60.0, max_attempts=1, wire="binary", is_patient=True)
    run = Run(*[refusal(503, retry_after="1")] * 100, config=config, budget=RetryBudget(reserve=0.0))
    with pytest.raises(errors.ServiceUnavailableError):
        run.perform()
    assert 10 < len(run.attempts) < 60
    assert 150 < run.now < 160


@pytest.mark.parametrize(
    ("attempt", "retry_after", "chance", "expected"),
    [
        (1, "", 0.0, 0.0),
        (1, "", 1.0, 0.25),
        (2, "", 1.0, 0.5),
        (6, "", 1.0, 8.0),
        (10_000, "", 1.0, 8.0),
        (1, "3", 1.0, 3.25),
        (1, "Wed, 21 Oct 2026 07:28:00 GMT", 1.0, 0.25),
        (1, "-1", 1.0, 0.25),
        (1, "inf", 1.0, 0.25),
    ],
)
def test_waits_double_with_full_jitter(attempt: int, retry_after: str, chance: float, expected: float) -> None:
    assert wait_s(attempt, retry_after=retry_after, chance=chance) == expected


def test_an_answer_that_is_none_is_not_taken_for_one() -> None:
    def read(reply: Reply, _: object) -> None:
        raise ValueError("a portal's page")

    with pytest.raises(errors.APIResponseError, match="ValueError: a portal's page") as caught:
        Run(OK, call=Call("GET", "/", read)).perform()
    assert caught.value.request_id == "r"


def test_logs_hold_neither_keys_nor_bodies(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="losseval"):
        Run(refusal(503), OK).perform()
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "secret" not in caplog.text
    assert "secret" not in repr(CONFIG)
