"""What clients say of where their samples come from is what the service counts, each sample once."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from losseval import AsyncClient, Client
from losseval.cli import main
from tests import server as processes

MODELS = """
models:
  - model: digits
    versions: ["3"]
    classes: 3
    segments: [web]
"""
# Two are right, one is wrong, one is ignored.
LOGITS = np.array([[9, 0, 0], [0, 9, 0], [0, 0, 9], [9, 0, 0]], np.float32)
LABELS = np.array([0, 1, 0, -100])
NAMED: dict[str, Any] = {"model": "digits", "version": "3", "segment": "web"}
COUNTERS = ("samples", "segment_samples", "label_delay_seconds", "repeated_requests")
ONCE = {
    "samples_total digits correct 3": 2,
    "samples_total digits incorrect 3": 1,
    "samples_total digits ignored 3": 1,
    "segment_samples_total digits web": 3,
}
Growth = Callable[[], dict[str, float]]


@pytest.fixture(scope="module")
def monitored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service that was told of a model."""
    models = tmp_path_factory.mktemp("models") / "models.yaml"
    models.write_text(MODELS, encoding="utf-8")
    server = processes.start(device="cpu", models_file=models)
    yield server.url
    assert server.stop() == 0


@pytest.fixture
def growth(monitored: str) -> Growth:
    """By how much counters have grown since the test began, by name and labels (sorted by their names)."""

    def read() -> Counter[str]:
        families = text_string_to_metric_families(httpx.get(f"{monitored}/metrics").text)
        chosen = [family for family in families if family.name.removeprefix("losseval_") in COUNTERS]
        return Counter(
            {
                " ".join(
                    [sample.name.removeprefix("losseval_"), *(value for _, value in sorted(sample.labels.items()))]
                ): sample.value
                for family in chosen
                for sample in family.samples
                if sample.name.endswith(("_total", "_count", "_sum"))
            }
        )

    before = read()
    return lambda: dict(read() - before)


@pytest.mark.parametrize("wire", ["binary", "json"])
def test_samples_are_counted_under_what_was_said(monitored: str, growth: Growth, wire: Any) -> None:
    with Client(monitored, wire=wire) as client:
        client.cross_entropy(LOGITS, LABELS, **NAMED)
    assert growth() == ONCE


def test_the_asynchronous_client_says_it_too(monitored: str, growth: Growth) -> None:
    async def evaluate() -> None:
        async with AsyncClient(monitored) as client:
            await client.cross_entropy(LOGITS, LABELS, **NAMED)

    asyncio.run(evaluate())
    assert growth() == ONCE


def test_nothing_is_counted_without_a_model_or_when_switched_off(monitored: str, growth: Growth) -> None:
    with Client(monitored) as client:
        client.cross_entropy(LOGITS, LABELS)
        client.cross_entropy(LOGITS, LABELS, **NAMED, monitor=False)
    assert growth() == {}


@pytest.mark.parametrize("wire", ["binary", "json"])
@pytest.mark.parametrize("as_text", [False, True])
def test_the_time_of_the_prediction_makes_the_delay(monitored: str, growth: Growth, wire: Any, as_text: bool) -> None:
    earlier: Any = datetime.now(timezone(timedelta(hours=-7))) - timedelta(hours=6)
    with Client(monitored, wire=wire) as client:
        client.cross_entropy(LOGITS, LABELS, **NAMED, predicted_at=earlier.isoformat() if as_text else earlier)
    grown = growth()
    assert grown["label_delay_seconds_count digits"] == 3
    assert grown["label_delay_seconds_sum digits"] / 3 == pytest.approx(6 * 3600, abs=60)


def test_a_request_id_is_counted_once(monitored: str, growth: Growth) -> None:
    """As when the answer to the first attempt was lost."""
    with Client(monitored) as client:
        for _ in range(2):
            client.cross_entropy(LOGITS, LABELS, **NAMED, request_id="an-attempt-and-its-retry")
    assert growth() == {**ONCE, "repeated_requests_total": 1}


def test_each_row_of_arrays_in_parts_is_counted_once(monitored: str, growth: Growth) -> None:
    with Client(monitored) as client:
        client.evaluate_arrays(LOGITS, LABELS, chunk_bytes=LOGITS[0].nbytes, **NAMED, request_id="in-parts")
        assert growth() == ONCE
        list(client.evaluate_many([(LOGITS, LABELS)] * 3, **NAMED, request_id="many"))
    assert growth() == {name: 4 * count for name, count in ONCE.items()}


def test_the_command_line_counts_each_row_of_a_file_once(
    monitored: str, growth: Growth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("losseval.cli.files.CHUNK_BYTES", LOGITS[0].nbytes)
    np.savez(tmp_path / "rows.npz", logits=LOGITS, labels=LABELS)
    command = ["evaluate", str(tmp_path / "rows.npz"), "--url", monitored]
    command += ["--model", "digits", "--model-version", "3", "--segment", "web"]
    assert main([*command, "--no-monitor"]) == 0
    assert growth() == {}
    assert main(command) == 0
    assert growth() == ONCE
    assert main([*command, "--predicted-at", "yesterday"]) == 1
    assert "#/predicted_at: " in capsys.readouterr().err
    assert growth() == ONCE
