"""What a row tells besides its loss; columns (R, 1), each computed only when it is among the outputs."""

import math

import torch
from torch import Tensor

_LONG_ROW = 64


def before_exponential(found: dict[str, Tensor], outputs: frozenset[str], logits: Tensor, d: Tensor, y: Tensor) -> None:
    """Adds what needs the order of the logits; y is the label, or the largest of probability labels."""
    if "margin" in outputs:
        found["margin"] = d.gather(1, y) - d.scatter(1, y, -math.inf).amax(1, keepdim=True)
    if "rank" in outputs:
        found["rank"] = (logits > logits.gather(1, y)).sum(1, keepdim=True)
    if "predictions" in outputs:
        found["predictions"] = _argmax(logits)


def after_exponential(found: dict[str, Tensor], outputs: frozenset[str], e: Tensor) -> None:
    """Adds what needs all exponentials e = exp d; the largest are 1, and are left out of the logarithm."""
    if "entropy" not in outputs:
        return
    largest = e == 1
    rest = e.masked_fill(largest, 0.0).sum(1, keepdim=True) + (largest.sum(1, keepdim=True) - 1)
    found["entropy"] = rest.log1p() - torch.xlogy(e, e).sum(1, keepdim=True) / (1 + rest)


def _argmax(logits: Tensor) -> Tensor:
    # On the CPU torch looks at one number after the other; numpy, within long rows, at many at once.
    if logits.device.type == "cpu" and logits.dtype == torch.float32 and logits.shape[1] >= _LONG_ROW:
        return torch.from_numpy(logits.numpy().argmax(1, keepdims=True))
    return logits.argmax(1, keepdim=True)


def norm_beside_label(e: Tensor, rest: Tensor, z: Tensor) -> Tensor:
    """Returns |q - onehot(y)| from exponentials without the label's; relative to `rest`, as small squares underflow."""
    spread = (e / rest).square_().sum(1, keepdim=True)
    return torch.where(rest == 0, rest / z, (1 + spread).sqrt() * (rest / z))


def distance(q: Tensor, t: Tensor, k: Tensor, q_rest: Tensor) -> Tensor:
    """Returns |q - t|, where q_k = 1 - q_rest; scaled, as small squares underflow."""
    gap = (q - t).scatter_(1, k, (1 - t.gather(1, k)) - q_rest).abs_()
    largest = gap.amax(1, keepdim=True)
    norm = (gap / largest).square_().sum(1, keepdim=True).sqrt_() * largest
    return torch.where(largest == 0, largest, norm)


def label_entropy(t: Tensor) -> Tensor:
    """Returns -sum t ln t."""
    return -torch.xlogy(t, t).sum(1, keepdim=True)
