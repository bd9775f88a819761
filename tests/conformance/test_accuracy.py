"""The accuracy bars, in the regimes in which float32 cross-entropy usually fails them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from tests import kernel
from tests.conformance.regimes import CLASSES, REGIMES, Regime, Rows, make_rows
from tests.reference import Array, Result, as_rows, cross_entropy

pytestmark = pytest.mark.usefixtures("kernel_over_http")

SUBNORMAL = {"F32": 2.0**-149, "F64": 2.0**-1074}
SMALLEST_NORMAL = {"F32": 2.0**-126, "F64": 2.0**-1022}


@dataclass(frozen=True, slots=True)
class Mode:
    """A dtype of the logits with a precision, and the bars that hold for it."""

    dtype: torch.dtype
    precision: str
    loss: float
    loss_of_close_rows: float  # every class within 4 of the best
    gradient_relative: float
    gradient_absolute: float  # in units of the row's coefficient times its scale
    row_sum: float

    @property
    def output(self) -> str:
        return "F64" if self.dtype == torch.float64 else "F32"


# The absolute bar of `high` is what rounding the two products that are subtracted costs in float64.
STANDARD = Mode(torch.float32, "standard", 5e-6, 3e-7, 1e-6, 6e-8, 5e-7)
BFLOAT16 = Mode(torch.bfloat16, "standard", 5e-6, 3e-7, 1e-6, 6e-8, 5e-7)
HIGH = Mode(torch.float32, "high", 6.1e-8, 6.1e-8, 6.1e-8, 5e-16, 2e-7)
DOUBLE = Mode(torch.float64, "standard", 1e-14, 1e-14, 1e-14, 1e-14, 1e-14)
MODES = [
    pytest.param(STANDARD, id="standard"),
    pytest.param(BFLOAT16, id="standard-bfloat16"),
    pytest.param(HIGH, id="high"),
    pytest.param(DOUBLE, id="float64"),
]
KINDS = [pytest.param("index", id="index"), pytest.param("probability", id="probability")]


def as_float32(values: Array) -> Array:
    """Round so that arithmetic in float32 has the same input as the reference."""
    return values.astype(np.float32).astype(np.float64)


def option_sets(rows: int, classes: int, generator: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Yield PyTorch's defaults, class weights with smoothing, and everything at once."""
    yield {"reduction": "sum"}
    weight = as_float32(generator.random(classes) * 2)
    yield {"weight": weight, "label_smoothing": float(generator.choice([0.1, 0.5, 1.0])), "reduction": "mean"}
    yield {
        "weight": weight,
        "label_smoothing": 0.05,
        "sample_weight": as_float32(generator.random(rows) + 0.1),
        "grad_output": as_float32(generator.normal(size=rows)),
        "reduction": "none",
    }


@dataclass(frozen=True, slots=True)
class Deviation:
    """Worst deviations in units of the bar."""

    loss: float
    gradient: float
    row_sum: float
    false_zeros: int

    def __str__(self) -> str:
        return (
            f"loss {self.loss:.3g} × bar, gradient {self.gradient:.3g} × bar, "
            f"row sum {self.row_sum:.3g} × bar, {self.false_zeros} false zeros"
        )

    @property
    def holds(self) -> bool:
        return max(self.loss, self.gradient, self.row_sum) <= 1 and self.false_zeros == 0


def in_units(found: Array, expected: Array, bar: Array) -> float:
    """Largest |found - expected| / bar; equal infinities deviate by nothing, NaN by everything."""
    with np.errstate(invalid="ignore"):
        deviation = np.where(found == expected, 0, np.abs(found - expected) / bar)
    return float(np.nan_to_num(deviation, nan=np.inf).max(initial=0))


def count_false_zeros(found: Array, expected: Array, dtype: str) -> int:
    return int(((found == 0) & (np.abs(expected) >= SMALLEST_NORMAL[dtype])).sum())


def loss_bar(mode: Mode, logits: Array, expected: Array) -> Array:
    distance = logits.min(axis=1) - logits.max(axis=1)
    relative = np.where(distance > -4, mode.loss_of_close_rows, mode.loss)
    return relative * np.abs(expected) + SUBNORMAL[mode.output]


def gradient_bar(mode: Mode, expected: Result) -> Array:
    unit = np.abs(expected.scale) * expected.coefficient
    relative = mode.gradient_relative * np.abs(expected.gradients)
    return np.maximum(relative, mode.gradient_absolute * unit[:, None]) + SUBNORMAL[mode.output]


def measure(mode: Mode, logits: torch.Tensor, labels: Array, options: dict[str, Any]) -> Deviation:
    """Compare one evaluation with the reference on the same, already rounded, input."""
    include = ["losses", "gradients"]
    found = kernel.evaluate(logits, labels, include=include, precision=mode.precision, **options)
    exact = logits.double().numpy()
    expected = cross_entropy(exact, labels.astype(np.float64) if labels.ndim == 2 else labels, **options)
    losses, gradients = found["losses"].astype(np.longdouble), found["gradients"].astype(np.longdouble)
    plain = set(options) == {"reduction"}
    return Deviation(
        loss=in_units(losses, expected.losses, loss_bar(mode, as_rows(exact), expected.losses)),
        gradient=in_units(gradients, expected.gradients, gradient_bar(mode, expected)),
        row_sum=float(np.abs(gradients.sum(axis=1)).max() / mode.row_sum) if plain else 0.0,
        false_zeros=count_false_zeros(losses, expected.losses, mode.output)
        + count_false_zeros(gradients, expected.gradients, mode.output),
    )


def deviations(mode: Mode, kind: str, regime: Regime) -> Iterator[tuple[str, Deviation]]:
    """Yield what was measured for each class count; the two largest take turns with the options."""
    generator = np.random.default_rng(sum(map(ord, regime.name)))
    for number, classes in enumerate(CLASSES):
        rows = make_rows(regime, classes, generator)
        logits = torch.from_numpy(rows.logits).to(mode.dtype)
        labels = labels_of(rows, kind, mode)
        for turn, options in enumerate(option_sets(len(labels), classes, generator)):
            if classes <= 1000 or turn == (number + len(regime.name)) % 3:
                yield f"C={classes}, {sorted(options)}", measure(mode, logits, labels, options)


def labels_of(rows: Rows, kind: str, mode: Mode) -> Array:
    if kind == "index":
        return rows.index
    return rows.probability if mode.output == "F64" else rows.probability.astype(np.float32)


@pytest.mark.parametrize("regime", [pytest.param(regime, id=regime.name) for regime in REGIMES])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_losses_and_gradients_are_within_the_bars(mode: Mode, kind: str, regime: Regime) -> None:
    measured = list(deviations(mode, kind, regime))
    report = "\n".join(f"{what}: {deviation}" for what, deviation in measured if not deviation.holds)
    assert not report, f"{regime.name}:\n{report}"
