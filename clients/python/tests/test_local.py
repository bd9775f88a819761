"""The service in this process."""

import asyncio
import logging
import threading
import time

import numpy as np
import pytest

from losseval import AsyncClient, Client, errors

LOGITS, LABELS = np.zeros((2, 3), np.float32), np.zeros(2, np.int64)


def test_it_is_warm_before_the_first_call_and_silent(capfd: pytest.CaptureFixture[str]) -> None:
    with Client.local(device="cpu") as client:
        assert client.ready()
        assert client.cross_entropy(LOGITS, LABELS).loss == pytest.approx(np.log(3))
    assert capfd.readouterr() == ("", "")


def test_its_thread_ends_with_the_client() -> None:
    def running() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "losseval"}

    before = running()
    with Client.local(device="cpu") as client:
        client.ready()
        assert len(running() - before) == 1
    assert running() == before


def test_settings_are_those_of_the_service() -> None:
    with Client.local(device="cpu", max_classes=2) as client, pytest.raises(errors.LimitExceededError) as caught:
        client.cross_entropy(LOGITS, LABELS)
    assert caught.value.problem["limit_name"] == "MAX_CLASSES"


def test_a_bad_setting_is_an_error_at_once() -> None:
    with pytest.raises(ValueError, match="max_classes"):
        Client.local(max_classes=0)


def test_the_time_budget_holds(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    started = time.monotonic()
    with Client.local(device="cpu") as client, pytest.raises((errors.APITimeoutError, errors.DeadlineExceededError)):
        client.cross_entropy(np.zeros((1 << 13, 1 << 10), np.float32), np.zeros(1 << 13, np.int64), timeout=0.002)
    assert time.monotonic() - started < 10


def test_without_the_service_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install losseval-service"):
        Client.local()


def test_tasks_share_it() -> None:
    async def evaluate() -> list[float]:
        async with AsyncClient.local(device="cpu") as client:
            results = await asyncio.gather(*(client.cross_entropy(LOGITS, LABELS) for _ in range(8)))
            return [result.loss for result in results]

    assert asyncio.run(evaluate()) == pytest.approx([np.log(3)] * 8)
