"""Request bodies and answers as safetensors and as JSON: bytes and arrays, no HTTP."""

import base64
import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from .arrays import Tensor

SAFETENSORS = "application/x-safetensors"
JSON = "application/json"
Part = bytes | memoryview


def encode_safetensors(tensors: Mapping[str, Tensor]) -> tuple[Part, ...]:
    """Writes a safetensors file as its parts, header first; the others are the arrays' own memory."""
    # The widest elements first: then all are aligned.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].array.itemsize)
    entries, end = [], 0
    for name, (dtype, array) in ordered:
        start, end = end, end + array.nbytes
        entries.append(f'"{name}":{{"dtype":"{dtype}","shape":{[*array.shape]},"data_offsets":[{start},{end}]}}')
    header = f"{{{','.join(entries)}}}".encode()
    header += b" " * (-len(header) % 8)
    return (struct.pack("<Q", len(header)) + header, *(tensor.content for _, tensor in ordered))


def encode_json(tensors: Mapping[str, Tensor], options: Mapping[str, object]) -> tuple[Part, ...]:
    """Writes the same request as JSON: arrays as tensor objects, since nested numbers have no dtype."""
    fields: dict[str, object] = {**options, "encoding": "base64"}
    for name, tensor in tensors.items():
        data = base64.b64encode(tensor.content).decode()
        fields[name] = {"dtype": tensor.dtype, "shape": tensor.array.shape, "data": data}
    return (json.dumps(fields).encode(),)


def decode(media_type: str, body: bytearray) -> dict[str, Any]:
    """Reads an answer of either type: plain values and arrays, those of safetensors as views of the body.

    Raises:
        Exception: Of some kind; the body is no such answer.
    """
    if media_type == JSON:
        return _decode_fields(json.loads(body))
    if media_type != SAFETENSORS:
        raise ValueError(f"it has the type {media_type!r}")
    (length,) = struct.unpack_from("<Q", body)
    header = json.loads(body[8 : 8 + length].decode())
    content = memoryview(body)[8 + length :]
    values = _decode_fields({name: json.loads(text) for name, text in header.pop("__metadata__", {}).items()})
    for name, entry in header.items():
        values[name] = Tensor.read(content[slice(*entry["data_offsets"])], entry["dtype"], entry["shape"])
    return values


def _decode_fields(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value if name == "warnings" else _decode_json(value) for name, value in fields.items()}


def _decode_json(value: Any) -> Any:  # noqa: ANN401 - any JSON
    """Makes arrays of lists and tensor objects, and floats of the strings for what JSON has no number for."""
    if isinstance(value, dict) and "data" in value:
        content = memoryview(bytearray(base64.b64decode(value["data"])))
        return Tensor.read(content, value["dtype"], value["shape"])
    if isinstance(value, dict):
        return {name: _decode_json(item) for name, item in value.items()}
    if isinstance(value, list):
        return np.array([_decode_json(item) for item in value])
    return float(value) if isinstance(value, str) else value
