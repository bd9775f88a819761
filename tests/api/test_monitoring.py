"""Models in the metrics, over real HTTP."""

import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from safetensors.numpy import save, save_file

from tests.conftest import StartServer
from tests.server import ROOT, Server, find_free_port

PATH = "/v1/cross-entropy"
MODELS = """
models:
  - model: digits
    versions: ["1", "2"]
    classes: 3
    segments: [web, mobile]
    baseline: {mean: 0.25, stddev: 0.5, accuracy: 0.9}
    label_interval: 1d
  - model: warm
    temperature: 2
  - model: wide
    classes: 51
"""
Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture(scope="module")
def models_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "models.yaml"
    path.write_text(MODELS)
    return path


@pytest.fixture(scope="module")
def server(start_server: StartServer, models_file: Path) -> Iterator[Server]:
    with start_server(device="cpu", models_file=models_file) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as opened:
        yield opened


class Scrape:
    """The metrics at one time."""

    def __init__(self, text: str) -> None:
        families = text_string_to_metric_families(text)
        self.series: Series = {
            (sample.name, frozenset(sample.labels.items())): sample.value for one in families for sample in one.samples
        }

    def __call__(self, name: str, **labels: str) -> float:
        return self.series["losseval_" + name, frozenset(labels.items())]

    def names(self) -> set[tuple[str, frozenset[tuple[str, str]]]]:
        return set(self.series)


def scrape(client: httpx.Client) -> Scrape:
    return Scrape(client.get("/metrics").raise_for_status().text)


def post(client: httpx.Client, headers: Any = None, **fields: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    body = {"logits": [[2.0, 0.0, -1.0]], "labels": [0]} | fields
    answer: dict[str, Any] = client.post(PATH, json=body, headers=headers).raise_for_status().json()
    return answer


def nll(logits: list[float], label: int, temperature: float = 1.0) -> float:
    scaled = [value / temperature for value in logits]
    return math.log(sum(map(math.exp, scaled))) - scaled[label]


LOSS = nll([2.0, 0.0, -1.0], 0)
DIGITS = {"model": "digits", "version": "1"}


def test_series_of_declared_models_are_there_before_any_sample(start_server: StartServer, models_file: Path) -> None:
    with start_server(device="cpu", models_file=models_file) as fresh, httpx.Client(base_url=fresh.url) as client:
        before = scrape(client)
        for model, version in [("digits", "1"), ("digits", "2"), ("digits", "other"), ("warm", ""), ("other", "other")]:
            pair = {"model": model, "version": version}
            assert before("sample_loss_nats_count", **pair) == 0
            assert before("sample_loss_nats_bucket", **pair, le="+Inf") == 0
            assert all(before("samples_total", **pair, outcome=one) == 0 for one in ("correct", "incorrect", "ignored"))
            assert all(before("nonfinite_losses_total", **pair, kind=one) == 0 for one in ("nan", "infinity"))
            assert all(before("confidence_samples_total", **pair, bin=str(one)) == 0 for one in range(10))
        assert all(before("class_samples_total", model="digits", **{"class": str(one)}) == 0 for one in range(3))
        assert all(before("segment_samples_total", model="digits", segment=one) == 0 for one in ("web", "other"))
        assert before("baseline_loss_mean_nats", **DIGITS) == 0.25
        assert before("baseline_loss_stddev_nats", **DIGITS) == 0.5
        assert before("baseline_accuracy", **DIGITS) == 0.9
        assert before("label_interval_seconds", model="digits") == 86400
        assert before("model_classes", model="wide") == 51
        assert ("losseval_class_samples_total", frozenset({("model", "wide"), ("class", "0")})) not in before.names()
        post(client, **DIGITS, segment="web", predicted_at="2026-01-31T12:00:00Z")
        after = scrape(client)
        gained = {name for name, labels in after.names() - before.names() if ("model", "digits") in labels}
        assert not gained, "a series that appears with its first event hides it from increase()"


def test_a_request_is_counted_under_its_names(client: httpx.Client) -> None:
    before = scrape(client)
    logits = [[2.0, 0.0, -1.0], [0.0, 3.0, 0.0], [1.0, 1.0, 5.0]]
    predicted_at = (datetime.now(UTC) - timedelta(hours=2)).isoformat()
    post(client, logits=logits, labels=[0, 0, -100], **DIGITS, segment="web", predicted_at=predicted_at)
    after = scrape(client)

    def gain(name: str, **labels: str) -> float:
        return after(name, **labels) - before(name, **labels)

    total = nll(logits[0], 0) + nll(logits[1], 0)
    assert gain("sample_loss_nats_sum", **DIGITS) == pytest.approx(total, rel=1e-6)
    assert gain("sample_loss_nats_count", **DIGITS) == 2
    assert [gain("samples_total", **DIGITS, outcome=one) for one in ("correct", "incorrect", "ignored")] == [1, 1, 1]
    assert gain("segment_loss_nats_total", model="digits", segment="web") == pytest.approx(total, rel=1e-6)
    assert gain("segment_samples_total", model="digits", segment="web") == 2
    assert gain("class_samples_total", model="digits", **{"class": "0"}) == 2
    assert gain("class_loss_nats_total", model="digits", **{"class": "0"}) == pytest.approx(total, rel=1e-6)
    assert gain("confidence_samples_total", **DIGITS, bin="9") == 1  # e^3 / (e^3 + 2) = 0.909
    assert gain("confidence_samples_total", **DIGITS, bin="8") == 1  # e^2 / (e^2 + 1 + 1/e) = 0.844
    assert gain("confidence_sum_total", **DIGITS, bin="9") == pytest.approx(math.exp(3) / (math.exp(3) + 2))
    assert gain("confidence_correct_total", **DIGITS, bin="9") == 0
    assert gain("label_delay_seconds_count", model="digits") == 2
    assert gain("label_delay_seconds_sum", model="digits") == pytest.approx(2 * 7200, abs=60)
    now = datetime.now(UTC).timestamp()
    assert after("model_last_sample_timestamp_seconds", model="digits") == pytest.approx(now, abs=60)


def test_options_of_the_request_change_nothing_of_what_is_counted(client: httpx.Client) -> None:
    before = scrape(client)
    answers = [
        post(client, **DIGITS, temperature=3, label_smoothing=0.2, weight=[5, 1, 1], sample_weight=[9], z_loss=0.1),
        post(client, **DIGITS, reduction="none", grad_output=[4.0], include=["gradients"]),
    ]
    assert answers[0]["losses"] != pytest.approx([LOSS])
    assert scrape(client)("sample_loss_nats_sum", **DIGITS) - before("sample_loss_nats_sum", **DIGITS) == pytest.approx(
        2 * LOSS, rel=1e-6
    )


def test_the_declared_temperature_is_used(client: httpx.Client) -> None:
    post(client, model="warm")
    assert scrape(client)("sample_loss_nats_sum", model="warm", version="") == pytest.approx(
        nll([2.0, 0.0, -1.0], 0, 2.0), rel=1e-6
    )


def test_the_answer_is_the_same_to_the_byte(client: httpx.Client) -> None:
    body = {"logits": [[0.1, 0.2, 0.3]], "labels": [1], "include": ["loss", "gradients", "summary"]}
    plain = client.post(PATH, json=body).content
    assert client.post(PATH, json=body | DIGITS | {"segment": "web"}).content == plain


def test_binary_requests_bring_the_fields_as_query_parameters(client: httpx.Client) -> None:
    before = scrape(client)
    tensors = save({"logits": np.array([[2.0, 0.0, -1.0]], np.float32), "labels": np.array([0])})
    headers = {"content-type": "application/x-safetensors"}
    predicted_at = datetime.now(UTC).isoformat()
    query = {**DIGITS, "segment": "mobile", "predicted_at": predicted_at}
    for extra in ({}, {"monitor": "false"}, {"monitor": "true"}):
        client.post(PATH, content=tensors, headers=headers, params={**query, **extra}).raise_for_status()
    # As people write it: the plus of the offset is not escaped.
    client.post(
        f"{PATH}?model=digits&version=1&predicted_at=2026-01-31T12:00:00+01:00", content=tensors, headers=headers
    )
    after = scrape(client)
    assert (
        after("samples_total", **DIGITS, outcome="correct") - before("samples_total", **DIGITS, outcome="correct") == 3
    )
    name = "segment_samples_total"
    assert after(name, model="digits", segment="mobile") - before(name, model="digits", segment="mobile") == 2
    refused = client.post(PATH, content=tensors, headers=headers, params={"monitor": "maybe"})
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "#/monitor")


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        pytest.param({"model": 1}, "#/model", id="number"),
        pytest.param({"model": ""}, "#/model", id="empty"),
        pytest.param({"model": "m" * 129}, "#/model", id="long"),
        pytest.param({"version": 2}, "#/version", id="version"),
        pytest.param({"segment": ["a"]}, "#/segment", id="segment"),
        pytest.param({"monitor": "yes"}, "#/monitor", id="monitor"),
        pytest.param({"predicted_at": "2026-01-31T12:00:00"}, "#/predicted_at", id="no-offset"),
        pytest.param({"predicted_at": "2026-02-31T12:00:00Z"}, "#/predicted_at", id="no-such-day"),
        pytest.param({"predicted_at": "2026-01-31"}, "#/predicted_at", id="date"),
        pytest.param({"predicted_at": 1769860800}, "#/predicted_at", id="epoch"),
    ],
)
def test_bad_fields_are_refused_with_their_place(client: httpx.Client, fields: dict[str, Any], pointer: str) -> None:
    response = client.post(PATH, json={"logits": [[1.0, 2.0]], "labels": [0], **fields})
    problem = response.json()
    assert (response.status_code, problem["code"], problem["errors"][0]["pointer"]) == (422, "invalid_value", pointer)


def test_null_is_the_same_as_absent(client: httpx.Client) -> None:
    before = scrape(client)
    post(client, **DIGITS, segment=None, predicted_at=None, monitor=None)
    post(client, model=None, version="1")
    name = "sample_loss_nats_count"
    assert scrape(client)(name, **DIGITS) - before(name, **DIGITS) == 1


def test_retries_count_once_and_other_requests_each(client: httpx.Client) -> None:
    before = scrape(client)
    for _ in range(3):
        post(client, {"X-Request-Id": "retried-1"}, **DIGITS)
    for _ in range(2):
        post(client, **DIGITS)
    after = scrape(client)
    assert after("sample_loss_nats_count", **DIGITS) - before("sample_loss_nats_count", **DIGITS) == 3
    assert after("repeated_requests_total") - before("repeated_requests_total") == 2


def test_a_refused_request_does_not_use_up_its_id(client: httpx.Client) -> None:
    before = scrape(client)
    refused = client.post(PATH, json={"logits": [[1.0]], "labels": [5], **DIGITS}, headers={"X-Request-Id": "again-1"})
    assert refused.status_code == 422
    post(client, {"X-Request-Id": "again-1"}, **DIGITS)
    name = "sample_loss_nats_count"
    assert scrape(client)(name, **DIGITS) - before(name, **DIGITS) == 1


def test_nan_losses_never_reach_a_sum(client: httpx.Client) -> None:
    before = scrape(client)
    post(client, logits=[["NaN", 0.0, 0.0], ["-Infinity", 0.0, 0.0], [2.0, 0.0, -1.0]], labels=[0, 0, 0], **DIGITS)
    after = scrape(client)
    assert after("sample_loss_nats_sum", **DIGITS) - before("sample_loss_nats_sum", **DIGITS) == pytest.approx(LOSS)
    for kind in ("nan", "infinity"):
        assert after("nonfinite_losses_total", **DIGITS, kind=kind) > before(
            "nonfinite_losses_total", **DIGITS, kind=kind
        )
    assert not [key for key, value in after.series.items() if not math.isfinite(value)]


def test_hostile_names_make_no_series(client: httpx.Client) -> None:
    """As do a hundred thousand of them, in the unit test of the same name."""
    before = scrape(client)
    hostile = ['a"b\\c\n', "{}", "digits\x00", "\u202e", "other"]
    names = iter(range(100_000))

    def attack(worker: int) -> None:
        with httpx.Client(base_url=str(client.base_url), timeout=30) as own:
            for _ in range(50):
                number = next(names)
                for kind in range(4):
                    text = f"{hostile[number % 5]}{number}"
                    fields = (
                        {"model": text} if kind == 0 else {"model": "digits", ("version", "segment")[kind % 2]: text}
                    )
                    post(own, **fields)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(attack, range(4)))
    after = scrape(client)
    assert after.names() == before.names()
    for dimension in ("model", "version", "segment"):
        name = "label_overflow_total"
        assert after(name, dimension=dimension) > before(name, dimension=dimension)


def test_other_classes_than_declared_are_no_classes_of_the_model(client: httpx.Client) -> None:
    before = scrape(client)
    post(client, logits=[[0.0] * 5], labels=[4], **DIGITS)
    after = scrape(client)
    assert after("label_overflow_total", dimension="class") - before("label_overflow_total", dimension="class") == 1
    assert after("sample_loss_nats_count", **DIGITS) - before("sample_loss_nats_count", **DIGITS) == 1
    assert ("losseval_class_samples_total", frozenset({("model", "digits"), ("class", "4")})) not in after.names()


def test_scrapes_amid_load_lose_nothing_and_go_only_up(client: httpx.Client) -> None:
    requests, rows, workers = 120, 40, 4
    before = scrape(client)("sample_loss_nats_count", **DIGITS)

    def load(_: int) -> None:
        with httpx.Client(base_url=str(client.base_url), timeout=30) as own:
            for _ in range(requests):
                post(own, logits=[[2.0, 0.0, -1.0]] * rows, labels=[0] * rows, **DIGITS)

    seen = [before]
    with ThreadPoolExecutor(workers) as pool:
        running = [pool.submit(load, one) for one in range(workers)]
        while not all(one.done() for one in running):
            seen.append(scrape(client)("sample_loss_nats_count", **DIGITS))
        for one in running:
            one.result()
    assert seen == sorted(seen)
    assert scrape(client)("sample_loss_nats_count", **DIGITS) - before == requests * rows * workers


def test_a_large_request_is_counted_whole(client: httpx.Client) -> None:
    rows = 600_000
    before = scrape(client)
    tensors = save({"logits": np.tile(np.array([2, 0, -1], np.float32), (rows, 1)), "labels": np.zeros(rows, np.int64)})
    headers = {"content-type": "application/x-safetensors"}
    client.post(PATH, content=tensors, headers=headers, params={**DIGITS, "include": "loss"}).raise_for_status()
    after = scrape(client)
    assert after("sample_loss_nats_count", **DIGITS) - before("sample_loss_nats_count", **DIGITS) == rows
    gained = after("sample_loss_nats_sum", **DIGITS) - before("sample_loss_nats_sum", **DIGITS)
    assert gained == pytest.approx(rows * LOSS, rel=1e-6)


def test_a_changed_file_takes_effect_and_what_goes_on_goes_on(start_server: StartServer, tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    path.write_text("models: [{model: a}, {model: b}]")
    with start_server(device="cpu", models_file=path) as server, httpx.Client(base_url=server.url) as client:

        def wait_until(name: str, value: float | None, **labels: str) -> None:
            deadline = datetime.now(UTC) + timedelta(seconds=20)
            while scrape(client).series.get(("losseval_" + name, frozenset(labels.items()))) != value:
                assert datetime.now(UTC) < deadline, f"{name} {labels} never became {value}"

        post(client, model="a")
        post(client, model="b")
        path.write_text("models: [{model: a}, {model: c, classes: 3}]")
        wait_until("sample_loss_nats_count", 0, model="c", version="")
        post(client, model="a")
        post(client, model="b")
        after = scrape(client)
        assert after("sample_loss_nats_count", model="a", version="") == 2
        assert after("sample_loss_nats_count", model="other", version="other") == 1
        assert not [labels for _, labels in after.names() if ("model", "b") in labels]
        path.write_text("models: [")
        wait_until("models_file_valid", 0)
        post(client, model="c")
        assert scrape(client)("sample_loss_nats_count", model="c", version="") == 1


def test_a_bad_file_at_the_start_ends_the_process_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    path.write_text("models: [{model: a, versions: [1.10]}]")
    command = [sys.executable, "-m", "service", "--port", "0", "--models-file", str(path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 1
    assert 'models.0.versions.0: must be text: write "1.1" in quotes' in ended.stderr


def test_metrics_may_have_a_port_of_their_own(start_server: StartServer) -> None:
    port = find_free_port()
    with start_server(device="cpu", metrics_port=port) as server:
        own = f"http://127.0.0.1:{port}"
        assert "losseval_build_info" in httpx.get(f"{own}/metrics").text
        # The port decides, whatever the request says of it.
        for url, host in ((f"{server.url}/metrics", f"127.0.0.1:{port}"), (f"{own}/livez", f"127.0.0.1:{server.port}")):
            refused = httpx.get(url, headers={"Host": host})
            assert (refused.status_code, refused.json()["code"]) == (404, "not_found")
        assert httpx.post(own + PATH, json={"logits": [[1.0]], "labels": [0]}).status_code == 404
        assert httpx.get(f"{server.url}/livez").status_code == 200


def test_traces_are_exemplars_in_openmetrics(client: httpx.Client) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    post(client, {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"})
    text = client.get("/metrics", headers={"Accept": "application/openmetrics-text"}).text
    found = [line for line in text.splitlines() if trace in line]
    assert found
    assert all(line.startswith("losseval_http_request_duration_seconds_bucket") for line in found)
    assert trace not in client.get("/metrics").text


def test_the_baseline_of_files_is_an_entry_that_is_taken(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    logits = random.normal(size=(500, 4)).astype(np.float32) * 2
    labels = random.integers(0, 4, 500)
    labels[7] = -100
    save_file({"logits": logits[:300], "labels": labels[:300]}, tmp_path / "a.safetensors")
    rest = {"logits": logits[300:].tolist(), "labels": labels[300:].tolist(), "model": "x", "temperature": 9}
    (tmp_path / "b.json").write_text(json.dumps(rest))
    command = [
        sys.executable,
        "-m",
        "service",
        "baseline",
        "--model",
        "digits",
        "--version",
        "7",
        "--label-interval",
        "1d",
    ]
    files = [str(tmp_path / "a.safetensors"), str(tmp_path / "b.json")]
    made = subprocess.run([*command, *files], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    kept = labels != -100
    wide = logits.astype(np.float64)
    losses = np.log(np.exp(wide).sum(1)) - wide[np.arange(500), np.where(kept, labels, 0)]
    found = {name: float(value) for name, value in re.findall(r"(mean|stddev|accuracy): ([\d.]+)", made.stdout)}
    assert found == pytest.approx(
        {
            "mean": losses[kept].mean(),
            "stddev": losses[kept].std(ddof=1),
            "accuracy": (logits.argmax(1) == labels)[kept].mean(),
        },
        rel=1e-5,
    )
    (tmp_path / "models.yaml").write_text(made.stdout)
    from service.telemetry.models import parse  # noqa: PLC0415 - only here: everything else goes over HTTP

    (declared,) = parse(made.stdout.encode()).models
    assert (declared.model, declared.versions, declared.classes, declared.label_interval) == (
        "digits",
        ("7",),
        4,
        86400,
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param('{"logits": [[1, 2]], "labels": [2]}', "not in [0, 1]", id="bad-label"),
        pytest.param('{"logits": [[1, 2]], "labels": [1]}', "at least two samples", id="one-sample"),
        pytest.param("nonsense", "b.json", id="no-json"),
    ],
)
def test_a_baseline_that_cannot_be_is_said(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "b.json").write_text(text)
    command = [sys.executable, "-m", "service", "baseline", "--model", "m", str(tmp_path / "b.json")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
