"""Predictions of long rows, which numpy finds, against a plain search."""

import math

import numpy as np
import pytest

from service.engine.device import TorchDevice
from service.loss.options import LossOptions
from service.loss.validation import SizeLimits, validate


@pytest.mark.parametrize(
    "classes", [pytest.param(63, id="short"), pytest.param(64, id="long"), pytest.param(200, id="longer")]
)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_the_first_of_equals_is_predicted_and_no_number_before_all(classes: int, dtype: str) -> None:
    rows = np.random.default_rng(3).integers(0, 3, (300, classes)).astype(dtype)  # ties in every row
    rows[1] = -math.inf
    rows[2, 40] = rows[2, 50] = math.nan
    rows[3, 9] = rows[3, 20] = math.inf
    evaluation = validate(
        {"logits": rows, "labels": np.zeros(300, np.int64)}, LossOptions(include=("predictions",)), SizeLimits()
    )
    found = TorchDevice("cpu", threads=1).compute([evaluation]).rows["predictions"]
    lists = [row.tolist() for row in rows]
    expected = [next((i for i, one in enumerate(row) if math.isnan(one)), row.index(max(row))) for row in lists]
    assert found.tolist() == expected
