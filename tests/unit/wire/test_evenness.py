"""Evenness by marks, in both ways of looking, against a walk through the lists."""

import json
import math
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.errors import ShapeMismatch
from service.wire import evenness, json_body
from service.wire.evenness import lists_of

WAYS = [pytest.param(evenness._ManyLists, id="marks"), pytest.param(evenness._LongLists, id="counts")]
NESTED = st.lists(
    st.recursive(st.integers(-9, 99), lambda inner: st.lists(inner, max_size=3), max_leaves=12), max_size=4
)
EVEN = st.lists(st.integers(0, 3), min_size=1, max_size=3)


def has_shape(value: Any, shape: tuple[int, ...]) -> bool:  # noqa: ANN401
    if not shape:
        return not isinstance(value, list)
    return isinstance(value, list) and len(value) == shape[0] and all(has_shape(item, shape[1:]) for item in value)


def numbers_in(value: Any) -> int:  # noqa: ANN401
    return sum(map(numbers_in, value)) if isinstance(value, list) else 1


def test_a_number_beside_lists_of_one_is_found_in_a_long_text() -> None:
    body = b'{"logits":[[[1],[2]],[[],7,[3]]],' + b" " * 6000 + b'"labels":[[0],[1]]}'
    with pytest.raises(ShapeMismatch, match="ragged"):
        json_body.decode(body, ())


def first_shape(value: list[Any]) -> tuple[int, ...]:
    return (len(value), *(first_shape(value[0]) if value and isinstance(value[0], list) else ()))


def of_shape(shape: list[int]) -> Any:  # noqa: ANN401
    return [of_shape(shape[1:]) for _ in range(shape[0])] if shape else 7


@pytest.mark.parametrize("way", WAYS)
@settings(deadline=None)
@given(array=NESTED | EVEN.map(of_shape), blanks=st.sampled_from([None, 1]))
@example(array=[[1, 2], [3, [4]]], blanks=None)
@example(array=[[], [1]], blanks=None)
@example(array=[[[1], [2]], [[3], 5, []]], blanks=None)
def test_even_is_what_has_the_shape_of_its_first_elements(way: Any, array: list[Any], blanks: int | None) -> None:  # noqa: ANN401
    shape = first_shape(array)
    text = json.dumps({"a": [1], "array": array, "b": [[1, 2], [3, 4]]}, indent=blanks).encode()
    lists = way(text)
    lists.skip()
    is_even = lists.are_even(shape) and numbers_in(array) == math.prod(shape)
    if way is evenness._LongLists and shape[-1] < 2:  # too short to be certain of
        assert not is_even
    else:
        assert is_even == has_shape(array, shape)
    if is_even:
        assert lists.are_even((2, 2)), "it did not pass what it looked at"


@pytest.mark.parametrize("way", WAYS)
def test_sizes_that_can_not_be_are_refused_before_anything_is_built(way: Any) -> None:  # noqa: ANN401
    assert not way(b'{"a":[[1]]}').are_even((10**9, 10**9, 1))


@pytest.mark.parametrize("rows", [1, 40, 4000])
@pytest.mark.parametrize("fault", [None, "a number more", "a number less", "a list in a list"])
def test_long_bodies_are_looked_at_in_either_way(rows: int, fault: str | None) -> None:
    array: list[list[Any]] = [[1] * (80_000 // rows) for _ in range(rows)]
    shape = (rows, len(array[0]))
    match fault:
        case "a number more":
            array[-1].append(1)
        case "a number less":
            array[rows // 2].pop()
        case "a list in a list":
            array[-1][-1] = [1]
    lists = lists_of(json.dumps({"array": array}).encode())
    assert type(lists) is (evenness._ManyLists if rows == 4000 else evenness._LongLists)
    assert lists.are_even(shape) == (fault is None)
