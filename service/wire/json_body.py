"""JSON bodies: nested numbers and base64 tensor objects to numpy arrays, and results back.

simdjson parses and flattens nested numbers into a buffer, four times faster than any way through Python lists. What it
lets through is checked here: duplicate keys, a byte order mark, and uneven nesting, which `as_buffer` flattens. What it
refuses is explained by a strict slow parser (`json_errors`).
"""

import contextlib
import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import orjson
import simdjson

from ..dtypes import FLOATS, Array, Buffer, name_of
from ..errors import InvalidValue, MalformedJson, NumberOutOfRange, ShapeMismatch, UnknownField
from . import nonfinite
from .evenness import Lists, lists_of
from .json_errors import MAX_RANK, JsonPath, explain_element, explain_malformed, pointer, refuse_duplicates
from .tensor_object import check_keys, decode_tensor, encode_tensor

ARRAY_FIELDS = frozenset({"logits", "labels", "weight", "sample_weight", "grad_output"})
_NONFINITE_FIELDS = frozenset({"logits", "labels"})
_MAX_LIST = 64
_NULL = re.compile(rb"[:,\[]null")
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
_PART_ELEMENTS = 1 << 16
"""About two milliseconds of writing."""
_SAFE = 6e4
"""Numbers up to here fit every dtype; F16 ends at 65,504."""


def decode(body: Buffer, scalar_fields: Collection[str]) -> tuple[dict[str, Array], dict[str, object]]:
    """Reads a request.

    Nested logits become float32; nested labels int64, or, with the logits' rank, their dtype; the other arrays
    float64. Tensor objects keep their dtype. Fields that are null are left out.

    Args:
        body: The whole body.
        scalar_fields: The names, besides those of arrays, that may occur.

    Returns:
        The arrays, and the other fields as plain values, by name.

    Raises:
        MalformedJson, DuplicateField, UnknownField: 400.
        InvalidValue, NumberOutOfRange, UnsupportedDtype, ShapeMismatch: 422.
    """
    document = _Document(body)
    names = document.names(ARRAY_FIELDS, scalar_fields)
    values = {name: value for name in names if (value := document.root[name]) is not None}
    scalars = {name: _plain(name, value) for name, value in values.items() if name not in ARRAY_FIELDS}
    document.has_brackets_in_strings = any(map(_has_brackets, scalars.values()))
    arrays: dict[str, Array] = {}
    for name, value in values.items():
        if name in ARRAY_FIELDS:
            arrays[name] = document.array(name, value)
        else:
            document.lists_to_pass += isinstance(value, simdjson.Array)
    if "logits" in arrays:
        _settle_dtypes(arrays, document.nested)
    return arrays, scalars


def encode(values: Mapping[str, object], *, base64: bool) -> list[Buffer]:
    """Writes an answer as parts to be sent in order: arrays nested, or as tensor objects where `base64` is set.

    The parts of a nested array are bounded, as the interpreter's lock is held while each is written.
    """
    nested = {name: value for name, value in values.items() if isinstance(value, np.ndarray) and not base64}
    others = {name: value for name, value in values.items() if name not in nested}
    parts: list[Buffer] = [encode_value(others, base64=base64)[:-1]]
    for name, array in nested.items():
        parts.append(b'%b"%b":' % (b"," if len(parts) > 1 or others else b"", name.encode()))
        parts += _nested(array)
    return [*parts, b"}"]


def encode_value(value: object, *, base64: bool) -> bytes:
    """Writes numbers, strings, lists and mappings, and the arrays in them."""

    def encode_array(array: Array) -> object:
        return encode_tensor(array) if base64 and array.ndim else orjson.Fragment(b"".join(_nested(array)))

    text = orjson.dumps(value, default=encode_array)
    # orjson writes non-finite numbers as null, which no other value is.
    return orjson.dumps(nonfinite.named(value), default=encode_array) if _NULL.search(text) else text


def _nested(array: Array) -> Iterator[Buffer]:
    if array.ndim == 0:  # ascontiguousarray makes a scalar a list of one, whose brackets go again
        yield _encoded(array)[1:-1]
    elif array.size <= _PART_ELEMENTS:
        yield _encoded(array)
    else:
        rows = _PART_ELEMENTS * len(array) // array.size
        separator = b"["
        for start in range(0, len(array), rows or 1):
            yield separator
            separator = b","
            if rows:
                yield memoryview(_encoded(array[start : start + rows]))[1:-1]
            else:
                yield from _nested(array[start])
        yield b"]"


def _encoded(array: Array) -> bytes:
    if array.dtype.itemsize == 2:  # noqa: PLR2004 - F16, BF16: every 16-bit number is a float32, which orjson knows
        array = array.astype(np.float32)
    return nonfinite.encode_array(np.ascontiguousarray(array))


class _Document:
    """A parsed body, and what must hold of it as a whole."""

    def __init__(self, body: Buffer) -> None:
        self.body = body
        self.root = _parse(body)
        self.nested: set[str] = set()
        self.lists_to_pass = 0
        self.has_brackets_in_strings = False
        self._lists: Lists | None = None
        self._substituted: Any = None

    def names(self, arrays: Collection[str], scalars: Collection[str]) -> list[str]:
        """Returns the names of the fields, each known and there once."""
        names = list(self.root.keys())
        for name in names:
            if name not in arrays and name not in scalars:
                detail = f"unknown field; known are {', '.join(sorted({*arrays, *scalars}))}"
                raise UnknownField.at(pointer((name[:64],)), detail)
        refuse_duplicates(names, ())
        return names

    def array(self, name: str, value: Any) -> Array:  # noqa: ANN401 - simdjson's proxies are untyped
        """Reads one array in either form."""
        if isinstance(value, simdjson.Object):
            keys = list(value.keys())
            check_keys(name, keys)  # before any is looked up: each look-up walks the object
            refuse_duplicates(keys, (name,))
            fields = {key: _plain(name, value[key]) for key in keys}
            self.lists_to_pass += sum(isinstance(field, list) for field in fields.values())
            return decode_tensor(name, fields)
        self.nested.add(name)
        if isinstance(value, simdjson.Array):
            return self._flat(name, value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise explain_element(name, value)
        return np.array(value)

    def _flat(self, name: str, value: Any) -> Array:  # noqa: ANN401
        shape = _shape(name, value)
        numbers = self._numbers(name, value)
        if numbers.size != math.prod(shape) or not self._is_even(shape):
            _check_even(name, value, shape, ())
            if numbers.size != math.prod(shape):
                # simdjson counts the elements of a list in 24 bits.
                raise ShapeMismatch.at(f"#/{name}", "a list is longer than 16,777,214; send a tensor object")
        return numbers.reshape(shape)

    def _is_even(self, shape: tuple[int, ...]) -> bool:
        if self._lists is None:
            self._lists = lists_of(_STRING.sub(b"0", self.body) if self.has_brackets_in_strings else self.body)
        for _ in range(self.lists_to_pass):
            self._lists.skip()
        self.lists_to_pass = 0
        return self._lists.are_even(shape)

    def _numbers(self, name: str, value: Any) -> Array:  # noqa: ANN401
        kinds = "iud" if name == "labels" else "d"
        for kind in kinds:
            try:
                return _buffer(value, kind)
            except (TypeError, ValueError):
                continue
        if name in _NONFINITE_FIELDS:
            numbers = self._nonfinite_numbers(name)
            if numbers is not None:
                return numbers
        raise explain_element(name, value)

    def _nonfinite_numbers(self, name: str) -> Array | None:
        if self._substituted is None:
            body, count = nonfinite.substitute(bytes(self.body))
            with contextlib.suppress(MalformedJson):  # a string that only contains one of the three
                self._substituted = _parse(body) if count else {}
        if not self._substituted:
            return None
        try:
            numbers = _buffer(self._substituted[name], "d").copy()
        except (TypeError, ValueError, KeyError):
            return None
        nonfinite.restore(numbers)
        return numbers


def _parse(body: Buffer) -> Any:  # noqa: ANN401
    if body[:3] == b"\xef\xbb\xbf":
        detail = "The body starts with a byte order mark; send plain UTF-8."
        raise MalformedJson(detail)
    try:
        root = simdjson.Parser().parse(body)
    except (ValueError, RuntimeError) as error:  # UnicodeDecodeError is a ValueError
        raise explain_malformed(bytes(body), str(error)) from None
    if not isinstance(root, simdjson.Object):
        raise InvalidValue.at("#", "the body must be a JSON object with logits and labels")
    return root


def _plain(name: str, value: Any) -> object:  # noqa: ANN401
    """Turns a proxy into plain values without unfolding what is too large to be meant."""
    if isinstance(value, simdjson.Object):
        raise InvalidValue.at(pointer((name,)), "an object does not belong here")
    if isinstance(value, simdjson.Array):
        if len(value) > _MAX_LIST:
            raise InvalidValue.at(pointer((name,)), f"a list of {len(value)} entries does not belong here")
        return [None if isinstance(item, simdjson.Array | simdjson.Object) else item for item in value]
    return value


def _has_brackets(value: object) -> bool:
    text = value if isinstance(value, str) else repr(value)[1:-1]
    return "[" in text or "]" in text


def _buffer(value: Any, kind: str) -> Array:  # noqa: ANN401
    return np.frombuffer(value.as_buffer(of_type=kind), dtype={"i": "<i8", "u": "<u8", "d": "<f8"}[kind])


def _shape(name: str, value: Any) -> tuple[int, ...]:  # noqa: ANN401
    """Reads the shape off the first elements."""
    shape = [len(value)]
    while shape[-1] and isinstance(value[0], simdjson.Array):
        value = value[0]
        shape.append(len(value))
        if len(shape) > MAX_RANK:
            raise ShapeMismatch.at(f"#/{name}", f"nested deeper than {MAX_RANK} levels")
    return tuple(shape)


def _check_even(name: str, value: Any, shape: tuple[int, ...], path: JsonPath) -> None:  # noqa: ANN401
    """Refuses what differs in kind or in length from the first of its siblings."""
    has_lists = len(shape) > 1
    for index, item in enumerate(value):
        is_list = isinstance(item, simdjson.Array)
        if has_lists and (not is_list or len(item) != shape[1]):
            found = f"{len(item)} elements" if is_list else "no list"
            detail = f"ragged: {found} where the first of its siblings has {shape[1]}"
            raise ShapeMismatch.at(pointer((name, *path, index)), detail)
        if is_list and not has_lists:
            raise ShapeMismatch.at(pointer((name, *path, index)), "ragged: lists and numbers side by side")
    if has_lists:
        for index, row in enumerate(value):
            _check_even(name, row, shape[1:], (*path, index))


def _settle_dtypes(arrays: dict[str, Array], nested: Collection[str]) -> None:
    """Casts nested logits to float32 and nested probability labels to the logits' dtype."""
    if "logits" in nested:
        arrays["logits"] = _narrow("logits", arrays["logits"], FLOATS["F32"])
    labels, logits = arrays.get("labels"), arrays["logits"]
    if labels is not None and "labels" in nested and labels.ndim == logits.ndim and labels.dtype.kind == "f":
        arrays["labels"] = _narrow("labels", labels, logits.dtype)
    for name in {*nested} - {"logits", "labels"}:
        arrays[name] = arrays[name].astype(np.float64)


def _narrow(name: str, numbers: Array, dtype: np.dtype[Any]) -> Array:
    if numbers.size and -_SAFE < np.minimum.reduce(numbers, axis=None) <= np.maximum.reduce(numbers, axis=None) < _SAFE:
        return numbers.astype(dtype)
    with np.errstate(over="ignore"):
        narrow = numbers.astype(dtype)
    if not np.isfinite(narrow).all():
        over = ~np.isfinite(narrow) & np.isfinite(numbers.astype(np.float64, copy=False))
        if over.any():
            place = tuple(int(index) for index in np.argwhere(over)[0])
            detail = f"{float(numbers[place])!r} does not fit {name_of(narrow)}"
            raise NumberOutOfRange.at(pointer((name, *place)), detail)
    return narrow
