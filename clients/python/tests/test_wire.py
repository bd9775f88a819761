"""Our bodies beside those of the safetensors library and of the json module."""

import base64
import json
import struct
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from losseval import wire
from losseval.arrays import Tensor

RNG = np.random.default_rng(1)
ARRAYS: dict[str, Any] = {
    "logits": RNG.standard_normal((3, 5)).astype(np.float16),
    "labels": RNG.integers(0, 5, 3),
    "weight": RNG.random(5),
    "sample_weight": RNG.random(3).astype(np.float32),
}


def tensors_of(arrays: dict[str, Any]) -> dict[str, Tensor]:
    return {name: Tensor.of(name, array) for name, array in arrays.items()}


def test_the_safetensors_library_reads_what_we_write() -> None:
    parts = wire.encode_safetensors(tensors_of(ARRAYS))
    read = safetensors.numpy.load(b"".join(parts))
    assert read.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype == array.dtype


def test_parts_are_the_memory_of_the_arrays_and_every_tensor_is_aligned() -> None:
    arrays = {"logits": np.zeros(3, np.uint8), "labels": np.zeros(3, np.int64), "weight": np.zeros(3, np.int16)}
    header, *parts = wire.encode_safetensors(tensors_of(arrays))
    for name, part in zip(("labels", "weight", "logits"), parts, strict=True):
        assert np.shares_memory(np.frombuffer(part, np.uint8), arrays[name])
    assert len(header) % 8 == 0
    assert [len(part) for part in parts] == [24, 6, 3]


def test_we_read_what_the_safetensors_library_writes_without_copying_it() -> None:
    body = bytearray(safetensors.numpy.save(ARRAYS, {"summary": '{"accuracy": 0.5, "skill": "NaN"}', "warnings": "[]"}))
    values = wire.decode(wire.SAFETENSORS, body)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(values[name], array)
        assert np.shares_memory(values[name], np.frombuffer(body, np.uint8))
        assert values[name].flags.writeable
    assert values["warnings"] == []
    assert values["summary"]["accuracy"] == 0.5
    assert np.isnan(values["summary"]["skill"])


@pytest.mark.parametrize("length", range(0, 200, 7))
def test_a_body_cut_short_is_an_error(length: int) -> None:
    body = safetensors.numpy.save({"losses": np.ones(20)})
    with pytest.raises((ValueError, struct.error)):
        wire.decode(wire.SAFETENSORS, bytearray(body[:length]))


def test_json_says_dtype_shape_and_bytes() -> None:
    (body,) = wire.encode_json(tensors_of(ARRAYS), {"temperature": 2.0, "include": ("loss",)})
    fields = json.loads(bytes(body))
    assert (fields.pop("temperature"), fields.pop("include"), fields.pop("encoding")) == (2.0, ["loss"], "base64")
    assert fields.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert fields[name]["shape"] == list(array.shape)
        assert base64.b64decode(fields[name]["data"]) == array.tobytes()


def test_json_answers_become_arrays_and_floats() -> None:
    data = base64.b64encode(np.array([1, 2], "<f4").tobytes()).decode()
    answer = {
        "loss": "NaN",
        "losses": {"dtype": "F32", "shape": [2], "data": data},
        "summary": {"skill": "-Infinity", "per_class": {"count": [1, 2], "nll_sum": [0.5, "NaN"]}},
        "warnings": [{"code": "nonfinite_loss", "detail": "text", "count": 1, "first": [0]}],
    }
    values = wire.decode(wire.JSON, bytearray(json.dumps(answer).encode()))
    assert np.isnan(values["loss"])
    np.testing.assert_array_equal(values["losses"], np.array([1, 2], np.float32))
    assert values["summary"]["skill"] == -np.inf
    np.testing.assert_array_equal(values["summary"]["per_class"]["count"], [1, 2])
    np.testing.assert_array_equal(values["summary"]["per_class"]["nll_sum"], [0.5, np.nan])
    assert values["warnings"] == answer["warnings"]


def test_another_type_is_named() -> None:
    with pytest.raises(ValueError, match="text/html"):
        wire.decode("text/html", bytearray(b"<html>"))
