"""The cases PyTorch ships for its own cross-entropy, in one form."""

import importlib
import random
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch.nn import functional

OP_DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
MODULE_DTYPES = [torch.float16, torch.float32, torch.float64]


@dataclass(frozen=True, slots=True)
class Case:
    """One call of `F.cross_entropy`."""

    name: str
    logits: torch.Tensor
    labels: torch.Tensor
    options: dict[str, Any]

    @property
    def reduction(self) -> str:
        return str(self.options.get("reduction", "mean"))

    def fields(self, grad_output: torch.Tensor) -> dict[str, Any]:
        """Return the same call as a request."""
        options = dict(self.options)
        if "weight" in options:  # 16-bit class weights travel as the same numbers in float32
            wide = torch.float64 if options["weight"].dtype == torch.float64 else torch.float32
            options["weight"] = options["weight"].to(wide)
        return {
            "logits": self.logits,
            "labels": self.labels,
            "include": ["loss", "losses", "gradients"],
            "grad_output": grad_output if grad_output.ndim else grad_output.item(),
            **options,
        }


@dataclass(frozen=True, slots=True)
class Expected:
    """What PyTorch says in float64."""

    loss: float | None
    losses: torch.Tensor
    gradients: torch.Tensor


def _load(name: str) -> ModuleType:
    """Import a testing module of PyTorch, whose own warnings are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(f"torch.testing._internal.{name}")


def _case(name: str, tensors: tuple[torch.Tensor, torch.Tensor], options: dict[str, Any]) -> Case:
    """Negative class weights are errors here; their absolute values are not."""
    logits, labels = tensors
    kept = dict(options)
    if kept.get("weight") is not None:
        kept["weight"] = kept["weight"].abs()
    return Case(name, logits.detach(), labels.detach(), kept)


@cache
def operator_cases(dtype: torch.dtype) -> list[Case]:
    """Return the samples of `op_db` for `nn.functional.cross_entropy`."""
    torch.manual_seed(0)
    random.seed(0)
    methods = _load("common_methods_invocations")
    (operator,) = (info for info in methods.op_db if info.name == "nn.functional.cross_entropy")
    samples = operator.sample_inputs("cpu", dtype, requires_grad=False)
    return [
        _case(f"{dtype}-{number}", (sample.input, sample.args[0]), sample.kwargs)
        for number, sample in enumerate(samples)
    ]


@cache
def module_cases(dtype: torch.dtype) -> list[Case]:
    """Return the inputs of `module_db` for `nn.CrossEntropyLoss`."""
    torch.manual_seed(0)
    info = _module_info()
    inputs = info.module_inputs_func(info, "cpu", dtype, requires_grad=False, training=True)
    return [
        _case(f"{dtype}-{given.desc}", given.forward_input.args, given.constructor_input.kwargs) for given in inputs
    ]


@cache
def error_cases() -> list[Case]:
    """Return the calls that PyTorch refuses."""
    torch.manual_seed(0)
    info = _module_info()
    errors = info.module_error_inputs_func(info, "cpu", torch.float32, requires_grad=False, training=True)
    inputs = [error.module_error_input for error in errors]
    return [
        _case(f"error-{number}", given.forward_input.args, given.constructor_input.kwargs)
        for number, given in enumerate(inputs)
    ]


def _module_info() -> Any:  # noqa: ANN401  a private class of PyTorch
    modules = _load("common_modules")
    (info,) = (info for info in modules.module_db if info.module_cls is torch.nn.CrossEntropyLoss)
    return info


def random_grad_output(case: Case, seed: int) -> torch.Tensor:
    """Upstream gradient in float64, of the losses' shape where nothing reduces them."""
    generator = torch.Generator().manual_seed(seed)
    shape = case.logits.shape[:1] + case.logits.shape[2:] if case.logits.ndim > 1 else ()
    return torch.randn(shape if case.reduction == "none" else (), generator=generator, dtype=torch.float64)


def differentiate(case: Case, grad_output: torch.Tensor) -> Expected:
    """Evaluate the case in float64 on the same, already rounded, input."""
    leaf = case.logits.double().clone().requires_grad_()
    labels = case.labels.double() if case.labels.is_floating_point() else case.labels
    options = dict(case.options)
    if options.get("weight") is not None:
        options["weight"] = options["weight"].double()
    value = functional.cross_entropy(leaf, labels, **options)
    torch.autograd.backward(value, grad_output)
    losses = functional.cross_entropy(leaf.detach(), labels, **{**options, "reduction": "none"})
    assert leaf.grad is not None
    gradients = leaf.grad
    if value.ndim == 0 and bool(value.isnan()):  # nothing but ignored rows: PyTorch 0/0, here exact zeros
        gradients = torch.zeros_like(gradients)
    return Expected(None if case.reduction == "none" else value.item(), losses, gradients)


def every_case() -> Iterator[Case]:
    """Yield all of them."""
    for dtype in OP_DTYPES:
        yield from operator_cases(dtype)
    for dtype in MODULE_DTYPES:
        yield from module_cases(dtype)
