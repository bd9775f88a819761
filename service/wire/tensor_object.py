"""Tensor objects in JSON: {"dtype": "F32", "shape": [2, 3], "data": "<base64, little-endian, C order>"}.

What holds of their dtypes and shapes holds of safetensors too.
"""

import base64
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..dtypes import BY_NAME, FLOATS, WEIGHTS, Array, name_of
from ..errors import InvalidValue, MissingField, ShapeMismatch, UnknownField, UnsupportedDtype
from .json_errors import MAX_RANK, pointer

KEYS = ("dtype", "shape", "data")
MAX_EMPTY = 1 << 20
"""An empty tensor has no bytes, but as nested lists one pair of brackets for each of its leading indices."""
ALLOWED: Mapping[str, tuple[str, ...]] = {
    "logits": tuple(FLOATS),
    "labels": tuple(BY_NAME),
    "weight": WEIGHTS,
    "sample_weight": WEIGHTS,
    "grad_output": WEIGHTS,
}


def decode_tensor(name: str, fields: Mapping[str, object]) -> Array:
    """Reads a tensor object; the bytes must be exactly those of the shape.

    Raises:
        UnknownField, MissingField, UnsupportedDtype, InvalidValue, ShapeMismatch: Each naming the key.
    """
    for key in KEYS:
        if fields.get(key) is None:
            raise MissingField.at(f"#/{name}/{key}", "a tensor object needs it")
    dtype, shape = dtype_of(name, fields["dtype"]), shape_of(name, fields["shape"])
    data = fields["data"]
    if not isinstance(data, str):
        raise InvalidValue.at(f"#/{name}/data", "data must be a base64 string")
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != 4 * -(-expected // 3):
        detail = f"{len(data)} base64 characters, but shape {list(shape)} takes {expected} bytes"
        raise InvalidValue.at(f"#/{name}/data", detail)
    try:
        content = bytearray(base64.b64decode(data, validate=True))  # torch wants writable memory
    except ValueError as error:
        raise InvalidValue.at(f"#/{name}/data", f"not base64 (RFC 4648, padded): {error}") from None
    check_size(name, len(content), dtype, shape)
    return np.frombuffer(content, dtype=dtype).reshape(shape)


def encode_tensor(array: Array) -> dict[str, object]:
    """Writes an array as a tensor object."""
    data = base64.b64encode(array.tobytes()).decode()
    return {"dtype": name_of(array), "shape": list(array.shape), "data": data}


def dtype_of(name: str, kind: object) -> np.dtype[Any]:
    """Returns the dtype of that name, if it is one that the tensor may have.

    Raises:
        UnsupportedDtype: It is not.
    """
    if not isinstance(kind, str) or kind not in ALLOWED[name]:
        shown = kind if isinstance(kind, str) and len(kind) <= 8 else "this"  # noqa: PLR2004 - a dtype's name is short
        detail = f"{shown} is not a dtype of {name}; send one of {', '.join(ALLOWED[name])}"
        raise UnsupportedDtype.at(f"#/{name}/dtype", detail)
    return BY_NAME[kind]


def shape_of(name: str, shape: object) -> tuple[int, ...]:
    """Returns the shape, if it is one.

    Raises:
        InvalidValue, ShapeMismatch: It is not, or has too many axes.
    """
    if type(shape) is not list or not all(type(size) is int and 0 <= size < 2**63 for size in shape):
        raise InvalidValue.at(f"#/{name}/shape", "shape must be a list of integers in [0, 2^63)")
    if len(shape) > MAX_RANK:
        raise ShapeMismatch.at(f"#/{name}/shape", f"rank {len(shape)}; ranks up to {MAX_RANK} are supported")
    if 0 in shape and math.prod(size or 1 for size in shape) > MAX_EMPTY:
        raise InvalidValue.at(f"#/{name}/shape", f"an empty tensor whose other sizes multiply to more than {MAX_EMPTY}")
    return tuple(shape)


def check_size(name: str, size: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """Compares the bytes that are there with those the shape takes; in integers that cannot overflow.

    Raises:
        InvalidValue: They differ.
    """
    expected = math.prod(shape) * dtype.itemsize
    if size != expected:
        detail = f"{size} bytes, but shape {list(shape)} of its dtype takes {expected}"
        raise InvalidValue.at(f"#/{name}/data", detail)


def check_keys(name: str, keys: Iterable[str]) -> None:
    """Refuses keys that a tensor object does not have."""
    for key in keys:
        if key not in KEYS:
            raise UnknownField.at(pointer((name, key[:64])), f"a tensor object has {', '.join(KEYS)} and nothing else")
