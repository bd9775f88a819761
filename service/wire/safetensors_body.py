"""safetensors bodies: views of the tensors a request brings, and the parts of an answer.

A file is eight bytes of header length (little-endian), the header, a JSON object {name: {dtype, shape, data_offsets}},
and the data. The official loader lets duplicate names and a hundred thousand tensors through; here the whole header is
checked before a byte of data is looked at.
"""

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import orjson

from ..dtypes import Array, Buffer, name_of
from ..errors import MalformedTensors, MissingField, UnknownField
from .json_body import ARRAY_FIELDS, encode_value
from .json_errors import pointer, refuse_duplicates
from .tensor_object import check_size, dtype_of, shape_of

MAX_HEADER_BYTES = 64 * 1024
_LENGTH_BYTES = 8
_PIECE_BYTES = 1 << 20
_METADATA = "__metadata__"
_KEYS = ("dtype", "shape", "data_offsets")
_Entry = dict[str, Any]


def decode(body: Buffer) -> dict[str, Array]:
    """Reads a request's tensors: views of the body, which must be writable; unaligned ones, or of bytes, are copied.

    Raises:
        MalformedTensors, DuplicateField, UnknownField: 400.
        MissingField, InvalidValue, UnsupportedDtype, ShapeMismatch: 422.
    """
    start, entries = _header(memoryview(body))
    _check_ranges(entries, len(body) - start)
    buffer = np.frombuffer(body, dtype=np.uint8)[start:]
    return {name: _tensor(name, entry, buffer) for name, entry in entries.items()}


def encode(values: Mapping[str, object]) -> tuple[int, Iterator[Buffer]]:
    """Writes an answer: numbers and arrays as tensors, everything else as metadata.

    Larger elements come first, so that every tensor is aligned to its dtype.

    Returns:
        The number of bytes, and the parts to be sent in order: views of the arrays, or, where one is not contiguous,
        copies of pieces of it, each made when its turn comes.
    """
    arrays: dict[str, Array] = {}
    metadata: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, np.ndarray | float | int):
            arrays[name] = np.asarray(value)
        else:
            metadata[name] = encode_value(value, base64=False).decode()
    header: dict[str, object] = {_METADATA: metadata}
    ordered = sorted(arrays.items(), key=lambda item: -item[1].itemsize)
    stop = 0
    for name, array in ordered:
        start, stop = stop, stop + array.nbytes
        header[name] = {"dtype": name_of(array), "shape": array.shape, "data_offsets": (start, stop)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    head = len(text).to_bytes(_LENGTH_BYTES, "little") + text
    parts = itertools.chain([head], *(_contiguous(array) for _, array in ordered if array.size))
    return len(head) + stop, parts


def _contiguous(array: Array) -> Iterator[Buffer]:
    if array.flags.c_contiguous or array.nbytes <= _PIECE_BYTES:
        yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        return
    step = max(1, _PIECE_BYTES * len(array) // array.nbytes)
    for start in range(0, len(array), step):
        yield from _contiguous(array[start : start + step] if step > 1 else array[start])


def _header(body: memoryview) -> tuple[int, dict[str, _Entry]]:
    """Returns where the data starts, and the entry of each tensor."""
    length = int.from_bytes(body[:_LENGTH_BYTES], "little")
    start = _LENGTH_BYTES + length
    if len(body) < _LENGTH_BYTES or length > MAX_HEADER_BYTES or start > len(body):
        detail = f"a header of {length} bytes; the body has {len(body)} and a header at most {MAX_HEADER_BYTES}"
        raise MalformedTensors(f"The first eight bytes announce {detail}.")
    text = bytes(body[_LENGTH_BYTES:start])
    try:
        orjson.loads(text)  # strict: no NaN, no lone surrogates
        pairs = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        raise MalformedTensors(f"The header is not JSON: {error}.") from None
    if not isinstance(pairs, _Pairs) or text[:1] != b"{":
        raise MalformedTensors("The header is not a JSON object that starts at its first byte.")
    refuse_duplicates([name for name, _ in pairs], ())
    return start, {name: _entry(name, value) for name, value in pairs if name != _METADATA}


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as it was written: names may stand twice."""


def _entry(name: str, pairs: object) -> _Entry:
    if name not in ARRAY_FIELDS:
        detail = f"unknown tensor; known are {', '.join(sorted(ARRAY_FIELDS))}. Options go into the query"
        raise UnknownField.at(pointer((name[:64],)), detail)
    if not isinstance(pairs, _Pairs):
        raise MalformedTensors.at(f"#/{name}", f"must be an object with {', '.join(_KEYS)}")
    refuse_duplicates([key for key, _ in pairs], (name,))
    entry = dict(pairs)
    for key in entry:
        if key not in _KEYS:
            raise UnknownField.at(pointer((name, key[:64])), f"a tensor has {', '.join(_KEYS)} and nothing else")
    for key in _KEYS:
        if key not in entry:
            raise MissingField.at(f"#/{name}/{key}", "a tensor needs it")
    offsets = entry["data_offsets"]
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(offset) is int for offset in offsets):  # noqa: PLR2004 - start and stop
        raise MalformedTensors.at(f"#/{name}/data_offsets", "must be two integers")
    return entry


def _check_ranges(entries: Mapping[str, _Entry], size: int) -> None:
    """Refuses ranges that overlap, leave bytes out or reach beyond the data."""
    stop = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        start, end = entry["data_offsets"]
        if start != stop or end < start:
            raise MalformedTensors.at(f"#/{name}/data_offsets", f"[{start}, {end}] does not begin where {stop} is due")
        stop = end
    if stop != size:
        raise MalformedTensors(f"The tensors take {stop} bytes, but {size} follow the header.")


def _tensor(name: str, entry: _Entry, buffer: Array) -> Array:
    dtype, shape = dtype_of(name, entry["dtype"]), shape_of(name, entry["shape"])
    start, stop = entry["data_offsets"]
    check_size(name, stop - start, dtype, shape)
    array = buffer[start:stop].view(dtype).reshape(shape)
    # torch wants memory that is aligned, and writable even where nothing is written.
    return array if array.flags.aligned and array.flags.writeable else array.copy()
