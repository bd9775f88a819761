"""The dtypes of tensors by the names safetensors gives them, as numpy knows them."""

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Buffer = bytes | bytearray | memoryview

FLOATS: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
INTEGERS: dict[str, np.dtype[Any]] = {
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
}
BY_NAME = FLOATS | INTEGERS
WEIGHTS = ("F64", "F32")
_NAMES = {dtype: name for name, dtype in BY_NAME.items()}


def name_of(array: Array) -> str:
    """Returns safetensors' name of the array's dtype, e.g. ``F32``."""
    return _NAMES[array.dtype]


def joined(arrays: Sequence[Array]) -> Array:
    """Returns arrays behind one another; a single one is not copied."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
