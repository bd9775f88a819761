"""The oracle itself, against PyTorch in float64, PyTorch's own oracle and 60-digit arithmetic."""

import importlib
from collections.abc import Callable, Iterator
from decimal import Decimal, localcontext
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.reference import cross_entropy

SHAPES = [
    pytest.param((3,), id="C"),
    pytest.param((4, 3), id="N-C"),
    pytest.param((2, 5, 3), id="N-C-d1"),
    pytest.param((2, 3, 2, 2), id="N-C-d1-d2"),
]


def random_case(
    shape: tuple[int, ...], *, is_index: bool, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, labels and non-negative class weights in float64."""
    generator = torch.Generator().manual_seed(seed)
    classes = shape[0] if len(shape) == 1 else shape[1]
    logits = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    label_shape = shape[:1] + shape[2:] if len(shape) > 1 else ()
    labels = torch.randint(classes, label_shape, generator=generator)
    if not is_index:
        axis = 0 if len(shape) == 1 else 1
        labels = torch.randn(shape, generator=generator, dtype=torch.float64).softmax(axis)
    return logits, labels, torch.rand(classes, generator=generator, dtype=torch.float64)


def option_sets(*, is_index: bool) -> Iterator[dict[str, Any]]:
    """Yield every combination of PyTorch's own options."""
    ignored = [-100, 1] if is_index else [-100]
    for reduction, smoothing, ignore_index, weighted in product(
        ["mean", "sum", "none"], [0.0, 0.15, 1.0], ignored, [False, True]
    ):
        yield {
            "reduction": reduction,
            "label_smoothing": smoothing,
            "ignore_index": ignore_index,
            "weighted": weighted,
        }


def differentiate(
    function: Callable[[torch.Tensor], torch.Tensor], logits: torch.Tensor, upstream: torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Value of the function and its gradient by autograd."""
    leaf = logits.clone().requires_grad_()
    value = function(leaf)
    torch.autograd.backward(value, upstream.reshape(value.shape) if value.ndim else upstream.sum())
    assert leaf.grad is not None
    return value.detach().numpy(), leaf.grad.numpy()


@pytest.mark.parametrize("is_index", [pytest.param(True, id="index"), pytest.param(False, id="probability")])
@pytest.mark.parametrize("shape", SHAPES)
def test_reference_equals_pytorch_and_autograd(shape: tuple[int, ...], *, is_index: bool) -> None:
    logits, labels, class_weight = random_case(shape, is_index=is_index)
    rows = logits.numel() // class_weight.numel()
    upstream = torch.randn(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for options in option_sets(is_index=is_index):
        weight = class_weight if options.pop("weighted") else None
        if is_index and bool((labels == options["ignore_index"]).all()):
            continue
        value, gradient = differentiate(
            lambda leaf: functional.cross_entropy(leaf, labels, weight=weight, **options),  # noqa: B023  called at once
            logits,
            upstream,
        )
        scalar = options["reduction"] != "none"
        result = cross_entropy(
            logits.numpy(),
            labels.numpy(),
            weight=None if weight is None else weight.numpy(),
            grad_output=upstream.sum().item() if scalar else upstream.numpy(),
            **options,
        )
        ours = result.loss if scalar else result.losses
        np.testing.assert_allclose(ours.astype(float), value, rtol=1e-13, atol=1e-15, err_msg=str(options))
        np.testing.assert_allclose(result.gradients.astype(float), gradient, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("is_index", [pytest.param(True, id="index"), pytest.param(False, id="probability")])
def test_reference_equals_the_oracle_shipped_with_pytorch(*, is_index: bool) -> None:
    shipped = importlib.import_module("torch.testing._internal.common_nn")
    logits, labels, class_weight = random_case((6, 4, 3), is_index=is_index)
    for options in option_sets(is_index=is_index):
        weight = class_weight if options.pop("weighted") else None
        expected = shipped.cross_entropy_loss_reference(logits, labels, weight=weight, **options)
        result = cross_entropy(
            logits.numpy(), labels.numpy(), weight=None if weight is None else weight.numpy(), **options
        )
        ours = result.losses if result.loss is None else result.loss
        np.testing.assert_allclose(ours.astype(float), expected.numpy(), rtol=1e-13, err_msg=str(options))


@pytest.mark.parametrize("is_index", [pytest.param(True, id="index"), pytest.param(False, id="probability")])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_extensions_equal_their_definition_under_autograd(reduction: str, *, is_index: bool) -> None:
    logits, labels, class_weight = random_case((7, 5), is_index=is_index)
    row_weight = torch.arange(7, dtype=torch.float64)
    temperature, z_loss = 2.5, 0.3

    def definition(leaf: torch.Tensor) -> torch.Tensor:
        scaled = leaf / temperature
        rows = functional.cross_entropy(scaled, labels, weight=class_weight, label_smoothing=0.2, reduction="none")
        total = (row_weight * (rows + z_loss * scaled.logsumexp(1) ** 2)).sum()
        own = class_weight[labels] if is_index else torch.ones(7, dtype=torch.float64)
        return total / (row_weight * own).sum() if reduction == "mean" else total

    value, gradient = differentiate(definition, logits, torch.tensor(-1.7, dtype=torch.float64))
    result = cross_entropy(
        logits.numpy(),
        labels.numpy(),
        weight=class_weight.numpy(),
        sample_weight=row_weight.numpy(),
        label_smoothing=0.2,
        temperature=temperature,
        z_loss=z_loss,
        reduction=reduction,
        grad_output=-1.7,
    )
    np.testing.assert_allclose(float(result.loss), value, rtol=1e-13)
    np.testing.assert_allclose(result.gradients.astype(float), gradient, rtol=1e-12, atol=1e-15)


def test_confident_rows_keep_their_digits() -> None:
    """The loss of a row won by 70 is 4e-31, far below float64's 1 - p."""
    logits = np.array([[70.0, 0.5, -1.0], [-3.0, 40.0, 2.0]])
    result = cross_entropy(logits, np.array([0, 1]), reduction="sum")
    with localcontext(prec=60):
        for row, label in ((0, 0), (1, 1)):
            exact = [Decimal(value).exp() for value in logits[row].tolist()]
            others = sum((e for c, e in enumerate(exact) if c != label), Decimal(0))
            loss = (1 + others / exact[label]).ln()
            gradient = -others / sum(exact)
            assert abs(float(result.losses[row]) / float(loss) - 1) < 1e-15
            assert abs(float(result.gradients[row, label]) / float(gradient) - 1) < 1e-15


def test_diagnostics_equal_their_definition() -> None:
    logits, labels, _ = random_case((40, 8), is_index=True)
    labels[3] = -100
    kept = labels != -100
    result = cross_entropy(logits.numpy(), labels.numpy())
    q = logits.softmax(1)
    own = logits.gather(1, labels.clamp(min=0)[:, None])[:, 0]
    rivals = logits.scatter(1, labels.clamp(min=0)[:, None], -torch.inf)
    onehot = functional.one_hot(labels.clamp(min=0), 8)
    top5 = (logits.topk(5).indices == labels[:, None]).any(1)[kept].double().mean()
    nll = functional.cross_entropy(logits, labels, reduction="none")
    expected = {
        "nll": nll,
        "probabilities": q,
        "logsumexp": logits.logsumexp(1),
        "entropy": -(q * q.log()).sum(1),
        "margin": torch.where(kept, own - rivals.amax(1), 0),
        "gradient_norm": torch.where(kept, (q - onehot).norm(dim=1), 0),
        "predictions": logits.argmax(1),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(result, name).astype(float), value.numpy(), rtol=1e-12, atol=1e-15)
    summary = result.summary
    assert float(summary["accuracy"]) == pytest.approx((logits.argmax(1) == labels)[kept].double().mean().item())
    assert float(summary["top5_accuracy"]) == pytest.approx(top5.item())
    assert float(summary["perplexity"]) == pytest.approx(nll[kept].mean().exp().item())
    assert float(summary["standard_error"]) == pytest.approx(nll[kept].std().item() / 39**0.5)
    frequency = labels[kept].bincount(minlength=8).double() / 39
    prior = -torch.special.xlogy(frequency, frequency).sum().item()
    assert float(summary["baseline_prior"]) == pytest.approx(prior)
    assert summary["calibration"]["count"].sum() == summary["per_class"]["count"].sum() == 39
    assert float(summary["per_class"]["nll_sum"].sum()) == pytest.approx(nll.sum().item())


def test_calibration_error_of_a_hand_made_batch() -> None:
    """Two rows at 0.9 with one right, one row at 0.6 and right: (|1 - 1.8| + |1 - 0.6|) / 3."""
    logits = np.log(np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]]))
    summary = cross_entropy(logits, np.array([0, 1, 1])).summary
    assert float(summary["expected_calibration_error"]) == pytest.approx(0.4)


def test_kl_divergence_is_zero_for_a_perfect_prediction() -> None:
    truth = np.array([[0.25, 0.75], [1.0, 0.0]])
    with np.errstate(divide="ignore"):
        result = cross_entropy(np.log(truth), truth)
    assert float(result.summary["kl_divergence"]) == pytest.approx(0, abs=1e-18)
    assert float(result.summary["label_entropy"]) == pytest.approx(0.28116757230940415)
