"""What is wrong with a JSON body: found slowly, and said exactly."""

import json
import math
from typing import Any, NoReturn
from urllib.parse import quote

import simdjson

from ..errors import DuplicateField, InvalidValue, MalformedJson, NumberOutOfRange, ServiceError, ShapeMismatch

EXPLAINED_BYTES = 1 << 20
"""Larger bodies are refused without a position: the slow parser would hold up everyone else."""
_DIGITS_OF_INT64 = 20
MAX_RANK = 16

JsonPath = tuple[str | int, ...]


def pointer(path: JsonPath) -> str:
    """Writes a JSON pointer as a URI fragment (RFC 6901, section 6; the escaping of section 3)."""
    return "#" + "".join(f"/{quote(_escaped(part), safe='~', errors='replace')}" for part in path)


def _escaped(part: str | int) -> str:
    return str(part).replace("~", "~0").replace("/", "~1")


def explain_malformed(body: bytes, reason: str) -> ServiceError:  # noqa: PLR0911 - a list of causes
    """Says what a body that simdjson refused does wrong, with the position where it can be had."""
    if not body.strip():
        return MalformedJson("The body is empty; send a JSON object with logits and labels.")
    if len(body) > EXPLAINED_BYTES:
        return MalformedJson(f"{reason} (positions are given for bodies up to 1 MiB)")
    try:
        document = json.loads(
            body.decode(),
            parse_constant=_refuse_constant,
            parse_int=_bounded_int,
            object_pairs_hook=_unique,
        )
        found = _unrepresentable(document, ())
    except ServiceError as error:
        return error
    except json.JSONDecodeError as error:
        return MalformedJson(f"{error.msg} at line {error.lineno} column {error.colno} (character {error.pos}).")
    except UnicodeDecodeError as error:
        return MalformedJson(f"Byte {error.start} is not UTF-8.")
    except RecursionError:
        return MalformedJson("Nested too deeply.")
    return found or MalformedJson(f"{reason}.")


def explain_element(name: str, value: Any) -> ServiceError:  # noqa: ANN401
    """Names the first element that is not a number in an array that has one."""
    path: JsonPath = ()
    while isinstance(value, simdjson.Array):
        index = next((i for i, item in enumerate(value) if not _is_numeric(item)), None)
        if index is None:
            return InvalidValue.at(pointer((name, *path)), "the numbers do not fit one dtype")
        path, value = (*path, index), value[index]
        if len(path) > MAX_RANK:
            return ShapeMismatch.at(pointer((name, *path)), f"nested deeper than {MAX_RANK} levels")
    return InvalidValue.at(pointer((name, *path)), f"{_describe(value)} is not a number")


def _is_numeric(value: Any) -> bool:  # noqa: ANN401
    if not isinstance(value, simdjson.Array):
        return type(value) in {int, float}
    try:
        value.as_buffer(of_type="d")
    except (TypeError, ValueError):
        return False
    return True


def _describe(value: Any) -> str:  # noqa: ANN401
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return "a string (apart from NaN, Infinity and -Infinity in logits and probability labels)"
    return "an object" if isinstance(value, simdjson.Object) else "a list"


def _refuse_constant(name: str) -> NoReturn:
    detail = f'{name} is not JSON; send the string "{name}".'
    raise MalformedJson(detail)


def _bounded_int(digits: str) -> float:
    return int(digits) if len(digits) <= _DIGITS_OF_INT64 else math.inf


def refuse_duplicates(names: list[str], parent: JsonPath) -> None:
    """Refuses a name that stands twice: which one is meant is anybody's guess.

    Raises:
        DuplicateField: Pointing to the first.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DuplicateField.at(pointer((*parent, name[:64])), "the name stands twice")
        seen.add(name)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    refuse_duplicates([name for name, _ in pairs], ())
    return dict(pairs)


def _unrepresentable(value: Any, path: JsonPath) -> ServiceError | None:  # noqa: ANN401
    """Finds a number that neither 64-bit integers nor doubles hold."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return next((error for key, item in items if (error := _unrepresentable(item, (*path, key)))), None)
    is_too_large = type(value) is int and not -(2**63) <= value < 2**64
    if is_too_large or (type(value) is float and math.isinf(value)):
        return NumberOutOfRange.at(pointer(path), "the number does not fit 64 bits")
    return None
