"""`losseval.torch.CrossEntropyLoss` beside PyTorch's own module, in values, gradients and whole trainings."""

import copy
from typing import Any

import numpy as np
import pytest
import sklearn.datasets  # type: ignore[import-untyped]
import torch
from torch import Tensor, nn

from losseval import Client
from losseval.torch import CrossEntropyLoss

SHAPES = [((5,), ()), ((7, 5), (7,)), ((3, 5, 4), (3, 4)), ((2, 5, 3, 2), (2, 3, 2))]
OPTIONS: list[Any] = [
    pytest.param({}, id="defaults"),
    pytest.param({"weight": torch.tensor([0.5, 1.0, 2.0, 0.0, 1.0])}, id="weight"),
    pytest.param({"ignore_index": 2}, id="ignore index"),
    pytest.param({"label_smoothing": 0.2}, id="smoothing"),
    pytest.param({"label_smoothing": 0.2, "weight": torch.tensor([0.5, 1.0, 2.0, 3.0, 1.0])}, id="both"),
]


def check_against_torch(client: Client, logits: Tensor, target: Tensor, *, rtol: float, **options: Any) -> None:
    """Compares loss and gradients under an upstream gradient that is not 1, with PyTorch in float64."""
    weight = options.pop("weight", None)
    ours, theirs = logits.clone().requires_grad_(), logits.double().requires_grad_()
    cast = None if weight is None else weight.to(logits.dtype if logits.dtype == torch.float64 else torch.float32)
    wide_target = target.double() if target.is_floating_point() else target
    wide_weight = None if weight is None else weight.double()
    found = CrossEntropyLoss(client, cast, **options)(ours, target)
    expected = nn.CrossEntropyLoss(wide_weight, **options)(theirs, wide_target)
    assert found.dtype == logits.dtype
    assert found.shape == expected.shape
    upstream = torch.linspace(-1, 2, expected.numel(), dtype=torch.float64).reshape(expected.shape)
    found.backward(upstream.to(found.dtype))
    expected.backward(upstream)
    torch.testing.assert_close(found.double(), expected, rtol=rtol, atol=rtol)
    assert ours.grad is not None
    assert theirs.grad is not None
    assert ours.grad.dtype == logits.dtype
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=rtol, atol=rtol * 0.1)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("shape", "target_shape"), SHAPES, ids=str)
def test_it_does_what_the_module_of_that_name_does(
    client: Client, shape: Any, target_shape: Any, options: dict[str, Any], reduction: str
) -> None:
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(0, 5, target_shape, generator=generator)
    if target_shape == ():
        target = torch.tensor(1)
    logits = torch.randn(shape, generator=generator) * 3
    check_against_torch(client, logits, target, rtol=2e-6, reduction=reduction, **options)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", [(5,), (7, 5), (3, 5, 4)], ids=str)
def test_targets_may_be_probabilities(client: Client, shape: Any, reduction: str) -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(shape, generator=generator)
    target = torch.randn(shape, generator=generator).softmax(0 if len(shape) == 1 else 1)
    weight = torch.rand(5, generator=generator)
    check_against_torch(client, logits, target, rtol=2e-6, reduction=reduction, weight=weight, label_smoothing=0.1)


@pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)]
)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_every_float_dtype_is_taken(client: Client, dtype: torch.dtype, rtol: float, reduction: str) -> None:
    logits = torch.randn(9, 5, generator=torch.Generator().manual_seed(3)).to(dtype)
    check_against_torch(client, logits, torch.arange(9) % 5, rtol=rtol, reduction=reduction)


def test_nothing_but_ignored_targets_is_nan_with_zero_gradients(client: Client) -> None:
    logits = torch.randn(3, 5, requires_grad=True)
    loss = CrossEntropyLoss(client)(logits, torch.full((3,), -100))
    loss.backward()
    assert torch.isnan(loss)
    assert logits.grad is not None
    assert not logits.grad.any()


def test_a_second_derivative_is_refused(client: Client) -> None:
    logits = torch.randn(3, 5, requires_grad=True)
    loss = CrossEntropyLoss(client)(logits, torch.tensor([0, 1, 2]))
    with pytest.raises(RuntimeError, match="twice"):
        torch.autograd.grad(loss, logits, create_graph=True)


def test_gradients_of_probabilities_are_refused(client: Client) -> None:
    with pytest.raises(NotImplementedError, match="target"):
        CrossEntropyLoss(client)(torch.randn(3, 5), torch.rand(3, 5, requires_grad=True))


@pytest.mark.parametrize(("requires_grad", "is_enabled"), [(True, True), (True, False), (False, True)])
def test_gradients_are_fetched_only_when_needed(client: Client, requires_grad: bool, is_enabled: bool) -> None:
    asked: list[Any] = []

    class Spy(Client):
        def cross_entropy(self, *args: Any, **options: Any) -> Any:
            asked.append(options["include"])
            return client.cross_entropy(*args, **options)

    with torch.set_grad_enabled(is_enabled):
        loss = CrossEntropyLoss(Spy())(torch.randn(3, 5, requires_grad=requires_grad), torch.tensor([0, 1, 2]))
    assert asked == [["loss", "gradients"] if requires_grad and is_enabled else ["loss"]]
    assert loss.requires_grad == (requires_grad and is_enabled)


def test_the_weight_is_part_of_the_state_as_in_pytorch(client: Client) -> None:
    module = CrossEntropyLoss(client, torch.ones(3), reduction="sum")
    assert module.state_dict().keys() == nn.CrossEntropyLoss(torch.ones(3)).state_dict().keys()
    assert repr(module).endswith("reduction='sum')")
    twin = copy.deepcopy(module)
    assert twin(torch.zeros(1, 3), torch.tensor([0])).item() == pytest.approx(np.log(3))
    twin.client.close()


def train(model: nn.Module, criterion: nn.Module, steps: list[tuple[Tensor, Tensor]], **autocast: Any) -> list[float]:
    """Plain SGD, with autocast and a gradient scaler where asked for; returns the losses."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", enabled=autocast.get("dtype") == torch.float16)
    losses = []
    for inputs, target in steps:
        optimizer.zero_grad()
        with torch.autocast("cpu", enabled=bool(autocast), **autocast):
            loss = criterion(model(inputs), target)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    return losses


def test_a_linear_layer_follows_pytorchs_own_trajectory(client: Client) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 10, generator=generator)
    target = torch.randint(0, 3, (64,), generator=generator)
    model = nn.Linear(10, 3)
    twin = copy.deepcopy(model)
    ours = train(model, CrossEntropyLoss(client), [(inputs, target)] * 100)
    theirs = train(twin, nn.CrossEntropyLoss(), [(inputs, target)] * 100)
    np.testing.assert_allclose(ours, theirs, rtol=2e-6)
    torch.testing.assert_close(model.weight, twin.weight, rtol=1e-5, atol=2e-6)
    assert ours[-1] < ours[0]


def digits() -> tuple[Tensor, Tensor]:
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    return torch.from_numpy(images).float() / 16, torch.from_numpy(labels)


@pytest.mark.parametrize(
    ("autocast", "rtol"),
    [
        pytest.param({}, 1e-4, id="float32"),
        pytest.param({"dtype": torch.bfloat16}, 0.1, id="bfloat16"),
        pytest.param({"dtype": torch.float16}, 0.02, id="float16 with a gradient scaler"),
    ],
)
def test_digits_are_learnt_as_with_pytorchs_own(client: Client, autocast: dict[str, Any], rtol: float) -> None:
    images, labels = digits()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    known, unseen = order[:1400], order[1400:]
    steps = [(images[rows], labels[rows]) for _ in range(10) for rows in torch.split(known, 64)]
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    twin = copy.deepcopy(model)
    ours = train(model, CrossEntropyLoss(client), steps, **autocast)
    theirs = train(twin, nn.CrossEntropyLoss(), steps, **autocast)
    np.testing.assert_allclose(ours[:10], theirs[:10], rtol=rtol * 0.1)
    np.testing.assert_allclose(np.mean(ours[-50:]), np.mean(theirs[-50:]), rtol=rtol)
    accuracy = (model(images[unseen]).argmax(1) == labels[unseen]).float().mean().item()
    assert accuracy > 0.95


def test_scaled_gradients_do_not_underflow_in_float16(client: Client) -> None:
    """A confident row's gradient is below the smallest float16 until the scaler's factor is on it."""
    logits = torch.tensor([[20.0, 0.0, 0.0]], dtype=torch.float16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.float16):
        loss = CrossEntropyLoss(client)(logits, torch.tensor([0]))
    (loss * 65536).backward()
    exact = torch.tensor([20.0, 0, 0], dtype=torch.float64).softmax(0) - torch.tensor([1.0, 0, 0])
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad[0].double(), exact * 65536, rtol=2e-3, atol=1e-6)
    assert (logits.grad[0] != 0).all()


def test_probabilities_ignore_nothing_whatever_ignore_index_is(client: Client) -> None:
    logits, target = torch.randn(4, 3), torch.softmax(torch.randn(4, 3), 1)
    ours = CrossEntropyLoss(client, ignore_index=-1)(logits, target)
    torch.testing.assert_close(ours, nn.CrossEntropyLoss(ignore_index=-1)(logits, target))


def test_an_unknown_reduction_is_refused(client: Client) -> None:
    with pytest.raises(ValueError, match="avg"):
        CrossEntropyLoss(client, reduction="avg")  # type: ignore[arg-type]
