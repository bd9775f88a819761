"""Logits given as log-probabilities or probabilities."""

import math
from typing import Any

import httpx
import pytest

from tests.calls import EXAMPLE, evaluate, pointers, refuse

PROBABILITIES = [[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]
LOSSES = [math.log(2), -math.log(0.2)]


def test_probabilities_are_taken_at_their_logarithm(client: httpx.Client) -> None:
    answer = evaluate(client, {"input": "probabilities", "logits": PROBABILITIES, "labels": [0, 1]})
    assert answer["losses"] == pytest.approx(LOSSES, rel=1e-6)
    assert "logits_look_like_probabilities" not in [warning["code"] for warning in answer["warnings"]]


def test_log_probabilities_are_taken_as_they_are(client: httpx.Client) -> None:
    logarithms = [[math.log(p) for p in row] for row in PROBABILITIES]
    answer = evaluate(client, {"input": "log_probabilities", "logits": logarithms, "labels": [0, 1]})
    assert answer["losses"] == pytest.approx(LOSSES, rel=1e-6)


def test_probability_zero_at_the_label_is_an_infinite_loss(client: httpx.Client) -> None:
    fields = {"input": "probabilities", "logits": [[1.0, 0.0], [1.0, 0.0]], "labels": [1, 0]}
    assert evaluate(client, fields)["losses"] == ["Infinity", 0]


@pytest.mark.parametrize(("total", "taken"), [(0.9991, True), (1.0009, True), (0.998, False), (1.002, False)])
def test_rows_must_sum_to_one_within_a_thousandth(total: float, client: httpx.Client, *, taken: bool) -> None:
    fields = {"input": "probabilities", "logits": [[0.5, 0.5], [total - 0.25, 0.25]], "labels": [0, 1]}
    if taken:
        assert evaluate(client, fields)["losses"] == pytest.approx([math.log(2), -math.log(0.25)], rel=2e-3)
    else:
        assert pointers(refuse(client, fields, 422, "invalid_value"))[0].startswith("#/logits/1")


@pytest.mark.parametrize("row", [[1.5, -0.5], [1.0, "NaN"], ["Infinity", 0.0]], ids=["negative", "nan", "infinite"])
def test_probability_outside_zero_and_one_is_refused(row: list[object], client: httpx.Client) -> None:
    fields = {"input": "probabilities", "logits": [[0.5, 0.5], row], "labels": [0, 0]}
    assert pointers(refuse(client, fields, 422, "invalid_value"))[0].startswith("#/logits/1")


@pytest.mark.parametrize("kind", ["probabilities", "log_probabilities"])
def test_gradients_exist_for_logits_only(kind: str, client: httpx.Client) -> None:
    fields: dict[str, Any] = {"logits": [[0.0, "-Infinity"]], "labels": [0], "include": ["loss", "gradients"]}
    if kind == "probabilities":
        fields["logits"] = [[0.5, 0.5]]
    problem = refuse(client, {**fields, "input": kind}, 422, "invalid_value")
    assert pointers(problem)[0] in {"#/include", "#/include/1", "#/input"}


def test_softmax_applied_twice_is_noticed(client: httpx.Client) -> None:
    answer = evaluate(client, {"logits": PROBABILITIES, "labels": [0, 1]})
    assert [warning["code"] for warning in answer["warnings"]] == ["logits_look_like_probabilities"]
    assert evaluate(client, EXAMPLE)["warnings"] == []
    assert evaluate(client, {"logits": [*PROBABILITIES, [0.5, 0.6, 0.2]], "labels": [0, 1, 2]})["warnings"] == []
