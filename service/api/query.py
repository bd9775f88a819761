"""The options of a binary request, which are query parameters."""

from urllib.parse import parse_qsl

import numpy as np
import orjson

from ..dtypes import Array
from ..errors import DuplicateField, InvalidValue, UnknownField
from ..wire.json_errors import pointer, refuse_duplicates
from .schemas import ORIGIN_FIELDS, SCALAR_FIELDS

PARAMETERS = (SCALAR_FIELDS - {"encoding"}) | {"grad_output"}


def read_query(query_string: bytes) -> dict[str, object]:
    """Reads the options as JSON would have brought them: numbers as numbers, `include` as a list, the rest as text.

    Raises:
        UnknownField, DuplicateField: With a pointer to the parameter.
    """
    pairs = parse_qsl(query_string.decode("latin-1"), keep_blank_values=True)
    for name, _ in pairs:
        if name not in PARAMETERS:
            detail = f"unknown query parameter; known are {', '.join(sorted(PARAMETERS))}"
            raise UnknownField.at(pointer((name[:64],)), detail)
    refuse_duplicates([name for name, _ in pairs], ())
    return {name: _value(name, text) for name, text in pairs}


def refuse_query(query_string: bytes) -> None:
    """Refuses the query of a JSON request.

    Raises:
        UnknownField: There is one.
    """
    if query_string:
        name = query_string.decode("latin-1").partition("=")[0][:64]
        raise UnknownField.at(pointer((name,)), "options of a JSON request go into the body, not into the query")


def move_grad_output(options: dict[str, object], arrays: dict[str, Array]) -> None:
    """Turns the option into the array it stands for.

    Raises:
        DuplicateField: There is a tensor of that name, too.
        InvalidValue: It is not a number.
    """
    if "grad_output" not in options:
        return
    number = options.pop("grad_output")
    if "grad_output" in arrays:
        raise DuplicateField.at("#/grad_output", "a tensor and a query parameter; send one of them")
    if not isinstance(number, int | float):
        raise InvalidValue.at("#/grad_output", "the query parameter must be a number")
    arrays["grad_output"] = np.array(number, np.float64)


def _value(name: str, text: str) -> object:
    if name == "include":
        return text.split(",")
    if name == "monitor":
        return {"true": True, "false": False}.get(text, text)
    if name == "predicted_at":
        return text.replace(" ", "+")  # a blank was a plus that nobody escaped; as a separator, T serves
    return text if name in ORIGIN_FIELDS else _number_or_text(text)


def _number_or_text(text: str) -> object:
    try:
        value = orjson.loads(text.replace(" ", "+"))  # a blank was a plus that nobody escaped, as in 1e+25
    except ValueError:
        return text
    return value if type(value) in {int, float} else text
