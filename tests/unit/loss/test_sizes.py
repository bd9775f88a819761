"""What a request will hold and take, known from its shapes before anything is computed."""

import numpy as np
import pytest

from service.loss.evaluation import answer_size, working_bytes
from service.loss.options import LossOptions, Output


@pytest.mark.parametrize(
    ("shape", "include", "class_axis", "expected"),
    [
        pytest.param((4, 3), ("loss",), 1, 0, id="a-number"),
        pytest.param((4, 3), ("loss", "losses", "summary"), 1, 4, id="a-column"),
        pytest.param((4, 3), ("gradients", "probabilities", "nll"), 1, 28, id="matrices"),
        pytest.param((2, 3, 5), ("gradients", "losses"), 1, 40, id="axis-1"),
        pytest.param((2, 3, 5), ("losses",), -1, 6, id="last-axis"),
        pytest.param((3,), ("losses",), 1, 1, id="a-sample"),
        pytest.param((0, 3), ("gradients", "losses"), 1, 0, id="empty"),
    ],
)
def test_the_numbers_of_an_answer(
    shape: tuple[int, ...], include: tuple[Output, ...], class_axis: int, expected: int
) -> None:
    assert answer_size(shape, LossOptions(include=include, class_axis=1 if class_axis == 1 else -1)) == expected


def test_wider_outputs_and_more_rows_need_more_bytes() -> None:
    half = np.zeros((100, 1000), np.float16)
    plain, wide = LossOptions(include=("gradients",)), LossOptions(include=("gradients",), gradient_dtype="F64")
    assert working_bytes(half, plain, 100_000) == 400_000 + 100 * 64
    assert (
        working_bytes(half, wide, 100_000) == working_bytes(half.astype(np.float64), plain, 100_000) == 800_000 + 6400
    )
    assert working_bytes(half.reshape(50_000, 2), LossOptions(include=("summary",)), 0) == 50_000 * 128
