"""Gathering a batch, and the staged way across a bus, taken here without one."""

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from service.engine import device as device_module
from service.engine.batcher import DeviceLost
from service.engine.device import TorchDevice, gather, resolve
from service.engine.staging import from_device, to_device
from service.errors import InsufficientDeviceMemory
from service.loss.evaluation import Evaluation
from service.loss.options import LossOptions
from service.loss.validation import SizeLimits, validate
from tests.server import ROOT

LIMITS = SizeLimits()
GRADIENTS = LossOptions(include=("losses", "gradients"), reduction="sum")


def an_evaluation(rows: int, dtype: type = np.float32, *, ignore_first: bool = False) -> Evaluation:
    generator = np.random.default_rng(rows)
    labels = generator.integers(0, 5, rows)
    if ignore_first:
        labels[0] = -100
    return validate({"logits": generator.normal(size=(rows, 5)).astype(dtype), "labels": labels}, GRADIENTS, LIMITS)


def test_a_single_evaluation_is_not_copied() -> None:
    evaluation = an_evaluation(3)
    assert gather([evaluation])["logits"] is evaluation.logits


def test_rows_are_joined_in_order_and_weights_filled_in() -> None:
    arrays = gather([an_evaluation(2), an_evaluation(3, ignore_first=True)])
    assert arrays["logits"].shape == (5, 5)
    np.testing.assert_array_equal(arrays["row_weight"], np.array([1, 1, 0, 1, 1], np.float32))
    np.testing.assert_array_equal(arrays["zero_rows"], [2])


def test_tensors_cross_the_bus_packed_and_arrive_whole() -> None:
    tensors = {
        "matrix": torch.arange(12, dtype=torch.float64).view(3, 4),
        "vector": torch.arange(7, dtype=torch.bfloat16),
        "empty": torch.empty(0, 3),
        "integers": torch.arange(5),
    }
    there = to_device(tensors, torch.device("cpu"))
    back = from_device(there)
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)
        assert there[name].data_ptr() != tensor.data_ptr() or not tensor.numel()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_staged_way_gives_the_same_bits(dtype: type) -> None:
    device = TorchDevice("cpu", threads=1)
    try:
        evaluations = [an_evaluation(4, dtype), an_evaluation(2, dtype, ignore_first=True)]
        direct = device.compute(evaluations)
        staged = device._compute_staged(gather(evaluations), evaluations[0].formula)
    finally:
        device.close()
    assert staged.transfer_s is not None
    for name, rows in direct.rows.items():
        np.testing.assert_array_equal(staged.rows[name], rows)


def test_a_cuda_device_that_is_not_there_is_an_error_and_auto_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"DEVICE=cuda:1, but torch .* sees no CUDA device"):
        resolve("cuda:1")
    assert resolve("auto") == torch.device("cpu")


@pytest.fixture
def device() -> Iterator[TorchDevice]:
    device = TorchDevice("cpu", threads=1)
    yield device
    device.close()


def fail_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(device_module, "cross_entropy", fail)


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(MemoryError("Unable to allocate 1.00 EiB"), id="numpy"),
        pytest.param(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), id="torch on the CPU"),
        pytest.param(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), id="torch on CUDA"),
        pytest.param(torch.AcceleratorError("CUDA error: out of memory"), id="pinned memory"),
    ],
)
def test_want_of_memory_is_told_from_a_bug(
    error: Exception, device: TorchDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_with(error, monkeypatch)
    with pytest.raises(InsufficientDeviceMemory):
        device.compute([an_evaluation(1)])


def test_torch_still_says_so_when_memory_is_wanting() -> None:
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        torch.empty(1 << 60, dtype=torch.uint8)


def test_an_error_after_which_the_device_still_computes_is_that_batchs_own(
    device: TorchDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_with(torch.AcceleratorError("CUDA error: invalid argument"), monkeypatch)
    with pytest.raises(torch.AcceleratorError, match="invalid argument"):
        device.compute([an_evaluation(1)])


def test_a_device_that_computes_nothing_after_an_error_is_lost(
    device: TorchDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    assertion = torch.AcceleratorError("CUDA error: device-side assert triggered")
    fail_with(assertion, monkeypatch)

    def zeros(*_: object, **__: object) -> None:
        raise assertion

    monkeypatch.setattr(torch, "zeros", zeros)
    with pytest.raises(DeviceLost, match="device-side assert"):
        device.compute([an_evaluation(1)])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_cpu() -> None:
    evaluations = [an_evaluation(4), an_evaluation(2, ignore_first=True)]
    cpu, cuda = TorchDevice("cpu", threads=1), TorchDevice("cuda", threads=1)
    expected, found = cpu.compute(evaluations), cuda.compute(evaluations)
    for name, rows in expected.rows.items():
        np.testing.assert_allclose(found.rows[name], rows, rtol=1e-5, atol=1e-6)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_assertion_in_a_kernel_loses_the_device() -> None:
    """In a process of its own, since its CUDA is lost for good."""
    program = (
        "import torch\n"
        "from service.engine import device\n"
        "from tests.unit.engine.test_device import an_evaluation\n"
        "def fail(**_):\n"
        "    torch._assert_async(torch.tensor(False, device='cuda'))\n"
        "    torch.cuda.synchronize()\n"
        "device.cross_entropy = fail\n"
        "try:\n"
        "    device.TorchDevice('cuda', threads=1).compute([an_evaluation(1)])\n"
        "except device.DeviceLost:\n"
        "    print('lost')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "lost\n", done.stderr
