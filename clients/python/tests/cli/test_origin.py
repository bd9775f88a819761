"""What `losseval evaluate` says of where the samples come from."""

from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx
import numpy as np
import pytest
import safetensors.numpy
import scripted
from scripted import Server

from .conftest import Command

FIELDS = {"model": "digits", "version": "3", "segment": "a b", "predicted_at": "2026-07-01T12:00:00+02:00"}
OPTIONS = ("--model", "digits", "--model-version", "3", "--segment", "a b", "--predicted-at", FIELDS["predicted_at"])


@pytest.fixture(scope="module")
def answer(url: str) -> bytes:
    """What the service answers for two rows."""
    binary = {"content-type": "application/x-safetensors"}
    query = {"reduction": "sum", "include": "loss,summary"}
    body = safetensors.numpy.save({"logits": np.zeros((2, 3), np.float32), "labels": np.zeros(2, np.int64)})
    return httpx.post(f"{url}/v1/cross-entropy", params=query, content=body, headers=binary).raise_for_status().content


@pytest.fixture
def six_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of which a request takes two rows."""
    monkeypatch.setattr("losseval.cli.files.CHUNK_BYTES", 24)
    np.savez(tmp_path / "rows.npz", logits=np.zeros((6, 3), np.float32), labels=np.zeros(6, np.int64))
    return tmp_path / "rows.npz"


def requests(server: Server) -> list[tuple[str, dict[str, str]]]:
    """The request id and the query of each evaluation."""
    sent = [one for one in server.exchanges if one.head.startswith("POST")]
    targets = [urlsplit(one.head.split(" ")[1]) for one in sent]
    return [(one.header("x-request-id"), dict(parse_qsl(to.query))) for one, to in zip(sent, targets, strict=True)]


def evaluate(losseval: Command, *steps: scripted.Step, options: tuple[Any, ...]) -> list[tuple[str, dict[str, str]]]:
    with Server(scripted.answer(body=b"{}"), *steps) as server:  # the first asks for readiness
        code, _, err = losseval("evaluate", "--url", server.url, "--json", *options)
    assert (code, err) == (0, "")
    return requests(server)


def test_every_request_says_it_and_is_told_apart_from_the_others(
    losseval: Command, six_rows: Path, answer: bytes
) -> None:
    good = scripted.answer(body=answer)
    sent = evaluate(losseval, *[good] * 3, options=(six_rows, *OPTIONS))
    assert [query for _, query in sent] == [{**FIELDS, "reduction": "sum", "include": "loss,summary"}] * 3
    assert len({request_id for request_id, _ in sent}) == 3


def test_a_retry_has_the_request_id_of_its_request(losseval: Command, six_rows: Path, answer: bytes) -> None:
    good = scripted.answer(body=answer)
    sent = evaluate(losseval, scripted.problem(503, "overloaded"), *[good] * 3, options=(six_rows, *OPTIONS))
    assert len(sent) == 4
    assert len({request_id for request_id, _ in sent}) == 3


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        pytest.param((), {}, id="nothing"),
        pytest.param(("--model", "m", "--monitor"), {"model": "m"}, id="monitored"),
        pytest.param(("--model", "m", "--no-monitor"), {"model": "m", "monitor": "false"}, id="not monitored"),
    ],
)
def test_what_is_not_said_is_not_sent(
    losseval: Command, six_rows: Path, answer: bytes, options: tuple[str, ...], sent: dict[str, str]
) -> None:
    good = scripted.answer(body=answer)
    for _, query in evaluate(losseval, *[good] * 3, options=(six_rows, *options)):
        assert query == {**sent, "reduction": "sum", "include": "loss,summary"}
