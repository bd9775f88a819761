"""A request's answer does not depend on the company it has in a batch, to the last bit."""

from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from tests.calls import evaluate, post
from tests.crowd import EVERY_OUTPUT, Crowd, strangers
from tests.server import Server
from tests.wire import encode, read_array

BATCHES = 100


@pytest.fixture(scope="module")
def crowd(server: Server) -> Iterator[Crowd]:
    with Crowd(server.port) as opened:
        yield opened


def make_request(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float32, *, soft: bool = False, **options: object
) -> dict[str, Any]:
    """Request of which the second row, where there is one, is confident."""
    generator = torch.Generator().manual_seed(len(shape) * 100 + shape[-1])
    logits = 3 * torch.randn(shape, generator=generator)
    classes = shape[0] if len(shape) == 1 else shape[1]
    rows_shape = shape[:1] + shape[2:] if len(shape) > 1 else ()
    labels = torch.randint(classes, rows_shape, generator=generator)
    if len(shape) > 1 and shape[0] > 1:
        logits[1, labels[1]] += 30
    if soft:
        labels = torch.randn(shape, generator=generator).softmax(1).to(dtype)
    fields = {"logits": logits.to(dtype), "labels": labels, "include": EVERY_OUTPUT, "encoding": "base64"}
    return {**fields, **options}


WEIGHT = np.linspace(0, 2, 10)
REQUESTS = [
    pytest.param(make_request((1, 10)), id="one-row"),
    pytest.param(make_request((10,)), id="no-batch-axis"),
    pytest.param(make_request((32, 10), reduction="none"), id="none"),
    pytest.param(make_request((7, 10), sample_weight=np.linspace(0, 1, 7), ignore_index=3), id="sample-weight"),
    pytest.param(make_request((5, 10), weight=WEIGHT, label_smoothing=0.1, z_loss=0.01), id="weighted-smoothed"),
    pytest.param(make_request((5, 10), temperature=0.7, include=["losses", "gradients"]), id="temperature"),
    pytest.param(make_request((6, 10), soft=True, weight=WEIGHT, label_smoothing=0.2), id="probabilities"),
    pytest.param(make_request((6, 10), torch.bfloat16, gradient_dtype="BF16"), id="bfloat16"),
    pytest.param(make_request((6, 10), torch.float64), id="float64"),
    pytest.param(make_request((6, 10), precision="high"), id="high"),
    pytest.param(make_request((4, 3, 5), grad_output=-2.5), id="one-more-axis"),
    pytest.param(make_request((2, 1), reduction="sum"), id="single-class"),
    pytest.param(make_request((1, 1000)), id="one-row-of-1000"),
    pytest.param(make_request((3, 1000), include=["loss", "losses", "gradients"]), id="three-rows-of-1000"),
    pytest.param(make_request((1, 32_000), include=["loss", "gradients"]), id="one-row-of-32000"),
]


@pytest.mark.parametrize("fields", REQUESTS)
def test_answer_alone_and_among_strangers_is_the_same(
    fields: dict[str, Any], client: httpx.Client, crowd: Crowd
) -> None:
    """Strangers differ in rows, reduction and weights; some of their rows are not finite."""
    generator = torch.Generator().manual_seed(3)
    alone = post(client, fields, arrays="base64")
    assert alone.status_code == 200, alone.text
    body = encode(fields, arrays="base64")
    rounds = BATCHES if len(body) < 20_000 else BATCHES // 5
    batched = 0
    for turn in range(rounds):
        crowd_size = 1 + turn % 9
        bodies = strangers(fields, crowd_size, generator)
        place = turn % (crowd_size + 1)
        bodies.insert(place, body)
        replies = crowd.fire(bodies)
        assert [reply.status for reply in replies] == [200] * len(replies), [reply.content[:300] for reply in replies]
        assert replies[place].content == alone.content, f"round {turn}: {crowd_size} strangers"
        batched += replies[place].companions > 1
    assert batched > rounds / 2, f"only {batched} of {rounds} rounds were batched at all"


def test_requests_of_different_kinds_sent_together_keep_their_bits(client: httpx.Client, crowd: Crowd) -> None:
    """No two of these may share a batch; a wrong batch key would mix them."""
    everyone = [param.values[0] for param in REQUESTS[:11]]
    bodies = [encode(fields, arrays="base64") for fields in everyone if isinstance(fields, dict)]
    alone = [post(client, fields, arrays="base64").content for fields in everyone if isinstance(fields, dict)]
    order = np.random.default_rng(5)
    for _ in range(20):
        places = order.permutation(len(bodies))
        replies = crowd.fire([bodies[place] for place in places])
        assert [reply.content for reply in replies] == [alone[place] for place in places]


def test_neighbours_of_a_refused_request_are_answered(client: httpx.Client, crowd: Crowd) -> None:
    good = make_request((4, 10))
    alone = post(client, good, arrays="base64").content
    body = encode(good, arrays="base64")
    bad = [
        encode({**good, "labels": np.array([0, 1, 2, 10])}, arrays="base64"),
        encode({**good, "labels": np.array([0, 1, 2])}, arrays="base64"),
        body[:-1],
    ]
    for turn in range(20):
        bodies = [body, bad[turn % 3], body, bad[(turn + 1) % 3], body]
        replies = crowd.fire(bodies)
        assert [reply.status for reply in replies[::2]] == [200] * 3
        assert {reply.content for reply in replies[::2]} == {alone}
        assert all(reply.status in {400, 422} for reply in replies[1::2])


ROWWISE = (
    "losses",
    "gradients",
    "nll",
    "probabilities",
    "logsumexp",
    "entropy",
    "margin",
    "gradient_norm",
    "predictions",
)


@pytest.mark.parametrize("reduction", ["none", "sum"])
@pytest.mark.parametrize("soft", [pytest.param(False, id="index"), pytest.param(True, id="probability")])
@pytest.mark.parametrize(
    "arithmetic",
    [
        pytest.param((torch.float32, "standard"), id="standard"),
        pytest.param((torch.float32, "high"), id="high"),
        pytest.param((torch.float64, "standard"), id="float64"),
    ],
)
@pytest.mark.parametrize("classes", [2, 10, 16, 17, 1000])
def test_evaluating_a_concatenation_is_concatenating_evaluations(
    classes: int, arithmetic: tuple[torch.dtype, str], reduction: str, client: httpx.Client, *, soft: bool
) -> None:
    dtype, precision = arithmetic
    whole = make_request((13, classes), dtype, soft=soft, precision=precision, reduction=reduction)
    whole |= {"weight": np.linspace(0.1, 1, classes), "label_smoothing": 0.1, "sample_weight": np.linspace(0, 2, 13)}
    rows = ("logits", "labels", "sample_weight")
    parts = [
        evaluate(client, {**whole, **{name: whole[name][part] for name in rows}}, arrays="base64")
        for part in (slice(0, 1), slice(1, 6), slice(6, 13))
    ]
    together = evaluate(client, whole, arrays="base64")
    for name in ROWWISE:
        joined = np.concatenate([read_array(part[name]) for part in parts])
        assert joined.tobytes() == read_array(together[name]).tobytes(), name


def test_sums_and_normalizers_of_parts_merge_into_the_mean_of_the_whole(client: httpx.Client) -> None:
    """A caller can split a batch and merge exactly (float64 addition is the only rounding left)."""
    whole = make_request((12, 10), weight=WEIGHT, sample_weight=np.linspace(0.5, 2, 12), include=["loss"])
    rows = ("logits", "labels", "sample_weight")
    parts = [
        evaluate(client, {**whole, **{name: whole[name][part] for name in rows}}, arrays="base64")
        for part in (slice(0, 5), slice(5, 12))
    ]
    total = sum(part["loss_sum"] for part in parts) / sum(part["normalizer"] for part in parts)
    assert evaluate(client, whole, arrays="base64")["loss"] == pytest.approx(total, rel=1e-15)
