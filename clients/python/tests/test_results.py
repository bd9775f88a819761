"""Results: outputs, tables and samples to look at; and two results beside each other."""

import dataclasses
import math
import pickle
import sys
import types
from typing import Any

import numpy as np
import pytest

from losseval import Client, Comparison, CrossEntropyResult, compare

RNG = np.random.default_rng(3)
LOGITS = RNG.standard_normal((50, 4)).astype(np.float32)
LABELS = np.where(np.arange(50) % 7 == 0, -100, RNG.integers(0, 4, 50))
SHOWN = np.where(LABELS == -100, 0, LABELS)
INCLUDE: Any = ["losses", "nll", "predictions", "margin"]


@pytest.fixture(scope="module")
def result(client: Client) -> CrossEntropyResult:
    return client.cross_entropy(LOGITS, LABELS, include=INCLUDE, ids=[f"s{number}" for number in range(50)])


def test_an_output_not_asked_for_says_how_to_get_it(result: CrossEntropyResult) -> None:
    with pytest.raises(AttributeError, match="'gradients' is not in the answer: name it in include"):
        _ = result.gradients
    assert not hasattr(result, "loss")


def test_results_are_frozen_short_to_print_and_picklable(result: CrossEntropyResult) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.loss_sum = 0.0  # type: ignore[misc]
    assert repr(result).startswith("CrossEntropyResult(loss=")
    assert len(repr(result)) < 200
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(result)).nll, result.nll)


def test_a_result_keeps_its_labels_when_the_caller_changes_them(client: Client) -> None:
    labels = LABELS.copy()
    result = client.cross_entropy(LOGITS, labels)
    labels[:] = 0
    np.testing.assert_array_equal(result.labels, LABELS)


def test_the_table_has_a_column_for_each_number_a_sample(result: CrossEntropyResult) -> None:
    table = result.table()
    assert list(table) == ["id", "label", "prediction", "loss", "nll", "margin", "self_confidence"]
    exponentials = np.exp(LOGITS.astype(np.float64))
    confidence = (exponentials / exponentials.sum(1, keepdims=True))[np.arange(50), SHOWN]
    kept = LABELS != -100
    np.testing.assert_allclose(table["self_confidence"][kept], confidence[kept], rtol=1e-6)
    np.testing.assert_array_equal(table["prediction"], LOGITS.argmax(1))


def test_top_is_what_sorting_by_hand_gives(result: CrossEntropyResult) -> None:
    wide = LOGITS.astype(np.float64)
    nll = np.log(np.exp(wide).sum(1)) - wide[np.arange(50), SHOWN]
    expected = [index for index in np.argsort(-nll) if LABELS[index] != -100][:5]
    top = result.top(5)
    assert list(top["index"]) == expected
    assert list(top["id"]) == [f"s{index}" for index in expected]
    np.testing.assert_array_equal(top["label"], LABELS[expected])
    assert len(result.top(1000)["index"]) == 50 - 8


def test_top_puts_undefined_samples_first_and_works_on_more_axes(client: Client) -> None:
    logits = RNG.standard_normal((3, 4, 2)).astype(np.float32)
    logits[1, 0, 1] = np.nan
    result = client.cross_entropy(logits, np.zeros((3, 2), np.int64), include=["nll"])
    top = result.top(2)
    assert top["index"][0] == 3
    assert top["nll"][1] == np.nanmax(result.nll)


def test_top_takes_the_likeliest_of_probability_labels_as_the_label(client: Client) -> None:
    labels = RNG.dirichlet(np.ones(4), 50)
    result = client.cross_entropy(LOGITS, labels, include=["nll"])
    np.testing.assert_array_equal(result.top(50)["label"], labels.argmax(1)[result.top(50)["index"]])


def test_pandas_gets_the_table(result: CrossEntropyResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=dict))
    assert list(result.to_pandas()) == list(result.table())


def made(losses: Any, *, ids: Any = None, labels: Any = None, **outputs: Any) -> CrossEntropyResult:
    given = {"losses": np.asarray(losses, np.float32), **outputs}
    about: Any = {"labels": labels, "ids": ids, "ignore_index": None if labels is None else -100}
    return CrossEntropyResult(given, 0.0, 1.0, len(losses), 0, (), None, **about)  # type: ignore[arg-type]


A, B = RNG.random(40), RNG.random(40) * 0.9


def test_results_of_one_length_are_paired() -> None:
    found = compare(made(A), made(B))
    change = B.astype(np.float32).astype(np.float64) - A.astype(np.float32)
    error = change.std(ddof=1) / math.sqrt(40)
    assert (found.kind, found.count) == ("paired", 40)
    assert found.difference == pytest.approx(change.mean())
    assert found.standard_error == pytest.approx(error)
    assert found.interval == pytest.approx((change.mean() - 1.96 * error, change.mean() + 1.96 * error))
    assert found.win_rate == np.mean(change < 0)
    np.testing.assert_array_equal(found.regressions["id"], np.argsort(-change)[:10])
    np.testing.assert_allclose(found.regressions["b"] - found.regressions["a"], np.sort(change)[::-1][:10])


def test_ids_pair_whatever_the_order() -> None:
    order = RNG.permutation(40)
    names = np.array([f"s{number:02}" for number in range(40)])
    found = compare(made(A, ids=list(names)), made(B[order][:30], ids=list(names[order][:30])))
    assert (found.kind, found.count) == ("paired", 30)
    assert found.difference == pytest.approx((B - A)[order][:30].mean(), rel=1e-5)


def test_other_data_sets_have_a_gap() -> None:
    found = compare(made(A), made(B[:25]))
    a, b = A.astype(np.float32), B[:25].astype(np.float32)
    error = math.sqrt(a.var(ddof=1) / 40 + b.var(ddof=1) / 25)
    assert (found.kind, found.count, found.regressions) == ("gap", 65, {})
    assert found.difference == pytest.approx(b.mean() - a.mean(), rel=1e-5)
    assert found.standard_error == pytest.approx(error, rel=1e-5)
    assert math.isnan(found.win_rate)


def test_ids_that_share_nothing_have_a_gap_even_at_one_length() -> None:
    assert compare(made(A, ids=range(40)), made(B, ids=range(100, 140))).kind == "gap"


def test_ties_are_half_wins_and_ignored_samples_count_in_neither() -> None:
    labels_a, labels_b = np.array([0, -100, 1, 1, 2]), np.array([0, 1, -100, 1, 2])
    found = compare(made([1, 9, 9, 2, 3], labels=labels_a), made([1, 9, 9, 1, 5], labels=labels_b))
    assert (found.count, found.win_rate) == (3, 0.5)
    assert found.difference == pytest.approx(1 / 3)


def test_nll_is_compared_where_both_have_it() -> None:
    a, b = made(A, nll=A.astype(np.float32) * 10), made(B, nll=B.astype(np.float32) * 10)
    assert compare(a, b).difference == pytest.approx(10 * (B - A).mean(), rel=1e-5)
    assert compare(a, made(B)).difference == pytest.approx((B - A).mean(), rel=1e-5)


def test_clients_compare_too() -> None:
    assert isinstance(Client.compare(made(A), made(B)), Comparison)
    assert math.isnan(compare(made([1]), made([2])).standard_error)


def bare(nll: list[float], **more: Any) -> CrossEntropyResult:
    outputs = {more.pop("output", "nll"): np.array(nll)}
    meta: Any = None
    return CrossEntropyResult(outputs, 0.0, 1.0, len(nll), 0, (), meta, **more)


def test_equal_infinities_do_not_differ() -> None:
    one = bare([math.inf, 1.0, 2.0])
    assert compare(one, one).difference == 0


def test_ids_that_occur_twice_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="twice"):
        compare(bare([1, 2], ids=["a", "a"]), bare([1, 2], ids=["a", "b"]))


def test_results_without_losses_in_common_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="in common"):
        compare(bare([1, 2]), bare([1, 2], output="losses"))


def test_ids_of_one_side_name_the_regressions() -> None:
    assert compare(bare([1, 2]), bare([1, 3], ids=["a", "b"])).regressions["id"].tolist() == ["b", "a"]


def test_top_begins_with_nan_before_infinity_and_never_counts_backwards() -> None:
    result = bare([1.0, math.inf, math.nan])
    assert result.top(2)["index"].tolist() == [2, 1]
    assert result.top(-1)["index"].size == 0
