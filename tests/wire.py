"""Bodies as a client without any library of ours would write and read them: JSON, and safetensors by its package."""

import base64
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray

Array = NDArray[Any]
Tensor = Array | torch.Tensor

NUMPY_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "<i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "<u1",
}
NAMES = {np.dtype(code): name for name, code in NUMPY_DTYPES.items()}
TENSOR_FIELDS = {"logits": "F32", "labels": "I64", "weight": "F64", "sample_weight": "F64", "grad_output": "F64"}
NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def tensor_object(values: Tensor) -> dict[str, Any]:
    """Wrap an array as `{"dtype", "shape", "data"}`, little-endian in C order."""
    if isinstance(values, torch.Tensor):
        values = values.detach()
        if values.dtype == torch.bfloat16:
            raw = values.contiguous().view(torch.int16).numpy().tobytes()
            return {"dtype": "BF16", "shape": list(values.shape), "data": base64.b64encode(raw).decode()}
        values = values.numpy()
    name = NAMES[values.dtype.newbyteorder("<")]
    raw = np.ascontiguousarray(values).astype(NUMPY_DTYPES[name], copy=False).tobytes()
    return {"dtype": name, "shape": list(values.shape), "data": base64.b64encode(raw).decode()}


def read_tensor(tensor: Mapping[str, Any]) -> Array:
    """Decode a tensor object; BF16 becomes float32."""
    raw = base64.b64decode(tensor["data"], validate=True)
    if tensor["dtype"] == "BF16":
        wide = np.frombuffer(raw, "<u2").astype("<u4") << 16
        return wide.view("<f4").reshape(tensor["shape"])
    return np.frombuffer(raw, NUMPY_DTYPES[tensor["dtype"]]).reshape(tensor["shape"])


def nest(values: Tensor) -> Any:  # noqa: ANN401  any depth of lists
    """Nested lists with the contract's strings for what JSON numbers can't express."""
    return _without_non_finite(np.asarray(values).tolist())


def _without_non_finite(value: Any) -> Any:  # noqa: ANN401  any depth of lists
    if isinstance(value, list):
        return [_without_non_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def read_number(value: Any) -> Any:  # noqa: ANN401  any depth of lists
    """Undo `nest` without going through numpy, so that integers stay integers."""
    if isinstance(value, list):
        return [read_number(item) for item in value]
    return NON_FINITE[value] if isinstance(value, str) else value


def read_array(value: Any, dtype: str = "F32") -> Array:  # noqa: ANN401  what a response may hold
    """Array of a response field, whether it came as a tensor object or as nested numbers."""
    if isinstance(value, Mapping):
        return read_tensor(value)
    return np.array(read_number(value), NUMPY_DTYPES[dtype])


def encode(fields: Mapping[str, Any], *, arrays: str = "nested") -> bytes:
    """Body with arrays as nested lists or, with `arrays="base64"`, as tensor objects."""

    def plain(value: Any) -> Any:  # noqa: ANN401  json's own signature
        if isinstance(value, np.ndarray | torch.Tensor):
            return tensor_object(value) if arrays == "base64" else nest(value)
        return value

    return json.dumps({name: plain(value) for name, value in fields.items()}, allow_nan=False).encode()


def as_arrays(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with nested numbers as the arrays they stand for; floating labels are probabilities."""

    def array(name: str, value: Any) -> Any:  # noqa: ANN401  any field
        if name not in TENSOR_FIELDS or isinstance(value, np.ndarray | torch.Tensor):
            return value
        found = np.array(read_number(value))
        return (
            found if found.dtype.kind == "f" and name == "labels" else found.astype(NUMPY_DTYPES[TENSOR_FIELDS[name]])
        )

    return {name: array(name, value) for name, value in fields.items()}


def encode_tensors(fields: Mapping[str, Any], metadata: dict[str, str] | None = None) -> bytes:
    """Safetensors file of those fields that are arrays."""
    tensors = {
        name: torch.as_tensor(np.array(value) if isinstance(value, np.ndarray) else value).detach().contiguous()
        for name, value in fields.items()
        if isinstance(value, np.ndarray | torch.Tensor)
    }
    body: bytes = safetensors.torch.save(tensors, metadata)
    return body


def encode_query(fields: Mapping[str, Any]) -> dict[str, str]:
    """Query parameters of those fields that are no arrays."""
    return {
        name: ",".join(value) if name == "include" else value if isinstance(value, str) else json.dumps(value)
        for name, value in fields.items()
        if not isinstance(value, np.ndarray | torch.Tensor)
    }


def read_tensors(body: bytes) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file, read by its own package."""
    tensors: dict[str, torch.Tensor] = safetensors.torch.load(body)
    return tensors


def read_header(body: bytes) -> dict[str, Any]:
    """Header of a safetensors file, which the package shows only of files on a disk."""
    length = int.from_bytes(body[:8], "little")
    header: dict[str, Any] = json.loads(body[8 : 8 + length])
    return header
