"""The one place where the benchmarks touch the service's kernel."""

import torch
from torch import Tensor

from service.loss.cross_entropy import cross_entropy
from service.loss.options import Formula

_OUTPUTS = frozenset({"losses", "gradients"})


def losses_and_gradients(logits: Tensor, labels: Tensor, *, is_high: bool = False) -> tuple[Tensor, Tensor]:
    """Computes losses (N) and the gradient (N, C) of their mean, in the dtype of the logits.

    Args:
        logits: (N, C), float32 or float64.
        labels: (N,), int64 in [0, C).
        is_high: Computes in float64 whatever the dtype.
    """
    is_wide = is_high or logits.dtype == torch.float64
    formula = Formula(outputs=_OUTPUTS, arithmetic="float64" if is_wide else "float32")
    arithmetic = torch.float64 if is_wide else torch.float32
    scale = torch.full((len(labels),), 1 / len(labels), dtype=arithmetic)
    found = cross_entropy(logits, labels, formula=formula, gradient_scale=scale)
    return found["losses"].to(logits.dtype), found["gradients"]
