"""JSON bodies as a client without any library of ours would write and read them."""

import base64
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
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
