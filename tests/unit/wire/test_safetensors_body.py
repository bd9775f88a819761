"""safetensors bodies: against the official package both ways, against hostile headers, and against noise."""

import json
import tracemalloc
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.api.problems import document, status_of
from service.dtypes import BY_NAME, FLOATS, WEIGHTS, Array, Buffer
from service.errors import (
    DuplicateField,
    InvalidValue,
    MalformedTensors,
    MissingField,
    ServiceError,
    ShapeMismatch,
    UnknownField,
    UnsupportedDtype,
)
from service.wire.safetensors_body import MAX_HEADER_BYTES, decode, encode

GENERATOR = np.random.default_rng(23)
DTYPES_OF: Mapping[str, tuple[str, ...]] = {
    "logits": tuple(FLOATS),
    "labels": tuple(BY_NAME),
    "weight": WEIGHTS,
    "sample_weight": WEIGHTS,
    "grad_output": WEIGHTS,
}
MAX_PEAK_BYTES = 1 << 20
PIECE_BYTES = 1 << 20


def any_bits(dtype: str, shape: tuple[int, ...]) -> Array:
    """Array of random bits: every exponent, sign and NaN."""
    size = int(np.prod(shape)) * BY_NAME[dtype].itemsize
    return np.frombuffer(bytearray(GENERATOR.bytes(size)), BY_NAME[dtype]).reshape(shape)


def as_torch(array: Array) -> torch.Tensor:
    """Tensor of the same bits."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def save(arrays: Mapping[str, Array], metadata: dict[str, str] | None = None) -> bytearray:
    """File of the official package, in memory that can be written to."""
    return bytearray(safetensors.torch.save({name: as_torch(array) for name, array in arrays.items()}, metadata))


def written(values: Mapping[str, object]) -> bytes:
    """Whole answer, whose parts have the length that was announced."""
    length, parts = encode(values)
    body = b"".join(parts)
    assert len(body) == length
    return body


def a_file(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    """File of any header, announced with its length or another one."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def assert_same(found: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    """Equal names, dtypes, shapes and bits."""
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].shape == array.shape, name
        assert found[name].tobytes() == array.tobytes(), name


EVERY_DTYPE = [pytest.param(name, dtype, id=f"{name}-{dtype}") for name, kinds in DTYPES_OF.items() for dtype in kinds]
SHAPES = [(), (1,), (7,), (3, 5), (2, 3, 4), (1, 2, 1, 3, 1), (0,), (0, 3), (2, 0, 4)]


@pytest.mark.parametrize(("name", "dtype"), EVERY_DTYPE)
def test_official_files_of_every_dtype_and_shape_are_read(name: str, dtype: str) -> None:
    for shape in SHAPES:
        arrays = {name: any_bits(dtype, shape)}
        assert_same(decode(save(arrays, {"any": "thing"})), arrays)
        assert_same(decode(safetensors.numpy.save(arrays)), arrays)


@pytest.mark.parametrize("dtype", BY_NAME)
def test_files_of_every_dtype_and_shape_are_read_by_the_official_package(dtype: str) -> None:
    for shape in SHAPES:
        array = any_bits(dtype, shape)
        body = written({"losses": array})
        found = safetensors.torch.load(body)["losses"]
        assert found.dtype == as_torch(array).dtype
        assert found.shape == array.shape
        assert (
            found.view(torch.uint8).numpy().tobytes() == array.tobytes()
            if found.ndim
            else torch.equal(found.reshape(1).view(torch.uint8), as_torch(array.reshape(1)).view(torch.uint8))
        )
        if dtype != "BF16":
            assert_same(safetensors.numpy.load(body), {"losses": array})


def test_several_tensors_of_different_sizes_are_read_whatever_their_order() -> None:
    arrays = {
        "labels": any_bits("I8", (3,)),
        "logits": any_bits("F16", (3, 5)),
        "weight": any_bits("F64", (5,)),
        "sample_weight": any_bits("F32", (3,)),
        "grad_output": any_bits("F64", ()),
    }
    assert_same(decode(save(arrays)), arrays)
    assert_same(decode(save(dict(reversed(arrays.items())))), arrays)


ANSWER: dict[str, object] = {
    "loss": 0.1,
    "loss_sum": float("nan"),
    "count": 2**62 + 1,
    "losses": np.array([1.5, np.nan], np.float32),
    "predictions": np.array([3, 0]),
    "gradients": np.array([[1, 2, 3]], ml_dtypes.bfloat16),
    "probabilities": np.array([[1, 2, 3]], np.float16),
    "nll": np.array(2.5, np.float32),
    "warnings": [{"code": "nonfinite_loss", "first": (0, 1)}],
    "summary": {"accuracy": float("nan"), "count": np.array([1, 2])},
}


def test_numbers_are_tensors_of_rank_0_and_everything_else_is_json_in_the_metadata() -> None:
    body = written(ANSWER)
    header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
    metadata = header.pop("__metadata__")
    assert {name: (item["dtype"], tuple(item["shape"])) for name, item in header.items()} == {
        "loss": ("F64", ()),
        "loss_sum": ("F64", ()),
        "count": ("I64", ()),
        "losses": ("F32", (2,)),
        "predictions": ("I64", (2,)),
        "gradients": ("BF16", (1, 3)),
        "probabilities": ("F16", (1, 3)),
        "nll": ("F32", ()),
    }
    assert set(metadata) == {"warnings", "summary"}
    assert json.loads(metadata["warnings"]) == [{"code": "nonfinite_loss", "first": [0, 1]}]
    assert json.loads(metadata["summary"]) == {"accuracy": "NaN", "count": [1, 2]}
    found = safetensors.torch.load(body)
    assert (found["loss"].item(), found["count"].item(), found["nll"].item()) == (0.1, 2**62 + 1, 2.5)
    assert found["loss_sum"].isnan()


def test_every_tensor_of_an_answer_is_aligned_to_its_dtype() -> None:
    body = written(ANSWER)
    start = 8 + int.from_bytes(body[:8], "little")
    header = json.loads(body[8:start])
    for name, item in header.items():
        if name != "__metadata__":
            assert (start + item["data_offsets"][0]) % BY_NAME[item["dtype"]].itemsize == 0, name
    assert start % 8 == 0


@pytest.mark.parametrize(
    "array",
    [
        pytest.param(np.arange(12, dtype=np.float32).reshape(3, 4).T, id="transposed"),
        pytest.param(np.arange(12, dtype=np.float32)[::-2], id="strided-backwards"),
        pytest.param(np.broadcast_to(np.float32(1.5), (3, 2)), id="broadcast"),
        pytest.param(np.moveaxis(np.arange(24).reshape(2, 3, 4), -1, 1), id="classes-moved"),
    ],
)
def test_arrays_that_are_not_contiguous_are_written_in_c_order(array: Array) -> None:
    np.testing.assert_array_equal(safetensors.numpy.load(written({"losses": array}))["losses"], array)


def test_an_answer_of_a_contiguous_array_is_not_copied() -> None:
    array = any_bits("F32", (100, 100))
    _, parts = encode({"gradients": array})
    assert any(np.shares_memory(array, np.frombuffer(part, np.uint8)) for part in parts)


LARGE_AND_MOVED = [
    pytest.param(np.moveaxis(any_bits("F32", (3, 700, 400)), -1, 1), id="classes-moved"),
    pytest.param(any_bits("F64", (900, 700)).T, id="transposed"),
    pytest.param(np.moveaxis(any_bits("I16", (1, 2, 3, 200_000)), -1, 1), id="classes-moved-in-a-long-row"),
    pytest.param(np.moveaxis(any_bits("BF16", (2, 700_000)), -1, 0), id="bfloat16"),
    pytest.param(any_bits("F32", (600_000,))[::-1], id="backwards"),
    pytest.param(np.moveaxis(any_bits("F32", (1, 600_000, 2)), -1, 1), id="two-classes-over-a-long-axis"),
    pytest.param(np.broadcast_to(any_bits("F32", (1, 1000)), (700, 1000)), id="broadcast"),
]


@pytest.mark.parametrize("array", LARGE_AND_MOVED)
def test_large_arrays_that_are_not_contiguous_are_written_piece_by_piece(array: Array) -> None:
    """A copy of the whole would cost as much memory as the answer itself."""
    _, parts = encode({"gradients": array, "count": 1})
    pieces = [bytes(part) for part in parts]
    found = safetensors.torch.load(b"".join(pieces))["gradients"]
    assert found.view(torch.uint8).numpy().tobytes() == array.tobytes()
    if array.ndim > 1:
        assert max(map(len, pieces)) <= 2 * PIECE_BYTES


def in_numpy(body: bytes) -> memoryview:
    """Return the body as the service receives large ones."""
    buffer = np.empty(len(body), np.uint8)
    buffer[:] = np.frombuffer(body, np.uint8)
    return buffer.data


MATRIX = {"logits": any_bits("F32", (8, 16)), "labels": any_bits("I64", (8,)), "weight": any_bits("F64", (16,))}


@pytest.mark.parametrize("held", [pytest.param(bytearray, id="bytearray"), pytest.param(in_numpy, id="numpy")])
def test_tensors_are_views_of_the_body_that_can_be_written_to(held: Callable[[bytes], Buffer]) -> None:
    body = held(bytes(save(MATRIX)))
    found = decode(body)
    assert_same(found, MATRIX)
    for array in found.values():
        assert np.shares_memory(array, np.frombuffer(body, np.uint8))
        assert array.flags.writeable
        array[...] = 0
    assert bytes(body).endswith(bytes(sum(array.nbytes for array in MATRIX.values())))


@pytest.mark.parametrize("held", [pytest.param(bytes, id="bytes"), pytest.param(memoryview, id="read-only-view")])
def test_tensors_of_a_body_that_can_not_be_written_to_are_copies(held: Callable[[bytes], Buffer]) -> None:
    body = bytes(save(MATRIX))
    found = decode(held(body))
    assert_same(found, MATRIX)
    for array in found.values():
        assert array.flags.writeable
        array[...] = 0
    assert body == save(MATRIX)


@pytest.mark.parametrize("held", [bytes, bytearray, in_numpy])
@pytest.mark.parametrize("shift", range(8))
def test_tensors_at_any_address_are_right_aligned_and_writable(shift: int, held: Callable[[bytes], Buffer]) -> None:
    arrays = {"logits": any_bits("F64", (3, 4)), "labels": any_bits("I16", (3,)), "grad_output": any_bits("F32", ())}
    body = bytes(save(arrays))
    start = 8 + int.from_bytes(body[:8], "little")
    text = body[8:start] + b" " * shift
    found = decode(held(a_file(text, body[start:])))
    assert_same(found, arrays)
    for array in found.values():
        assert array.flags.aligned
        assert array.flags.writeable
        assert array.__array_interface__["data"][0] % array.itemsize == 0


def test_a_file_without_tensors_is_read_as_nothing() -> None:
    assert decode(a_file({})) == {}
    assert decode(a_file({"__metadata__": {}})) == {}


METADATA = [
    pytest.param(b"{}", id="empty"),
    pytest.param(b"null", id="null"),
    pytest.param(b"3", id="number"),
    pytest.param(b"[[], {}]", id="list"),
    pytest.param(b'{"logits": {"dtype": "X"}, "labels": 1e9}', id="names-of-tensors"),
    pytest.param(b'{"a": "' + b"x" * 60_000 + b'"}', id="long"),
    pytest.param(b'{"a": "\xf0\x9f\x8d\x8b \\u0000"}', id="unicode"),
]


@pytest.mark.parametrize("metadata", METADATA)
def test_metadata_is_ignored_whatever_it_is(metadata: bytes) -> None:
    text = b'{"__metadata__": %s, "logits": %s}' % (metadata, json.dumps(entry()).encode())
    assert_same(decode(a_file(text, b"\0\0\x80\x3f")), {"logits": np.ones(1, np.float32)})


@pytest.mark.parametrize("filler", [pytest.param(" ", id="blanks"), pytest.param("x", id="metadata")])
def test_a_header_may_have_64_kib_and_no_more(filler: str) -> None:
    def padded(size: int) -> bytes:
        bare = {"logits": entry(), "__metadata__": {"a": ""}}
        missing = size - len(json.dumps(bare))
        if filler == " ":
            return json.dumps(bare).encode() + b" " * missing
        return json.dumps({**bare, "__metadata__": {"a": filler * missing}}).encode()

    assert MAX_HEADER_BYTES == len(padded(MAX_HEADER_BYTES)) == 65_536
    assert_same(decode(a_file(padded(MAX_HEADER_BYTES), bytes(4))), {"logits": np.zeros(1, np.float32)})
    with pytest.raises(MalformedTensors, match="65537"):
        decode(a_file(padded(MAX_HEADER_BYTES + 1), bytes(4)))


def with_logits(more: bytes) -> bytes:
    """Header of good logits, and something behind them."""
    return b'{"logits": %s, %s}' % (json.dumps(entry()).encode(), more)


FOUR = bytes(4)
EIGHT = bytes(8)
NINES, MORE_NINES = b"9" * 300, b"9" * 4200
PAIR = {"labels": entry("I32", (1,), (4, 8))}

HOSTILE = [
    pytest.param(b"", MalformedTensors, [], id="nothing"),
    pytest.param(bytes(7), MalformedTensors, [], id="seven-bytes"),
    pytest.param(bytes(8), MalformedTensors, [], id="header-of-nothing"),
    pytest.param(a_file({}, length=2**63), MalformedTensors, [], id="length-2^63"),
    pytest.param(a_file({}, length=2**64 - 1), MalformedTensors, [], id="length-2^64-1"),
    pytest.param(a_file({}, length=2**64 - 8), MalformedTensors, [], id="length-that-wraps-to-0"),
    pytest.param(a_file({}, length=3), MalformedTensors, [], id="length-beyond-the-body"),
    pytest.param(a_file({}, length=1), MalformedTensors, [], id="length-cuts-the-header"),
    pytest.param(a_file({"logits": entry()}, FOUR)[:-5], MalformedTensors, [], id="cut-in-the-header"),
    pytest.param(a_file({"logits": entry()}, FOUR)[:-1], MalformedTensors, [], id="cut-in-the-data"),
    pytest.param(a_file(b"x" * (MAX_HEADER_BYTES + 1)), MalformedTensors, [], id="header-too-long"),
    pytest.param(a_file(b"garbage!"), MalformedTensors, [], id="not-json"),
    pytest.param(a_file(b"{} x"), MalformedTensors, [], id="trailing-letter"),
    pytest.param(a_file(b"{}\0\0"), MalformedTensors, [], id="trailing-nul"),
    pytest.param(a_file(b" {}"), MalformedTensors, [], id="leading-blank"),
    pytest.param(a_file(b"\n{}"), MalformedTensors, [], id="leading-line-break"),
    pytest.param(a_file(b"\xef\xbb\xbf{}"), MalformedTensors, [], id="byte-order-mark"),
    pytest.param(a_file("{}".encode("utf-16")), MalformedTensors, [], id="utf-16"),
    pytest.param(a_file(b'{"\xff": 1}'), MalformedTensors, [], id="not-utf-8"),
    pytest.param(a_file(b'{"__metadata__": "\xed\xa0\x80"}'), MalformedTensors, [], id="surrogate-in-utf-8"),
    pytest.param(a_file(b'{"__metadata__": NaN}'), MalformedTensors, [], id="bare-nan"),
    pytest.param(a_file(b'{"__metadata__": -Infinity}'), MalformedTensors, [], id="bare-infinity"),
    pytest.param(a_file(b"null"), MalformedTensors, [], id="null"),
    pytest.param(a_file(b"[]"), MalformedTensors, [], id="list"),
    pytest.param(a_file(b'"{}"'), MalformedTensors, [], id="string"),
    pytest.param(a_file(b"[" * 60_000), MalformedTensors, [], id="deep-and-open"),
    pytest.param(a_file(b'{"__metadata__":' + b"[" * 30_000 + b"]" * 30_000 + b"}"), MalformedTensors, [], id="deep"),
    pytest.param(a_file(b'{"a":' * 10_000 + b"1" + b"}" * 10_000), MalformedTensors, [], id="deep-objects"),
    pytest.param(a_file(b'{"__metadata__": %s}' % (b"9" * 60_000)), MalformedTensors, [], id="60000-digits"),
    pytest.param(
        a_file(b'{"__metadata__": 1, "__metadata__": 2}'), DuplicateField, ["#/__metadata__"], id="twice-meta"
    ),
    pytest.param(
        a_file(with_logits(b'"logits": %s' % json.dumps(entry()).encode()), FOUR),
        DuplicateField,
        ["#/logits"],
        id="name-twice-with-the-same-range",
    ),
    pytest.param(
        a_file(with_logits(b'"l\\u006fgits": %s' % json.dumps(entry(offsets=(4, 8))).encode()), EIGHT),
        DuplicateField,
        ["#/logits"],
        id="name-twice-written-otherwise",
    ),
    pytest.param(
        a_file(b'{"logits": {"dtype": "F64", "dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', FOUR),
        DuplicateField,
        ["#/logits/dtype"],
        id="key-twice",
    ),
    pytest.param(a_file({"extra": entry()}, FOUR), UnknownField, ["#/extra"], id="unknown-name"),
    pytest.param(a_file({"Logits": entry()}, FOUR), UnknownField, ["#/Logits"], id="wrong-case"),
    pytest.param(a_file({"": entry()}, FOUR), UnknownField, ["#/"], id="no-name"),
    pytest.param(a_file({"reduction": entry()}, FOUR), UnknownField, ["#/reduction"], id="an-option"),
    pytest.param(a_file({"a/b~c d": entry()}, FOUR), UnknownField, ["#/a~1b~0c%20d"], id="name-to-escape"),
    pytest.param(a_file({"x" * 9999: entry()}, FOUR), UnknownField, ["#/" + "x" * 64], id="long-name"),
    pytest.param(a_file(b'{"\\ud800": 1}'), MalformedTensors, [], id="lone-surrogate-as-a-name"),
    pytest.param(a_file(b'{"logits": {"\\ud800": 1}}'), MalformedTensors, [], id="lone-surrogate-as-a-key"),
    pytest.param(
        a_file({f"{number}": entry() for number in range(100)}, FOUR), UnknownField, ["#/0"], id="100-tensors"
    ),
    pytest.param(
        a_file({f"{number}": entry() for number in range(100_000)}, FOUR), MalformedTensors, [], id="100000-tensors"
    ),
    pytest.param(a_file({"logits": None}), MalformedTensors, ["#/logits"], id="entry-null"),
    pytest.param(a_file({"logits": [1]}), MalformedTensors, ["#/logits"], id="entry-list"),
    pytest.param(a_file({"logits": {}}), MissingField, ["#/logits/dtype"], id="entry-empty"),
    pytest.param(
        a_file({"logits": {"dtype": "F32", "data_offsets": [0, 4]}}, FOUR),
        MissingField,
        ["#/logits/shape"],
        id="no-shape",
    ),
    pytest.param(
        a_file({"logits": {"dtype": "F32", "shape": [1]}}, FOUR), MissingField, ["#/logits/data_offsets"], id="no-range"
    ),
    pytest.param(
        a_file({"logits": {**entry(), "order": "C"}}, FOUR), UnknownField, ["#/logits/order"], id="unknown-key"
    ),
    *(
        pytest.param(
            a_file({"logits": entry(offsets=offsets)}, FOUR), MalformedTensors, ["#/logits/data_offsets"], id=name
        )
        for name, offsets in {
            "range-reversed": [4, 0],
            "range-negative": [-4, 0],
            "range-negative-to-the-end": [0, -4],
            "range-does-not-begin-at-0": [1, 5],
            "range-of-floats": [0.0, 4.0],
            "range-with-an-exponent": [0, 4e0],
            "range-of-booleans": [False, True],
            "range-of-strings": ["0", "4"],
            "range-of-nulls": [None, None],
            "range-of-one": [4],
            "range-of-three": [0, 4, 4],
            "range-empty": [],
            "range-an-object": {"0": 0, "1": 4},
            "range-a-number": 4,
            "range-nested": [[0], [4]],
            "range-null": None,
        }.items()
    ),
    *(
        pytest.param(a_file({"logits": entry(offsets=offsets)}, FOUR), MalformedTensors, [], id=name)
        for name, offsets in {
            "range-beyond-the-data": [0, 8],
            "range-far-beyond-the-data": [0, 2**64],
            "range-of-nothing-before-trailing-bytes": [0, 0],
            "range-that-leaves-a-byte": [0, 3],
        }.items()
    ),
    pytest.param(a_file({"logits": entry()}, EIGHT), MalformedTensors, [], id="trailing-bytes"),
    pytest.param(a_file({}, b"x"), MalformedTensors, [], id="bytes-of-nobody"),
    pytest.param(
        a_file({"logits": entry("F32", [2], [0, 8]), **PAIR}, EIGHT),
        MalformedTensors,
        ["#/labels/data_offsets"],
        id="overlap",
    ),
    pytest.param(
        a_file({"logits": entry(), "labels": entry("I32")}, FOUR),
        MalformedTensors,
        ["#/labels/data_offsets"],
        id="same",
    ),
    pytest.param(
        a_file({"logits": entry(), "labels": entry("I32", [1], [5, 9])}, bytes(9)),
        MalformedTensors,
        ["#/labels/data_offsets"],
        id="hole",
    ),
    pytest.param(
        a_file({"logits": entry(), "labels": entry("I32", [0], [2, 2])}, FOUR),
        MalformedTensors,
        ["#/labels/data_offsets"],
        id="empty-tensor-inside-another",
    ),
    *(
        pytest.param(a_file({"logits": entry(shape=shape)}, FOUR), InvalidValue, ["#/logits/data"], id=name)
        for name, shape in {
            "shape-of-too-much": [2],
            "shape-of-nothing": [0],
            "shape-that-overflows": [2**62, 2],
            "shape-that-wraps-to-0": [2**32, 2**32],
            "shape-that-wraps-to-4-bytes-over-axes-that-fit": [3, 3_074_457_345_618_258_603],
            "shape-that-wraps-to-4-bytes": [2**62 + 1, 1],
            "shape-that-wraps-to-4-bytes-over-two-axes": [2**32 + 1, 2**32 - 1, 2**62],
        }.items()
    ),
    *(
        pytest.param(a_file({"logits": entry(shape=shape)}, FOUR), InvalidValue, ["#/logits/shape"], id=name)
        for name, shape in {
            "shape-negative": [-1],
            "shape-negative-twice": [-1, -1],
            "shape-of-floats": [1.0],
            "shape-of-booleans": [True],
            "shape-of-strings": ["1"],
            "shape-of-nulls": [None],
            "shape-nested": [[1]],
            "shape-of-64-bits": [2**63],
            "shape-a-number": 1,
            "shape-an-object": {"0": 1},
            "shape-null": None,
        }.items()
    ),
    *(
        pytest.param(a_file({"logits": entry(shape=shape, offsets=[0, 0])}), InvalidValue, ["#/logits/shape"], id=name)
        for name, shape in {
            "empty-but-huge": [0, 2**63],
            "empty-but-many-rows": [2**20 + 1, 0],
            "empty-but-a-product": [2**11, 0, 2**11],
        }.items()
    ),
    pytest.param(a_file({"logits": entry(shape=[1] * 17)}, FOUR), ShapeMismatch, ["#/logits/shape"], id="rank-17"),
    pytest.param(
        a_file({"logits": entry(shape=[1] * 20_000)}, FOUR), ShapeMismatch, ["#/logits/shape"], id="rank-20000"
    ),
    pytest.param(
        a_file({"logits": entry("F64", [2**37], [0, 2**40])}, bytes(56)), MalformedTensors, [], id="one-tebibyte"
    ),
    pytest.param(
        a_file({"logits": entry("F64", [2**37], [0, 56])}, bytes(56)),
        InvalidValue,
        ["#/logits/data"],
        id="one-tebibyte-by-its-shape",
    ),
    pytest.param(
        a_file(b'{"logits":{"dtype":"F32","shape":[%s],"data_offsets":[0,4]}}' % NINES, FOUR),
        InvalidValue,
        ["#/logits/shape"],
        id="size-of-300-digits",
    ),
    pytest.param(
        a_file(b'{"logits":{"dtype":"F32","shape":[%s],"data_offsets":[0,4]}}' % b",".join([NINES] * 15), FOUR),
        InvalidValue,
        ["#/logits/shape"],
        id="product-of-4500-digits",
    ),
    pytest.param(
        a_file(b'{"logits":{"dtype":"F32","shape":[1],"data_offsets":[%s,%s]}}' % (NINES, NINES), FOUR),
        MalformedTensors,
        ["#/logits/data_offsets"],
        id="offsets-of-300-digits",
    ),
    pytest.param(
        a_file(b'{"logits":{"dtype":"F32","shape":[%s],"data_offsets":[0,4]}}' % b",".join([MORE_NINES] * 15), FOUR),
        MalformedTensors,
        [],
        id="product-of-63000-digits",
    ),
    pytest.param(
        a_file(b'{"logits":{"dtype":"F32","shape":[1],"data_offsets":[%s,%s]}}' % (MORE_NINES, MORE_NINES), FOUR),
        MalformedTensors,
        [],
        id="offsets-of-4200-digits",
    ),
    *(
        pytest.param(a_file({"logits": entry(dtype)}, FOUR), UnsupportedDtype, ["#/logits/dtype"], id=f"dtype-{name}")
        for name, dtype in {
            "lower-case": "f32",
            "boolean": "BOOL",
            "complex": "C64",
            "8-bit-float": "F8_E4M3",
            "4-bit-float": "F4",
            "integer": "I32",
            "empty": "",
            "long": "F32" * 5000,
            "number": 32,
            "null": None,
            "list": ["F32"],
            "object": {"F32": 1},
            "with-a-blank": "F32 ",
        }.items()
    ),
    pytest.param(
        a_file(b'{"logits":{"dtype":"\\ud800","shape":[1],"data_offsets":[0,4]}}', FOUR),
        MalformedTensors,
        [],
        id="dtype-a-lone-surrogate",
    ),
    *(
        pytest.param(
            a_file({name: entry("F16", [2], [0, 4])}, FOUR), UnsupportedDtype, [f"#/{name}/dtype"], id=f"half-{name}"
        )
        for name in ("weight", "sample_weight", "grad_output")
    ),
]


@pytest.mark.parametrize(("body", "error", "pointers"), HOSTILE)
def test_hostile_headers_are_refused_by_name_and_cost_nothing(
    body: bytes, error: type[ServiceError], pointers: list[str]
) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ServiceError) as raised:
            decode(body)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert type(raised.value) is error
    assert status_of(raised.value) in {400, 422}
    problem = document(raised.value, "id")
    assert len(problem) <= 4096
    assert [finding["pointer"] for finding in json.loads(problem).get("errors", [])] == pointers
    assert peak_bytes < MAX_PEAK_BYTES


FULL = [
    pytest.param(b'{"__metadata__":[' + b",".join([b"[]"] * 21_000) + b"]}", None, id="lists"),
    pytest.param(b'{"__metadata__":[' + b",".join([b"{}"] * 21_000) + b"]}", None, id="objects"),
    pytest.param(b"{" + b",".join(b'"%x":1' % name for name in range(7000)) + b"}", UnknownField, id="names"),
    pytest.param(b'{"logits":{' + b",".join(b'"%x":1' % name for name in range(7000)) + b"}}", UnknownField, id="keys"),
]


@pytest.mark.parametrize(("header", "error"), FULL)
def test_the_fullest_header_costs_what_64_kib_of_json_cost(header: bytes, error: type[ServiceError] | None) -> None:
    """Three mebibytes of Python objects, whatever it says; nothing grows with what it claims."""
    body = a_file(header)
    assert len(header) <= MAX_HEADER_BYTES
    tracemalloc.start()
    try:
        found = outcome(body)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == {} if error is None else isinstance(found, error)
    assert peak_bytes < 3 * MAX_PEAK_BYTES


def outcome(body: Buffer) -> dict[str, Array] | ServiceError:
    """Tensors or the refusal, which must be one that can be told; anything else is raised."""
    refusal: ServiceError | None = None
    try:
        return decode(body)
    except ServiceError as error:
        refusal = error
    assert status_of(refusal) in {400, 422}
    assert len(document(refusal, "id")) <= 4096
    return refusal


def check(body: bytes) -> bool:
    """Check that a body is refused in order, or read such that it can be written again."""
    found = outcome(bytearray(body))
    if isinstance(found, ServiceError):
        return False
    assert_same(decode(written(found)), found)
    return True


GOOD = bytes(
    save(
        {"logits": np.array([[1, 2], [3, 4]], np.float16), "labels": np.array([0, 1], np.int8), "weight": np.ones(2)},
        {"by": "us"},
    )
)


def test_every_prefix_of_a_good_file_is_malformed() -> None:
    assert check(GOOD)
    for length in range(len(GOOD)):
        assert isinstance(outcome(GOOD[:length]), MalformedTensors)


@pytest.mark.parametrize(
    "replacement", [b"", b"\x00", b"\xff", b'"', b"]", b"9", b"-", b",", b"\\", b" ", b"{}", b"1e9", b"null"], ids=repr
)
def test_every_mutation_of_a_good_file_is_read_or_refused(replacement: bytes) -> None:
    header_length = int.from_bytes(GOOD[:8], "little")
    accepted = 0
    for position in range(len(GOOD)):
        mutated = GOOD[:position] + replacement + GOOD[position + 1 :]
        accepted += check(mutated)
        if 8 <= position < 8 + header_length:  # once more with the right length, so that the header is reached
            accepted += check(a_file(mutated[8 : 8 + header_length - 1 + len(replacement)], GOOD[8 + header_length :]))
    assert accepted < len(GOOD)


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_noise_is_refused(noise: bytes) -> None:
    check(noise)
    check(a_file(noise, noise))


EDITS = st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.binary(max_size=3)), min_size=1, max_size=6)


@given(EDITS)
@settings(max_examples=300, deadline=None)
def test_a_file_with_random_edits_is_read_or_refused(edits: list[tuple[int, bytes]]) -> None:
    edited = bytearray(GOOD)
    for position, replacement in edits:
        edited[position : position + 1] = replacement
    check(bytes(edited))


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-2, 9),
    st.integers(2**62, 2**66),
    st.floats(),
    st.text(st.characters(codec=None), max_size=6),
    st.sampled_from([*BY_NAME, "BOOL", "C64", "f32"]),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner), max_leaves=6
)
RANGES = st.tuples(st.integers(-1, 12), st.integers(-1, 12)).map(sorted)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(list(BY_NAME)) | VALUES,
        "shape": st.lists(st.integers(0, 4), max_size=3) | VALUES,
        "data_offsets": RANGES | VALUES,
    },
    optional={"extra": VALUES},
)
HEADERS = st.dictionaries(
    st.sampled_from([*DTYPES_OF, "__metadata__"]) | st.text(max_size=4), ENTRIES | VALUES, max_size=3
)


@given(HEADERS, st.binary(max_size=16))
@settings(max_examples=200, deadline=None)
@example({"logits": entry("F64", [], [0, 8])}, EIGHT)
@example({"logits": entry("\udfff")}, FOUR)
@example({"logits": entry(shape=[10**4000, 10**4000])}, FOUR)
def test_any_header_is_read_or_refused(header: dict[str, Any], data: bytes) -> None:
    check(a_file(header, data))


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Array]:
    """Arrays of any permitted dtype and small shape, any bits in them."""
    names = draw(st.lists(st.sampled_from(list(DTYPES_OF)), unique=True, min_size=1))
    arrays = {}
    for name in names:
        dtype = BY_NAME[draw(st.sampled_from(DTYPES_OF[name]))]
        shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))
        size = int(np.prod(shape)) * dtype.itemsize
        arrays[name] = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype).reshape(shape)
    return arrays


@given(requests(), st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2))
@settings(max_examples=100, deadline=None)
def test_random_tensors_go_to_the_official_package_and_back(arrays: dict[str, Array], metadata: dict[str, str]) -> None:
    assert_same(decode(save(arrays, metadata)), arrays)
    there = safetensors.torch.load(written(arrays))
    assert_same(decode(bytearray(safetensors.torch.save(there))), arrays)
