"""Strings for NaN and the infinities, in and out."""

import math

import numpy as np
import orjson
import pytest

from service.wire import json_body
from service.wire.nonfinite import encode_array

VALUES = [1.5, math.nan, -math.inf, math.inf, 0.1, math.nan]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_non_finite_elements_are_written_as_strings_in_their_places(dtype: type) -> None:
    written = orjson.loads(encode_array(np.array(VALUES, dtype).reshape(2, 3)))
    assert written == [[1.5, "NaN", "-Infinity"], ["Infinity", 0.1, "NaN"]]


def test_what_is_written_is_read_back_exactly() -> None:
    generator = np.random.default_rng(0)
    array = generator.normal(size=(50, 7)).astype(np.float32)
    array[generator.random(array.shape) < 0.2] = np.nan
    array[generator.random(array.shape) < 0.2] = -np.inf
    body = b'{"logits":' + encode_array(array) + b"}"
    arrays, _ = json_body.decode(body, ())
    np.testing.assert_array_equal(arrays["logits"], array)
    assert arrays["logits"].dtype == np.float32
