"""Answers in JSON come in parts of bounded size, which together are one document."""

import re
from typing import Any

import ml_dtypes
import numpy as np
import orjson
import pytest

from service.dtypes import Array, Buffer
from service.errors import ShapeMismatch
from service.wire import json_body

GENERATOR = np.random.default_rng(3)
PART_ELEMENTS = 1 << 16
NUMBER = re.compile(rb'[^][,{}:"]+')

SHAPES = [
    pytest.param((PART_ELEMENTS,), id="one-part"),
    pytest.param((PART_ELEMENTS + 1,), id="one-part-and-a-number"),
    pytest.param((3 * PART_ELEMENTS + 5,), id="one-axis"),
    pytest.param((1, PART_ELEMENTS + 1), id="one-long-row"),
    pytest.param((3, PART_ELEMENTS - 1), id="rows-of-almost-a-part"),
    pytest.param((3, PART_ELEMENTS), id="rows-of-a-part"),
    pytest.param((2, 2 * PART_ELEMENTS + 3), id="rows-of-parts"),
    pytest.param((2 * PART_ELEMENTS + 3, 1), id="many-short-rows"),
    pytest.param((50_000, 3), id="rows-that-do-not-divide-a-part"),
    pytest.param((1, 1, 1, PART_ELEMENTS + 1), id="long-row-four-deep"),
    pytest.param((2, 3, 40_000), id="long-rows-three-deep"),
    pytest.param((40_000, 2, 3), id="short-rows-three-deep"),
    pytest.param((300, 1, 700), id="single-in-the-middle"),
]


def floats(shape: tuple[int, ...]) -> Array:
    """Numbers of all sizes, some of them not finite."""
    array = (GENERATOR.normal(size=shape) * 10.0 ** GENERATOR.integers(-30, 30, shape)).astype(np.float32)
    array.reshape(-1)[GENERATOR.integers(0, array.size, 20)] = GENERATOR.choice([np.nan, np.inf, -np.inf], 20)
    return array


def read(parts: list[Buffer]) -> dict[str, Any]:
    document: dict[str, Any] = orjson.loads(b"".join(parts))
    return document


def assert_is(written: object, array: Array) -> None:
    """Nested numbers that are the array, bit for bit."""
    found = np.array(written, np.float64 if array.dtype.kind == "f" else array.dtype)  # numpy reads "NaN", "Infinity"
    assert found.shape == array.shape
    np.testing.assert_array_equal(found.astype(array.dtype), array)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_large_array_is_written_in_parts_of_bounded_size(shape: tuple[int, ...]) -> None:
    array = floats(shape)
    parts = json_body.encode({"loss": 1.5, "gradients": array, "count": 3}, base64=False)
    document = read(parts)
    assert set(document) == {"loss", "gradients", "count"}
    assert (document["loss"], document["count"]) == (1.5, 3)
    assert_is(document["gradients"], array)
    assert max(len(NUMBER.findall(part)) for part in parts) <= PART_ELEMENTS


@pytest.mark.parametrize(
    "array",
    [
        pytest.param(floats((3, 50_000)).T, id="transposed"),
        pytest.param(np.moveaxis(floats((2, 300, 200)), -1, 1), id="classes-moved"),
        pytest.param(floats((2 * PART_ELEMENTS + 6,))[::-2], id="backwards"),
        pytest.param(np.broadcast_to(np.float32(0.1), (2, PART_ELEMENTS)), id="broadcast"),
        pytest.param(floats((2, 2 * PART_ELEMENTS + 2))[:, ::2], id="strided-long-rows"),
    ],
)
def test_a_large_array_that_is_not_contiguous_is_written_in_c_order(array: Array) -> None:
    assert_is(read(json_body.encode({"gradients": array}, base64=False))["gradients"], array)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64])
def test_a_large_array_of_any_dtype_is_written_exactly(dtype: type) -> None:
    array: Array = (GENERATOR.normal(size=(2, 40_000)) * 1000).astype(dtype)
    assert_is(read(json_body.encode({"losses": array}, base64=False))["losses"], array)


def test_a_large_array_of_bfloat16_is_written_exactly() -> None:
    array = GENERATOR.normal(size=(2, 40_000)).astype(ml_dtypes.bfloat16)
    assert_is(read(json_body.encode({"gradients": array}, base64=False))["gradients"], array.astype(np.float32))


@pytest.mark.parametrize(
    ("shape", "text"),
    [((), b"0.5"), ((1,), b"[0.5]"), ((1, 1), b"[[0.5]]"), ((0,), b"[]"), ((0, 3), b"[]"), ((2, 0), b"[[],[]]")],
)
def test_small_arrays_are_written_as_they_are_nested(shape: tuple[int, ...], text: bytes) -> None:
    array = np.full(shape, 0.5, np.float32)
    assert b"".join(json_body.encode({"losses": array}, base64=False)) == b'{"losses":' + text + b"}"


def test_arrays_within_a_mapping_are_nested_too() -> None:
    summary = {"accuracy": float("nan"), "calibration": {"count": np.arange(3), "sum": np.array([0.5, np.inf])}}
    assert read(json_body.encode({"summary": summary, "warnings": []}, base64=True)) == {
        "summary": {
            "accuracy": "NaN",
            "calibration": {
                "count": {"dtype": "I64", "shape": [3], "data": "AAAAAAAAAAABAAAAAAAAAAIAAAAAAAAA"},
                "sum": {"dtype": "F64", "shape": [2], "data": "AAAAAAAA4D8AAAAAAADwfw=="},
            },
        },
        "warnings": [],
    }


RAGGED = [
    pytest.param("[[1,2],[3],[4,5,6]]", id="as-many-numbers"),
    pytest.param("[[1,2],[3,[4]]]", id="list-among-numbers"),
    pytest.param("[[[1]],[[2,3]],[[]]]", id="as-many-numbers-three-deep"),
    pytest.param("[[],[1]]", id="one-where-none-was"),
    pytest.param("[[1],[]]", id="none-where-one-was"),
    pytest.param("[[1,2],[3,4],5,6]", id="numbers-for-a-list"),
    pytest.param("[[[1],[2]],[[3]],[[4]]]", id="short-in-the-middle"),
]
FRONTS = [
    pytest.param("", id="first"),
    pytest.param('"include":["loss","losses"],', id="behind-a-list"),
    pytest.param('"model":"[[,],[,],[,]]",', id="behind-a-string-like-it"),
    pytest.param('"model":"]","include":["loss","losses"],', id="behind-half-a-list-in-a-string"),
    pytest.param('"labels":{"dtype":"I8","shape":[1],"data":"AA=="},', id="behind-a-tensor-object"),
    pytest.param('"weight":[1,2],"sample_weight":[[1,2],[3,4]],', id="behind-arrays"),
]


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("ragged", RAGGED)
def test_uneven_nesting_is_found_whatever_comes_before_and_after(ragged: str, front: str) -> None:
    body = f'{{{front}"logits":{ragged},"grad_output":[[1,2],[3,4],[5,6]]}}'.encode()
    with pytest.raises(ShapeMismatch) as caught:
        json_body.decode(body, {"model", "include"})
    assert caught.value.errors[0].pointer.startswith("#/logits/")


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("shape", [(3, 2), (3, 1), (2, 1, 1), (1, 3, 2), (2, 0), (0,), (2, 3, 0)])
def test_even_nesting_is_read_whatever_comes_before(shape: tuple[int, ...], front: str) -> None:
    numbers = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    body = f'{{{front}"logits":{numbers.tolist()}}}'.encode()
    found = json_body.decode(body, {"model", "include"})[0]["logits"]
    assert found.shape == shape
    np.testing.assert_array_equal(found, numbers)
