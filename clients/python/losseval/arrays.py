"""Arrays of any library as what goes over the wire, and back: at most one copy each way."""

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
TensorLike: TypeAlias = Any
"""An array of numpy, torch, JAX, CuPy, pandas, anything with ``__array__`` or DLPack; or nested lists."""

_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1"}
_NUMPY |= {"U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1"}
_NAMES = {code[1:]: name for name, code in _NUMPY.items()}


class Tensor(NamedTuple):
    """An array as safetensors has it: its dtype's name, its elements little-endian in C order; bfloat16 as uint16."""

    dtype: str
    array: Array

    @property
    def content(self) -> memoryview:
        """The bytes; a view."""
        return self.array.reshape(-1).view(np.uint8).data

    def widen(self) -> Array:
        """Returns the array; for bfloat16, which numpy lacks, a copy as float32, which holds every bfloat16."""
        return (self.array.astype("<u4") << 16).view("<f4") if self.dtype == "BF16" else self.array

    @classmethod
    def read(cls, content: memoryview, dtype: str, shape: Sequence[int]) -> Array:
        """Returns an array over bytes; a copy if they aren't aligned, and of bfloat16. ValueError: they don't fit."""
        array = np.frombuffer(content, "<u2" if dtype == "BF16" else _NUMPY[dtype]).reshape(shape)
        return cls(dtype, array if array.flags.aligned else array.copy()).widen()

    @classmethod
    def of(cls, name: str, value: TensorLike) -> "Tensor":
        """Converts an array, from any device and without its graph.

        Lists become what the service makes of them in JSON: float32, integer labels int64, weights float64.

        Raises:
            TypeError: Its dtype can't be sent.
            ValueError: A number in a list does not fit float32.
        """
        if isinstance(value, list | tuple | int | float):
            array, is_bfloat16 = _from_lists(name, value), False
        else:
            array, is_bfloat16 = _to_numpy(value)
        dtype = "BF16" if is_bfloat16 else _NAMES.get(array.dtype.str[1:])
        if dtype is None:
            raise TypeError(f"{name} can't be sent as {array.dtype}; cast to one of {', '.join(_NUMPY)}, BF16")
        return cls(dtype, np.asarray(array, array.dtype.newbyteorder("<"), order="C"))


def _from_lists(name: str, value: TensorLike) -> Array:
    array = np.asarray(value)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{name} must be numbers, not {array.dtype}, in lists of equal lengths")
    if name == "labels" and array.dtype.kind != "f":
        return array
    with np.errstate(over="ignore"):
        narrow = array.astype(np.float32 if name in {"logits", "labels"} else np.float64)
    if (np.isinf(narrow) & np.isfinite(array)).any():
        raise ValueError(f"{name} has a number that does not fit float32; send an array of float64")
    return narrow


def _to_numpy(value: TensorLike) -> tuple[Array, bool]:
    """Returns the elements, or the bits of bfloat16."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        value = value.detach().cpu().resolve_neg()
        is_bfloat16 = value.dtype == torch.bfloat16
        return (value.view(torch.int16) if is_bfloat16 else value).numpy(), is_bfloat16
    if hasattr(value, "__cuda_array_interface__") and hasattr(value, "get"):
        value = value.get()  # CuPy moves nothing by itself
    has_only_dlpack = hasattr(value, "__dlpack__") and not hasattr(value, "__array__")
    array = np.from_dlpack(value) if has_only_dlpack else np.asarray(value)
    is_bfloat16 = array.dtype.kind == "V" and array.dtype.name == "bfloat16"  # ml_dtypes', which JAX brings along
    return (array.view(np.uint16) if is_bfloat16 else array), is_bfloat16
