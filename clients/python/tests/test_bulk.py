"""Many batches, and arrays larger than a request: the same numbers as at once, within bounds of memory."""

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scripted
import torch
from scripted import Server

from losseval import AsyncClient, Client, CrossEntropyResult, errors
from losseval.bulk import Evaluation, Progress
from losseval.merging import merge
from tests import reference

Call = Callable[..., Any]
RNG = np.random.default_rng(11)
ROWS, CLASSES = 500, 12
LOGITS = RNG.standard_normal((ROWS, CLASSES)).astype(np.float32) * 2
LABELS = np.where(RNG.random(ROWS) < 0.1, -100, RNG.integers(0, CLASSES, ROWS))
PROBABILITIES = RNG.dirichlet(np.ones(CLASSES), ROWS).astype(np.float32)
ROW_BYTES = CLASSES * 4
EVERYTHING: Any = ["loss", "losses", "gradients", "nll", "predictions", "probabilities", "summary"]


def assert_same(whole: CrossEntropyResult, at_once: CrossEntropyResult) -> None:
    assert whole.outputs.keys() == at_once.outputs.keys()
    for name in ("loss_sum", "normalizer"):
        assert getattr(whole, name) == pytest.approx(getattr(at_once, name), rel=1e-13), name
    assert (whole.count, whole.ignored) == (at_once.count, at_once.ignored)
    for name, value in at_once.outputs.items():
        if name == "summary":
            assert_same_summary(whole.summary, value)
        elif name == "gradients":
            np.testing.assert_allclose(whole.gradients, value, rtol=3e-7, atol=1e-12)
        else:
            np.testing.assert_allclose(whole.outputs[name], value, rtol=1e-13, err_msg=name)
    np.testing.assert_array_equal(whole.labels, at_once.labels)


def assert_same_summary(summary: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(summary) == list(expected)
    for name, value in expected.items():
        for key, figure in value.items() if isinstance(value, dict) else [("", value)]:
            found = summary[name][key] if isinstance(value, dict) else summary[name]
            np.testing.assert_allclose(found, figure, rtol=1e-12, atol=1e-14, err_msg=f"{name} {key}")


@pytest.mark.parametrize(
    ("labels", "options"),
    [
        pytest.param(LABELS, {}, id="mean"),
        pytest.param(LABELS, {"reduction": "sum", "grad_output": 3.0}, id="sum"),
        pytest.param(LABELS, {"reduction": "none", "grad_output": RNG.random(ROWS)}, id="none"),
        pytest.param(PROBABILITIES, {"label_smoothing": 0.1}, id="probabilities"),
        pytest.param(LABELS, {"weight": RNG.random(CLASSES), "sample_weight": RNG.random(ROWS)}, id="weights"),
        pytest.param(torch.from_numpy(LABELS), {"z_loss": 0.1, "temperature": 2.0}, id="torch labels"),
        pytest.param(LABELS.tolist(), {"gradient_dtype": "F64"}, id="list"),
    ],
)
def test_arrays_in_parts_give_what_they_give_at_once(call: Call, labels: Any, options: dict[str, Any]) -> None:
    at_once = call("cross_entropy", LOGITS, labels, include=EVERYTHING, **options)
    whole = call("evaluate_arrays", LOGITS, labels, chunk_bytes=97 * ROW_BYTES, include=EVERYTHING, **options)
    assert_same(whole, at_once)


@pytest.mark.parametrize("rows_a_part", [1, 499, 500, 501])
def test_parts_of_any_size_merge(client: Client, rows_a_part: int) -> None:
    at_once = client.cross_entropy(LOGITS, LABELS, include=EVERYTHING)
    whole = client.evaluate_arrays(LOGITS, LABELS, chunk_bytes=rows_a_part * ROW_BYTES, include=EVERYTHING)
    assert_same(whole, at_once)
    assert whole.meta.attempts == -(-ROWS // rows_a_part)


def test_the_summary_is_that_of_the_formula(client: Client) -> None:
    """Of the parts merged, against extended precision over the whole."""
    whole = client.evaluate_arrays(LOGITS, LABELS, chunk_bytes=97 * ROW_BYTES, include=["summary"])
    expected = reference.cross_entropy(LOGITS, LABELS).summary
    for name, value in expected.items():
        if not isinstance(value, dict):
            assert whole.summary[name] == pytest.approx(float(value), rel=2e-6), name


@pytest.mark.parametrize("class_axis", [1, -1])
def test_arrays_with_more_axes(client: Client, class_axis: Any) -> None:
    logits = RNG.standard_normal((9, 5, 4) if class_axis == 1 else (9, 4, 5)).astype(np.float32)
    labels = RNG.integers(0, 5, (9, 4))
    include: Any = ["loss", "losses", "gradients", "nll", "summary"]
    at_once = client.cross_entropy(logits, labels, class_axis=class_axis, include=include)
    whole = client.evaluate_arrays(logits, labels, class_axis=class_axis, include=include, chunk_bytes=200)
    assert_same(whole, at_once)
    assert whole.losses.shape == (9, 4)


def test_bfloat16_and_classes_beyond_those_listed(client: Client) -> None:
    logits = torch.randn(40, 1200).bfloat16()
    labels = torch.randint(0, 1200, (40,))
    at_once = client.cross_entropy(logits, labels, include=["loss", "summary"])
    whole = client.evaluate_arrays(logits, labels, include=["loss", "summary"], chunk_bytes=7 * 2400)
    assert "per_class" not in whole.summary
    assert_same(whole, at_once)


def test_nothing_but_ignored_rows(client: Client) -> None:
    labels = np.full(ROWS, -100)
    at_once = client.cross_entropy(LOGITS, labels, include=["loss", "gradients", "summary"])
    whole = client.evaluate_arrays(LOGITS, labels, include=["loss", "gradients", "summary"], chunk_bytes=10_000)
    assert np.isnan(whole.loss)
    np.testing.assert_array_equal(whole.gradients, 0)
    np.testing.assert_equal(whole.summary, at_once.summary)
    assert [one.code for one in whole.warnings] == ["all_ignored"]
    assert whole.warnings[0].count == at_once.warnings[0].count == ROWS


def test_no_rows_at_all(client: Client) -> None:
    whole = client.evaluate_arrays(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), include=["loss", "losses"])
    assert np.isnan(whole.loss)
    assert whole.losses.shape == (0,)


def test_a_single_sample_has_no_rows_to_cut(client: Client) -> None:
    with pytest.raises(ValueError, match="one axis"):
        client.evaluate_arrays([1.0, 2.0], 0)


def test_warnings_name_rows_of_the_whole(client: Client) -> None:
    logits = LOGITS.copy()
    bad = [3, 150, 151, 480, *range(400, 420)]
    logits[bad] = np.nan
    at_once = client.cross_entropy(logits, np.abs(LABELS) % CLASSES)
    whole = client.evaluate_arrays(logits, np.abs(LABELS) % CLASSES, chunk_bytes=100 * ROW_BYTES)
    assert [vars(one) | {"first": list(one.first)} for one in whole.warnings] == [
        vars(one) | {"first": list(one.first)} for one in at_once.warnings
    ]
    assert whole.warnings[0].count == len(bad)


def test_probabilities_are_suspected_only_if_all_parts_look_like_them(client: Client) -> None:
    mixed = np.concatenate([PROBABILITIES[:250], LOGITS[250:]])
    labels = np.zeros(ROWS, np.int64)
    assert client.evaluate_arrays(mixed, labels, chunk_bytes=50 * ROW_BYTES).warnings == ()
    (warning,) = client.evaluate_arrays(PROBABILITIES, labels, chunk_bytes=50 * ROW_BYTES).warnings
    assert (warning.code, warning.count) == ("logits_look_like_probabilities", ROWS)
    assert list(warning.first) == list(range(10))


def test_outputs_can_go_into_arrays_of_ones_own(client: Client, tmp_path: Path) -> None:
    gradients = np.lib.format.open_memmap(tmp_path / "gradients.npy", "w+", np.float32, LOGITS.shape)
    whole = client.evaluate_arrays(
        LOGITS, LABELS, include=["loss", "gradients"], out={"gradients": gradients}, chunk_bytes=64 * ROW_BYTES
    )
    assert whole.gradients is gradients
    expected = reference.cross_entropy(LOGITS, LABELS).gradients.astype(np.float64)
    np.testing.assert_allclose(np.load(tmp_path / "gradients.npy"), expected, rtol=2e-6, atol=1e-9)


def test_progress_is_told_after_each_answer(client: Client) -> None:
    told: list[Progress] = []
    whole = client.evaluate_arrays(LOGITS, LABELS, chunk_bytes=200 * ROW_BYTES, progress=told.append)
    assert [(one.done, one.rows) for one in told] == [(200, 500), (400, 500), (500, 500)]
    assert told[-1].mean == pytest.approx(whole.loss, rel=1e-13)


def test_ids_stay_here_and_name_the_rows_of_the_whole() -> None:
    with Server() as server, Client(server.url) as client:
        names = [f"sample-{number}" for number in range(4)]
        whole = client.evaluate_arrays(np.zeros((4, 3), np.float32), np.zeros(4, np.int64), ids=names, chunk_bytes=24)
        with pytest.raises(ValueError, match="3 ids for 2 samples"):
            client.cross_entropy(np.zeros((2, 3)), [0, 1], ids=["a", "b", "c"])
    assert whole.ids == names
    assert list(whole.table()["id"]) == names
    assert not any("sample-" in exchange.head for exchange in server.exchanges)


def test_parts_are_numbered_in_their_request_ids() -> None:
    with Server() as server, Client(server.url) as client:
        whole = client.evaluate_arrays(
            np.zeros((6, 3), np.float32), np.zeros(6, np.int64), chunk_bytes=24, request_id="run", max_in_flight=1
        )
    assert [exchange.header("x-request-id") for exchange in server.exchanges] == ["run.0", "run.1", "run.2"]
    assert whole.meta.request_id in {"run", server.exchanges[0].header("x-request-id").partition(".")[0]}


def test_an_overloaded_server_is_waited_for() -> None:
    """More refusals than any call's three attempts, and no error."""
    waits: list[float] = []
    busy = scripted.problem(503, "overloaded", retry_after="1")
    with Server(*[busy] * 20) as server, Client(server.url) as client:
        vars(client)["_sleep"] = waits.append
        client.evaluate_arrays(np.zeros((4, 3), np.float32), np.zeros(4, np.int64), chunk_bytes=24)
    assert len(waits) == 20
    assert min(waits) >= 1


def test_memory_mapped_files_are_sliced_and_let_go(tmp_path: Path) -> None:
    np.save(tmp_path / "logits.npy", np.ones((1 << 13, 1 << 10), np.float32))
    logits = np.load(tmp_path / "logits.npy", mmap_mode="r")
    whole = Evaluation(logits, np.zeros(1 << 13, np.int64), {"chunk_bytes": 1 << 20})
    answer = CrossEntropyResult({}, 0.0, 0.0, 0, 0, (), None)  # type: ignore[arg-type]
    most = 0
    for part in whole.parts():
        assert np.shares_memory(part["logits"], logits)
        assert part["logits"].sum() == 1 << 18
        most = max(most, _resident_bytes(tmp_path / "logits.npy"))
        whole.add(answer)
    assert 1 << 20 <= most <= 8 << 20  # of 32 MiB: the kernel maps ahead


def _resident_bytes(path: Path) -> int:
    """Bytes of the file that the kernel counts as this process's memory."""
    lines = iter(Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines())
    return sum(
        int(next(line for line in lines if line.startswith("Rss:")).split()[1]) * 1024
        for line in lines
        if line.endswith(str(path))
    )


def test_writable_maps_are_not_touched(tmp_path: Path) -> None:
    """Pages of a private map that were written to would be lost."""
    np.save(tmp_path / "logits.npy", np.zeros((64, 1024), np.float32))
    logits = np.load(tmp_path / "logits.npy", mmap_mode="c")
    logits += 1
    with Server() as server, Client(server.url) as client:
        client.evaluate_arrays(logits, np.zeros(64, np.int64), chunk_bytes=1 << 16)
    assert logits.min() == 1


def batches(count: int) -> Iterator[Any]:
    for number in range(count):
        pair = (LOGITS[number : number + 3], np.abs(LABELS[number : number + 3]) % CLASSES)
        yield pair if number % 2 else {"logits": pair[0], "labels": pair[1], "temperature": 2.0}


def test_many_batches_come_back_in_order(call: Call) -> None:
    results = call("evaluate_many", batches(20), include=["loss"])
    for batch, result in zip(batches(20), results, strict=True):
        pair = (batch["logits"], batch["labels"]) if isinstance(batch, dict) else batch
        expected = reference.cross_entropy(*pair, temperature=2.0 if isinstance(batch, dict) else 1.0)
        assert result.loss == pytest.approx(float(expected.loss), rel=1e-6)
        assert result.outputs.keys() == {"loss"}


def test_no_more_batches_are_held_than_asked_for(call: Call) -> None:
    taken = 0

    def counted() -> Iterator[Any]:
        nonlocal taken
        for batch in batches(12):
            taken += 1
            yield batch

    assert len(call("evaluate_many", counted(), max_in_flight=3)) == 12
    assert taken == 12


def test_batches_are_taken_as_answers_are(client: Client) -> None:
    endless = itertools.count()
    stream = client.evaluate_many(((LOGITS[:2], [0, next(endless) % 3]) for _ in itertools.count()), max_in_flight=3)
    for _ in range(4):
        next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert next(endless) == 6


def test_requests_are_under_way_together() -> None:
    together = threading.Barrier(3, timeout=10)

    def step(exchange: scripted.Exchange) -> bool:
        together.wait()
        return scripted.answer()(exchange)

    with Server(*[step] * 6) as server, Client(server.url) as client:
        assert len(list(client.evaluate_many(batches(6), max_in_flight=3))) == 6
    assert server.connections == 3


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_an_error_comes_in_its_place_and_ends_the_rest(url: str, kind: str) -> None:
    good, bad = (LOGITS[:2], [0, 1]), (LOGITS[:2], [0, 99])
    done: list[float] = []

    async def evaluate_async() -> None:
        async with AsyncClient(url) as client:
            async for result in client.evaluate_many([good, good, bad, good], max_in_flight=2):
                done.append(result.loss)  # noqa: PERF401 - what came before the error counts

    def evaluate() -> None:
        with Client(url) as client:
            done.extend(result.loss for result in client.evaluate_many([good, good, bad, good], max_in_flight=2))

    with pytest.raises(errors.UnprocessableError):
        asyncio.run(evaluate_async()) if kind == "async" else evaluate()
    assert len(done) == 2


def test_results_merge_by_hand_as_well(client: Client) -> None:
    parts = [
        client.cross_entropy(LOGITS[i : i + 100], LABELS[i : i + 100], reduction="sum") for i in range(0, 500, 100)
    ]
    merged = merge(parts)
    assert merged.loss == pytest.approx(client.cross_entropy(LOGITS, LABELS).loss, rel=1e-13)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"labels": np.zeros(9, np.int64)}, "labels has 9 rows", id="labels"),
        pytest.param({"sample_weight": np.ones(400)}, "sample_weight has 400 rows", id="sample-weight"),
        pytest.param({"out": {"gradients": np.zeros((5, 3), np.float32)}}, "must have 4 rows", id="short-out"),
        pytest.param({"out": {"gradients": np.zeros((4, 3), np.int32)}}, "float32", id="integer-out"),
        pytest.param({"out": {"nll": np.zeros(4, np.float32)}}, "include", id="out-not-asked-for"),
        pytest.param({"out": {"loss": np.zeros(4, np.float32)}}, "include", id="out-of-a-number"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_before_anything_is_sent(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"labels": np.zeros(4, np.int64), "include": ["loss", "gradients"], **change}
    with pytest.raises(ValueError, match=message):
        Evaluation(np.zeros((4, 3), np.float32), given.pop("labels"), given)  # type: ignore[arg-type]


def test_a_mean_of_16_bit_gradients_is_rounded_once() -> None:
    generator = np.random.default_rng(0)
    logits, labels = generator.standard_normal((8, 3)).astype(np.float32), generator.integers(0, 3, 8)
    with Client.local() as client:
        options: dict[str, Any] = {"include": ["gradients"], "gradient_dtype": "F16", "grad_output": 1e5}
        whole = client.cross_entropy(logits, labels, **options).gradients
        merged = client.evaluate_arrays(logits, labels, chunk_bytes=24, **options).gradients
    assert merged.dtype == np.float16
    np.testing.assert_allclose(merged, whole, rtol=2e-3)
