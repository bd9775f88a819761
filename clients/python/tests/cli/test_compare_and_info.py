"""`losseval compare`, against the textbook's formulas, and `losseval info`."""

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from .conftest import Command


def write_losses(path: Path, nll: object, ids: object, labels: object) -> Path:
    rows = zip(np.asarray(ids).tolist(), np.asarray(labels).tolist(), np.asarray(nll).tolist(), strict=True)
    path.write_text("".join(json.dumps({"id": name, "label": label, "nll": loss}) + "\n" for name, label, loss in rows))
    return path


RANDOM = np.random.default_rng(0)
A = RANDOM.exponential(size=200)
B = A + RANDOM.normal(0.2, 0.3, 200)
LABELS = RANDOM.integers(0, 10, 200)


def test_the_same_samples_are_compared_one_by_one_in_any_order(losseval: Command, tmp_path: Path) -> None:
    order = RANDOM.permutation(200)[:150]
    a = write_losses(tmp_path / "a.jsonl", A, np.arange(200), LABELS)
    b = write_losses(tmp_path / "b.jsonl", B[order], order, LABELS[order])
    answer = losseval("compare", a, b, "--json")
    assert (answer.code, answer.err) == (0, "")
    document, change = answer.document, (B - A)[order]
    error = change.std(ddof=1) / np.sqrt(150)
    assert document["kind"] == "paired"
    assert document["why"] == "150 ids are in both files"
    assert document["difference"] == pytest.approx(change.mean(), rel=1e-5)
    assert document["standard_error"] == pytest.approx(error, rel=1e-5)
    assert document["interval_low"] == pytest.approx(change.mean() - 1.96 * error, rel=1e-5)
    assert document["interval_high"] == pytest.approx(change.mean() + 1.96 * error, rel=1e-5)
    assert document["win_rate"] == pytest.approx((change < 0).mean())
    assert document["b_is"] == "worse"
    assert document["regressions"]["id"] == [str(row) for row in order[np.argsort(-change)[:10]]]


@pytest.mark.parametrize("case", ["other labels", "other ids"])
def test_other_samples_are_compared_mean_with_mean(case: str, losseval: Command, tmp_path: Path) -> None:
    a = write_losses(tmp_path / "a.jsonl", A, np.arange(200), LABELS)
    ids, labels = (np.arange(50), 9 - LABELS[:50]) if case == "other labels" else (np.arange(500, 550), LABELS[:50])
    b = write_losses(tmp_path / "b.jsonl", B[:50], ids, labels)
    document = losseval("compare", a, b, "--json").document
    error = np.hypot(A.std(ddof=1) / np.sqrt(200), B[:50].std(ddof=1) / np.sqrt(50))
    assert document["kind"] == "gap"
    assert (
        document["why"]
        == {
            "other labels": "the same ids, but 50 of 50 have other labels",
            "other ids": "no id is in both files",
        }[case]
    )
    assert document["difference"] == pytest.approx(B[:50].mean() - A.mean(), rel=1e-5)
    assert document["standard_error"] == pytest.approx(error, rel=1e-5)
    assert document["win_rate"] == "NaN"


def test_files_of_different_formats_pair(losseval: Command, tmp_path: Path) -> None:
    logits = RANDOM.normal(size=(30, 4)).astype(np.float32)
    np.savez(
        tmp_path / "set.npz", logits=logits, labels=LABELS[:30] % 4, id=np.array([f"{row:03}" for row in range(30)])
    )
    outs = [tmp_path / f"out.{ending}" for ending in ("csv", "parquet", "npz", "jsonl")]
    for out in outs:
        losseval("evaluate", tmp_path / "set.npz", "--out", out)
    for out in outs[1:]:
        document = losseval("compare", outs[0], out, "--json").document
        assert (document["kind"], document["count"]) == ("paired", 30)
        assert document["difference"] == pytest.approx(0, abs=1e-6)


def test_a_pipe_gets_the_numbers_and_what_grew(losseval: Command, tmp_path: Path) -> None:
    a = write_losses(tmp_path / "a.jsonl", [1.0, 2, 3], [0, 1, 2], [0, 0, 0])
    b = write_losses(tmp_path / "b.jsonl", [1.0, 4, 2], [0, 1, 2], [0, 0, 0])
    numbers, grown = losseval("compare", a, b).sections
    assert dict(numbers)["difference"] == "0.333333"
    assert dict(numbers)["b_is"] == "no different"
    assert grown == [["id", "a", "b"], ["1", "2", "4"]]


@pytest.mark.parametrize(("shift", "code"), [(0.0, 0), (0.001, 3), (-0.001, 0), (np.nan, 3)])
def test_fail_if_worse_needs_the_whole_interval_above_0(
    shift: float, code: int, losseval: Command, tmp_path: Path
) -> None:
    a = write_losses(tmp_path / "a.jsonl", A, np.arange(200), LABELS)
    b = write_losses(tmp_path / "b.jsonl", A + shift + RANDOM.permutation(A - A.mean()) / 1e6, np.arange(200), LABELS)
    answer = losseval("compare", a, b, "--fail-if-worse")
    assert answer.code == code
    assert answer.err == (f"error: {b} is worse than {a}\n" if code else "")


def test_files_that_hold_no_losses_are_refused(losseval: Command, tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, logits=np.zeros((2, 2)))
    answer = losseval("compare", path, path)
    assert answer.code == 1
    assert "has no 'nll'; give what `losseval evaluate --out` wrote" in answer.err


def test_repeated_ids_leave_positions_to_pair_by(losseval: Command, tmp_path: Path) -> None:
    twice = write_losses(tmp_path / "twice.jsonl", [1, 2], [7, 7], [0, 0])
    same = write_losses(tmp_path / "same.jsonl", [1, 3], [7, 7], [0, 0])
    other = write_losses(tmp_path / "other.jsonl", [1, 3], [7, 7], [0, 1])
    longer = write_losses(tmp_path / "longer.jsonl", [1, 3, 4], [7, 8, 9], [0, 1, 1])
    document = losseval("compare", twice, same, "--json").document
    assert (document["kind"], document["count"], document["difference"]) == ("paired", 2, 0.5)
    assert document["why"] == "2 positions (an id occurs twice) are in both files"
    assert losseval("compare", twice, other, "--json").document["kind"] == "gap"
    answer = losseval("compare", twice, longer)
    assert (answer.code, answer.out) == (1, "")
    assert "an id occurs twice, and 2 and 3 samples" in answer.err


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        ([1, np.inf], [1, np.inf], "no different"),
        ([1, np.nan], [1, np.inf], "can't be told"),
        ([1, 2], [1, np.inf], "worse"),
        ([1, np.inf], [np.nan, 2], "worse"),
        ([1, np.inf], [1, 2], "can't be told"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_only_what_is_not_finite_in_b_alone_makes_it_worse(
    a: list[float], b: list[float], verdict: str, losseval: Command, tmp_path: Path
) -> None:
    paths = [write_losses(tmp_path / f"{name}.jsonl", nll, [0, 1], [0, 0]) for name, nll in (("a", a), ("b", b))]
    answer = losseval("compare", *paths, "--fail-if-worse", "--json")
    assert answer.document["b_is"] == verdict
    assert answer.code == (3 if verdict == "worse" else 0)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "npz", "parquet"])
def test_infinite_losses_are_read_as_they_are_written(ending: str, losseval: Command, tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", logits=np.array([[0, -np.inf], [0, 1], [1, 2]]), labels=[1, 0, 1])
    out = tmp_path / f"out.{ending}"
    assert losseval("evaluate", tmp_path / "set.npz", "--out", out).code == 0
    assert losseval("compare", out, out, "--fail-if-worse", "--json").code == 0


def test_info_tells_device_distance_and_limits(losseval: Command) -> None:
    answer = losseval("info", "--json")
    assert (answer.code, answer.err) == (0, "")
    document = answer.document
    assert (document["ready"], document["device"], document["name"]) == (True, "cpu", "losseval")
    assert 0 < document["round_trip_ms"] < 1000
    assert document["limits"]["max_body_bytes"] == 256 << 20
    (numbers,) = losseval("info").sections
    assert dict(numbers)["max_body_bytes"] == str(256 << 20)
    assert dict(numbers)["ready"] == "True"


class _Warming(http.server.BaseHTTPRequestHandler):
    """Answers 503 until it was asked three times, or always."""

    asked, is_late = 0, False

    def do_GET(self) -> None:
        type(self).asked += self.path == "/readyz"
        is_ready = self.asked > 3 and not self.is_late
        body = json.dumps({"device": "none", "limits": {}}).encode()
        self.send_response(200 if is_ready or self.path != "/readyz" else 503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(params=[False, True], ids=["late", "never"])
def warming(request: pytest.FixtureRequest) -> Iterator[tuple[str, bool]]:
    """A service that is ready later, or never."""
    handler = type("Handler", (_Warming,), {"is_late": request.param})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", request.param
        server.shutdown()
        thread.join()


def test_wait_ends_when_the_service_is_ready_or_time_is_up(losseval: Command, warming: tuple[str, bool]) -> None:
    url, is_never_ready = warming
    answer = losseval("info", "--url", url, "--wait", 1.2 if is_never_ready else 20, "--json")
    assert answer.code == (4 if is_never_ready else 0)
    assert answer.document["ready"] is not is_never_ready
    assert ("not ready" in answer.err) is is_never_ready


def test_nobody_there_exits_with_4_also_after_waiting(losseval: Command) -> None:
    for wait in (0, 0.3):
        answer = losseval("info", "--url", "http://127.0.0.1:9", "--wait", wait)
        assert (answer.code, answer.out) == (4, "")
        assert answer.err.count("\n") == 2
