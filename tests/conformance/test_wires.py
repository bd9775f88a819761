"""JSON, base64 and binary carry the same bits: the same float32 request has the same answer in every form."""

from typing import Any

import httpx
import numpy as np
import pytest
import torch

from tests.calls import BINARY, JSON, TOTALS, evaluate_tensors, post, post_tensors, read_answer
from tests.crowd import Crowd, strangers
from tests.server import Server
from tests.wire import Array, encode, encode_tensors, read_array, read_number

PER_ROW = ["losses", "nll", "logsumexp", "entropy", "margin", "gradient_norm", "predictions"]
PER_LOGIT = ["gradients", "probabilities"]
OUTPUTS = [*PER_ROW, *PER_LOGIT, "loss", "summary"]
REQUESTS = 72
ROUNDS = 20


def any_shape(generator: np.random.Generator) -> tuple[int, ...]:
    """Rank 1 to 4, mostly small; every axis is 1 now and then."""
    rank = int(generator.integers(1, 5))
    longest = {1: 2000, 2: 70, 3: 12, 4: 6}[rank]
    return tuple(int(size) for size in generator.integers(1, longest + 1, rank))


def any_logits(shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    """Float32 of any size; every sixth array holds something that is not finite."""
    logits = generator.normal(size=shape) * 10.0 ** generator.uniform(-3, 3)
    if generator.random() < 1 / 6:
        poison = generator.choice([np.nan, np.inf, -np.inf], shape)
        logits = np.where(generator.random(shape) < 0.1, poison, logits)
    narrow: Array = logits.astype(np.float32)
    return narrow


def any_request(generator: np.random.Generator) -> dict[str, Any]:
    """Request of float32 logits with random labels, options and outputs."""

    def now_and_then(share: float = 0.3) -> bool:
        return bool(generator.random() < share)

    shape = any_shape(generator)
    classes_last = len(shape) > 1 and now_and_then()
    axis = 0 if len(shape) == 1 else len(shape) - 1 if classes_last else 1
    classes, rows = shape[axis], shape[:axis] + shape[axis + 1 :]
    soft = now_and_then()
    include = [name for name in OUTPUTS if now_and_then(0.6)]
    fields: dict[str, Any] = {
        "logits": any_logits(shape, generator),
        "labels": np.asarray(generator.integers(0, classes, rows), np.int64),
        "include": generator.permutation(include or ["losses"]).tolist(),
        "reduction": str(generator.choice(["mean", "sum", "none"])),
        "precision": "high" if now_and_then() else "standard",
    }
    if soft:
        fields["labels"] = generator.dirichlet(np.ones(classes), rows).astype(np.float32)
        fields["labels"] = np.ascontiguousarray(np.moveaxis(fields["labels"], -1, axis))
    elif now_and_then():
        fields["ignore_index"] = int(generator.integers(0, classes))
    if classes_last:
        fields["class_axis"] = -1
    scalars = {"label_smoothing": (0, 1), "temperature": (0.1, 10), "z_loss": (0, 0.1), "grad_output": (-3, 3)}
    fields |= {name: float(generator.uniform(*ends)) for name, ends in scalars.items() if now_and_then()}
    if now_and_then():
        fields["weight"] = generator.uniform(0, 2, classes)
    if now_and_then():
        fields["sample_weight"] = np.asarray(generator.uniform(0, 2, rows))
    if fields["reduction"] == "none" and now_and_then():
        fields["grad_output"] = np.asarray(generator.normal(size=rows))
    if "gradients" not in include and now_and_then():
        fields["input"] = "log_probabilities"
    if "gradients" in include and now_and_then():
        fields["gradient_dtype"] = str(generator.choice(["F32", "F64", "F16", "BF16"]))
    return fields


def in_float32(value: Any, dtype: str) -> Array:  # noqa: ANN401  nested numbers
    """Read numbers as a reader of JSON does, in float64, and narrow them to what they were."""
    wide = np.array(read_number(value), np.int64 if dtype == "I64" else np.float64)
    return wide.astype({"I64": np.int64, "F64": np.float64}.get(dtype, np.float32))


def array_of(tensor: torch.Tensor) -> Array:
    """Tensor in numpy; 16-bit floats as the float32 of the same value."""
    found: Array = (tensor.float() if tensor.dtype.itemsize == 2 else tensor).numpy()
    return found


def bits(array: Array) -> bytes:
    """Bits in which all NaN are one: JSON has no signs and payloads for them."""
    if array.dtype.kind == "f":
        array = np.where(np.isnan(array), np.array(np.nan, array.dtype), array)
    return array.tobytes()


def assert_same_numbers(binary: dict[str, Any], nested: dict[str, Any], base64: dict[str, Any]) -> None:
    assert set(binary) == set(nested) == set(base64)
    for name in TOTALS.intersection(binary):
        assert bits(np.asarray(float(binary[name]))) == bits(np.asarray(float(read_number(nested[name])))), name
        assert nested[name] == base64[name], name
    assert binary["warnings"] == nested["warnings"] == base64["warnings"]
    assert binary.get("summary") == nested.get("summary")
    for name in (*PER_ROW, *PER_LOGIT):
        if name in binary:
            array = array_of(binary[name])
            dtype = {"f8": "F64", "i8": "I64"}.get(array.dtype.str[1:], "F32")
            written = in_float32(nested[name], dtype)
            assert written.shape == array.shape, name
            assert bits(written) == bits(array), name
            encoded = read_array(base64[name], "I64" if dtype == "I64" else "F64").astype(array.dtype)
            assert encoded.shape == array.shape, name
            assert bits(encoded) == bits(array), name


def assert_every_form_agrees(client: httpx.Client, fields: dict[str, Any]) -> None:
    """Three forms of the request times three of the answer."""
    json, safetensors = JSON["content-type"], BINARY["content-type"]
    from_nested, from_base64 = post(client, fields), post(client, fields, arrays="base64")
    assert from_nested.status_code == 200, from_nested.text[:500]
    assert from_nested.content == from_base64.content == post_tensors(client, fields, accept=json).content
    binary = post_tensors(client, fields)
    for arrays in ("nested", "base64"):
        assert post(client, fields, arrays=arrays, accept=safetensors).content == binary.content
    as_objects = {**fields, "encoding": "base64"}
    to_base64 = post(client, as_objects)
    assert post(client, as_objects, arrays="base64").content == to_base64.content
    assert_same_numbers(read_answer(binary), from_nested.json(), to_base64.json() | summary_of(from_nested))


def summary_of(response: httpx.Response) -> dict[str, Any]:
    """Summary as nested numbers; in the other encoding it holds tensor objects."""
    return {name: value for name, value in response.json().items() if name == "summary"}


@pytest.mark.parametrize("seed", range(6))
def test_the_same_request_has_the_same_bits_in_every_form(seed: int, client: httpx.Client) -> None:
    generator = np.random.default_rng(1000 + seed)
    for _ in range(REQUESTS // 6):
        assert_every_form_agrees(client, any_request(generator))


LARGE = [
    pytest.param((100, 700), {}, id="many-rows"),
    pytest.param((1, 70_000), {}, id="one-long-row"),
    pytest.param((35_000, 2), {}, id="many-short-rows"),
    pytest.param((2, 3, 12_000), {}, id="classes-in-the-middle"),
    pytest.param((2, 12_000, 3), {"class_axis": -1}, id="classes-last"),
    pytest.param((70_000,), {}, id="one-sample"),
]


@pytest.mark.parametrize(("shape", "options"), LARGE)
def test_large_requests_and_answers_in_parts_have_the_same_bits(
    shape: tuple[int, ...], options: dict[str, Any], client: httpx.Client
) -> None:
    generator = np.random.default_rng(7)
    axis = 0 if len(shape) == 1 else options.get("class_axis", 1)
    rows = np.moveaxis(np.empty(shape, np.bool_), axis, -1).shape[:-1]
    logits = (5 * generator.normal(size=shape)).astype(np.float32)
    logits[generator.random(shape) < 1e-5] = -np.inf
    labels = np.asarray(generator.integers(0, shape[axis], rows))
    fields = {"logits": logits, "labels": labels, "include": ["loss", "losses", "gradients"], **options}
    nested, base64 = post(client, fields), post(client, {**fields, "encoding": "base64"}, arrays="base64")
    assert nested.content == post_tensors(client, fields, accept=JSON["content-type"]).content
    assert_same_numbers(evaluate_tensors(client, fields), nested.json(), base64.json())


FLOAT32 = np.finfo(np.float32)
EXTREME = [
    pytest.param([FLOAT32.max, -FLOAT32.max, 0.0], id="largest"),
    pytest.param([FLOAT32.tiny, FLOAT32.smallest_subnormal, -FLOAT32.smallest_subnormal], id="subnormal"),
    pytest.param([0.1, 1 / 3, np.nextafter(np.float32(1), np.float32(2))], id="inexact"),
    pytest.param([0.0, -0.0, 0.0], id="zeros"),
    pytest.param([np.nan, 1.0, 2.0], id="nan"),
    pytest.param([np.inf, -np.inf, 2.0], id="infinities"),
    pytest.param([-np.inf, -np.inf, -np.inf], id="nothing-but-minus-infinity"),
    pytest.param([16_777_216.0, 16_777_215.0, 1e10], id="integers"),
]


@pytest.mark.parametrize("row", EXTREME)
@pytest.mark.parametrize("precision", ["standard", "high"])
def test_extreme_numbers_have_the_same_bits_in_every_form(
    row: list[float], precision: str, client: httpx.Client
) -> None:
    include = [*PER_ROW, *PER_LOGIT, "loss", "summary"]
    logits = np.array([row, [0.5, 0.25, 0.125]], np.float32)
    fields = {"logits": logits, "labels": np.array([1, 2]), "include": include, "precision": precision}
    assert_every_form_agrees(client, fields)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_logits_of_other_dtypes_have_the_same_bits_as_tensor_objects(
    seed: int, dtype: torch.dtype, client: httpx.Client
) -> None:
    fields = any_request(np.random.default_rng(2000 + seed))
    fields["logits"] = torch.as_tensor(fields["logits"]).to(dtype)
    nested = post(client, fields, arrays="base64")
    base64 = post(client, {**fields, "encoding": "base64"}, arrays="base64")
    assert_same_numbers(evaluate_tensors(client, fields), nested.json(), base64.json() | summary_of(nested))


def test_requests_of_every_form_in_one_batch_keep_their_bits(server: Server, client: httpx.Client) -> None:
    generator, of_strangers = np.random.default_rng(5), torch.Generator().manual_seed(5)
    logits = generator.normal(size=(5, 10)).astype(np.float32)
    fields = {"logits": logits, "labels": generator.integers(0, 10, 5)}  # the defaults, which need no query
    forms = [
        (encode(fields), JSON),
        (encode(fields, arrays="base64"), {**JSON, "accept": BINARY["content-type"]}),
        (encode_tensors(fields), BINARY),
        (encode_tensors(fields), {**BINARY, "accept": JSON["content-type"]}),
    ]
    in_json, in_binary = post(client, fields).content, post_tensors(client, fields).content
    batched = 0
    with Crowd(server.port) as crowd:
        for turn in range(ROUNDS):
            others = strangers({**fields, "include": ["loss", "losses"]}, 2 + turn % 4, of_strangers)
            bodies = [*others, *(body for body, _ in forms)]
            replies = crowd.fire(bodies, [*([JSON] * len(others)), *(headers for _, headers in forms)])
            found = [reply.content for reply in replies[len(others) :]]
            assert found == [in_json, in_binary, in_binary, in_json]
            batched += all(reply.companions > 1 for reply in replies[len(others) :])
    assert batched > ROUNDS / 2, f"only {batched} of {ROUNDS} rounds were batched at all"
