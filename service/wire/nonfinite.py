"""NaN and the infinities, which JSON numbers cannot say: the strings "NaN", "Infinity" and "-Infinity"."""

import math

import numpy as np
import orjson

from ..dtypes import Array

# Doubles far outside float32 that stand for the strings while simdjson parses; each is one exact 17-digit number, so
# that no number a caller means can be mistaken for one. Logits are float32, for which any of them would be refused.
_STAND_INS: tuple[tuple[bytes, float, float], ...] = (
    (b'"NaN"', 8.1203954917240613e303, math.nan),
    (b'"Infinity"', 8.1203954917240613e304, math.inf),
    (b'"-Infinity"', 8.1203954917240613e305, -math.inf),
)


def substitute(body: bytes) -> tuple[bytes, int]:
    """Replaces the three strings by numbers that `restore` turns back, and says how many there were."""
    count = sum(body.count(text) for text, _, _ in _STAND_INS)
    if count:
        for text, number, _ in _STAND_INS:
            body = body.replace(text, repr(number).encode())
    return body, count


def restore(numbers: Array) -> None:
    """Puts NaN and infinities where `substitute` left stand-ins, in place."""
    for _, number, value in _STAND_INS:
        numbers[numbers == number] = value


def named(value: object) -> object:
    """Returns the value with non-finite numbers in it, but not in arrays, replaced by the strings that say them."""
    if isinstance(value, dict):
        return {name: named(item) for name, item in value.items()}
    return _name(value) if isinstance(value, float) and not math.isfinite(value) else value


def encode_array(array: Array) -> bytes:
    """Writes an array of rank >= 1 as JSON, non-finite elements as strings.

    orjson writes non-finite elements as null, and nothing else in an array of numbers is null: the nulls are replaced
    in order.
    """
    encoded = orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)
    if b"n" not in encoded:  # far quicker than to look at the numbers
        return encoded
    flat = array.reshape(-1)
    if not np.isinf(flat).any():
        return encoded.replace(b"null", b'"NaN"')
    pieces = encoded.split(b"null")
    names = [f'"{_name(number)}"'.encode() for number in flat[~np.isfinite(flat)].tolist()]
    whole = [pieces[0]]
    for name, piece in zip(names, pieces[1:], strict=True):
        whole += (name, piece)
    return b"".join(whole)


def _name(number: float) -> str:
    if math.isnan(number):
        return "NaN"
    return "Infinity" if number > 0 else "-Infinity"
