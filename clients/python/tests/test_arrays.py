"""What arrays of other libraries become, and that they are not copied more often than needed."""

import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from losseval.arrays import Tensor

NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "I64": "int64", "I32": "int32", "I16": "int16"}
NAMES |= {"I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8"}
VALUES = np.array([[0, 1, 2], [100, 5, 7]])


@pytest.mark.parametrize(("name", "dtype"), NAMES.items())
def test_numpy_arrays_are_sent_as_they_are(name: str, dtype: str) -> None:
    array = VALUES.astype(dtype)
    tensor = Tensor.of("labels", array)
    assert tensor.dtype == name
    assert bytes(tensor.content) == array.tobytes()
    assert np.shares_memory(tensor.array, array)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.int64, torch.int32, torch.uint8])
def test_torch_tensors_are_sent_as_they_are(dtype: torch.dtype) -> None:
    values = torch.from_numpy(VALUES).to(dtype)
    tensor = Tensor.of("logits", values)
    assert NAMES[tensor.dtype] == str(dtype).removeprefix("torch.")
    np.testing.assert_array_equal(tensor.array, VALUES)
    assert tensor.array.ctypes.data == values.data_ptr()


def test_torch_bfloat16_goes_by_its_bits() -> None:
    values = torch.randn(5, 3).bfloat16()
    tensor = Tensor.of("logits", values)
    assert tensor.dtype == "BF16"
    np.testing.assert_array_equal(tensor.widen(), values.float().numpy())
    assert tensor.array.ctypes.data == values.data_ptr()


def test_bfloat16_arrays_of_jax_go_by_their_bits() -> None:
    values = np.random.default_rng(0).standard_normal((5, 3)).astype(ml_dtypes.bfloat16)
    tensor = Tensor.of("logits", values)
    assert tensor.dtype == "BF16"
    np.testing.assert_array_equal(tensor.widen(), values.astype(np.float32))
    assert np.shares_memory(tensor.array, values)


def test_every_bfloat16_is_widened_exactly() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    wide = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(Tensor("BF16", bits).widen(), wide)


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(torch.randn(4, 6, requires_grad=True), id="in a graph"),
        pytest.param(torch.randn(6, 4).t(), id="transposed"),
        pytest.param(torch.randn(4, 12)[:, ::2], id="strided"),
        pytest.param(torch.nn.Parameter(torch.randn(4, 6)), id="parameter"),
        pytest.param(torch.randn(4, 12).bfloat16()[:, ::2], id="strided bfloat16"),
    ],
)
def test_torch_tensors_of_any_kind_are_read(values: torch.Tensor) -> None:
    tensor = Tensor.of("logits", values)
    np.testing.assert_array_equal(tensor.widen(), values.detach().float().numpy())
    assert len(tensor.content) == values.numel() * values.itemsize


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_tensors_are_moved() -> None:
    values = torch.randn(4, 6, device="cuda")
    np.testing.assert_array_equal(Tensor.of("logits", values).array, values.cpu().numpy())


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i8", ">u2"])
def test_big_endian_arrays_are_swapped(dtype: str) -> None:
    tensor = Tensor.of("labels", VALUES.astype(dtype))
    assert bytes(tensor.content) == VALUES.astype(dtype.replace(">", "<")).tobytes()


@pytest.mark.parametrize("view", [np.s_[::2], np.s_[:, ::-1], np.s_[:, 1:3]], ids=str)
def test_views_are_sent_in_c_order(view: Any) -> None:
    array = np.asfortranarray(np.random.default_rng(0).standard_normal((6, 4)))[view]
    assert bytes(Tensor.of("logits", array).content) == array.tobytes()


def test_memory_mapped_files_are_not_copied(tmp_path: Path) -> None:
    np.save(tmp_path / "logits.npy", VALUES.astype(np.float32))
    array = np.load(tmp_path / "logits.npy", mmap_mode="r")
    tensor = Tensor.of("logits", array[1:])
    assert np.shares_memory(tensor.array, array)
    assert bytes(tensor.content) == array[1:].tobytes()


def test_an_empty_array_and_a_scalar_keep_their_shapes() -> None:
    assert Tensor.of("logits", np.zeros((0, 4))).array.shape == (0, 4)
    assert bytes(Tensor.of("logits", np.zeros((0, 4))).content) == b""
    assert Tensor.of("labels", np.int32(7)).array.shape == ()
    assert bytes(Tensor.of("labels", 7).content) == (7).to_bytes(8, "little")


@pytest.mark.parametrize(
    ("name", "values", "dtype"),
    [
        ("logits", [[1, 2], [3, 4]], "F32"),
        ("logits", [[0.1, 2], [3, 4]], "F32"),
        ("labels", [0, 1], "I64"),
        ("labels", [[0.25, 0.75]], "F32"),
        ("weight", [1, 0.1], "F64"),
        ("sample_weight", (1, 2), "F64"),
    ],
)
def test_lists_become_what_the_service_makes_of_them(name: str, values: Any, dtype: str) -> None:
    tensor = Tensor.of(name, values)
    assert tensor.dtype == dtype
    np.testing.assert_array_equal(tensor.array, np.array(values, NAMES[dtype]))


class OnlyDlpack:
    """An array that speaks nothing but DLPack."""

    def __init__(self, values: torch.Tensor) -> None:
        self._values = values

    def __dlpack__(self, **options: Any) -> Any:
        return self._values.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._values.__dlpack_device__()


def test_dlpack_is_enough() -> None:
    values = torch.randn(3, 4)
    tensor = Tensor.of("logits", OnlyDlpack(values))
    np.testing.assert_array_equal(tensor.array, values.numpy())
    assert tensor.array.ctypes.data == values.data_ptr()


class OnGpu:
    """What CuPy's arrays are like: they move only when told to."""

    __cuda_array_interface__: dict[str, Any] = {}  # noqa: RUF012 - its mere presence counts

    def __array__(self) -> Any:
        raise TypeError("implicit conversion is not allowed")

    def get(self) -> Any:
        return VALUES.astype(np.float32)


def test_arrays_of_cupy_are_moved_explicitly() -> None:
    np.testing.assert_array_equal(Tensor.of("logits", OnGpu()).array, VALUES)


@pytest.mark.parametrize("values", [np.array([True]), np.array([1j]), np.array(["a"]), np.array([1], "g")])
def test_other_dtypes_are_refused_by_name(values: Any) -> None:
    with pytest.raises(TypeError, match=r"labels can't be sent as .*; cast to one of F64, F32.*BF16"):
        Tensor.of("labels", values)


def test_misaligned_bytes_are_copied_and_aligned_ones_are_not() -> None:
    content = memoryview(bytearray(17))
    assert np.shares_memory(Tensor.read(content[:16], "F32", (2, 2)), content)
    off = Tensor.read(content[1:], "F32", (2, 2))
    assert off.flags.aligned
    assert not np.shares_memory(off, content)


def test_torch_need_not_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    np.testing.assert_array_equal(Tensor.of("logits", VALUES).array, VALUES)


@pytest.mark.parametrize("value", [[[1.0, None]], [["1", "2"]], [[True, False]]], ids=["null", "text", "truth"])
def test_lists_hold_numbers_only(value: object) -> None:
    with pytest.raises(TypeError, match="logits must be numbers"):
        Tensor.of("logits", value)


def test_a_number_in_a_list_that_does_not_fit_float32_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit float32"):
        Tensor.of("logits", [[1e39, 0.0]])
    assert np.isinf(Tensor.of("logits", [[np.inf, 0.0]]).array[0, 0])


def test_negated_views_of_torch_are_resolved() -> None:
    view = torch._neg_view(torch.tensor([1.0, -2.0]))
    np.testing.assert_array_equal(Tensor.of("logits", view).array, [-1, 2])
