"""The kernel: losses, gradients and diagnostics of rows of logits in one pass, without autograd.

For a row x of C logits, u = x / T and q = softmax(u), the loss and its gradient with respect to u are

    index label y:          A (L - u_y) + B (W L - sum_c w_c u_c),   q_c (A + B W) - A [c = y] - B w_c
    probability labels t:   S L - sum_c a_c u_c,                     S q_c - a_c

with A = (1 - eps) w_y, B = eps / C, W = sum_c w_c, a_c = w_c ((1 - eps) t_c + eps / C), S = sum_c a_c and
L = logsumexp(u); `z_loss` adds zeta L^2 and 2 zeta L q_c (Szegedy et al. 2015 for the smoothing, Chowdhery et al. 2022
for the z-loss; the conventions on class weights are PyTorch's).

Computed as written, these forms cancel wherever a model is sure of itself: L - u_y is the difference of two equal
numbers. So everything is expressed in d_c = (x_c - max x) / T, and the class that matters (the label, or the largest
logit for probability labels) is left out of the sum of exponentials:

    rest = sum_{c != y} exp d_c;   Z = rest + exp d_y;   L - u_y = ln Z - d_y;   1 - q_y = rest / Z

Rows are independent of their neighbours down to the last bit: reductions always run over contiguous (rows, classes)
with at least two rows, because torch splits a single long row across threads.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .options import FloatName, Formula

BLOCK_BYTES = 4 << 20
"""Rows are worked on in blocks that stay in the last-level cache, whatever the size of the input."""

DTYPES: dict[FloatName, torch.dtype] = {
    "F32": torch.float32,
    "F64": torch.float64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
ROW_OUTPUTS = frozenset(
    {
        "losses",  # row_weight times the loss
        "maximum",  # of the logits: not finite where the row has no softmax
        "nll",  # L - u_y, or sum_c t_c (L - u_c): no weights, no smoothing, no z_loss
        "logsumexp",
        "entropy",
        "margin",  # u_y - max_{c != y} u_c
        "gradient_norm",  # |q - onehot(y)|, or |q - t|
        "confidence",  # max q
        "predictions",  # argmax, the first on ties
        "rank",  # how many logits are greater than the target's
        "target",  # y, or argmax t
        "label_entropy",  # probability labels only
    }
)


def arithmetic_dtype(logits: torch.dtype, formula: Formula) -> torch.dtype:
    """Returns float64 for float64 logits and for `high` precision, else float32."""
    return torch.float64 if logits == torch.float64 or formula.precision == "high" else torch.float32


@torch.inference_mode()
def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    formula: Formula,
    row_weight: Tensor | None = None,
    gradient_scale: Tensor | None = None,
    zero_rows: Tensor | None = None,
) -> dict[str, Tensor]:
    """Computes `formula.outputs` for rows of logits.

    Args:
        logits: (R, C), contiguous, C >= 1, of any float dtype.
        labels: (R,) int64 in [0, C), or (R, C) probabilities of any float dtype.
        formula: What to compute. With index labels a class weight is gathered by label.
        row_weight: (R,), multiplies the losses; a row of weight 0 has loss 0 even where it is not finite.
        gradient_scale: (R,), multiplies the gradient with respect to x / T: upstream gradient, sample weight and
            1 / (normalizer T). Required for the output `gradients`.
        zero_rows: Indices of the rows whose gradients are exact zeros.

    Returns:
        Tensors by name: (R,) in the arithmetic dtype or int64, but `gradients` (R, C) in `formula.gradient_dtype` and
        `probabilities` (R, C) in float32 (float64 for float64 logits). A row whose largest logit is not finite has NaN
        in all of them but `predictions`, `rank` and `target`.
    """
    if logits.shape[0] == 1:
        twice = [None if tensor is None else torch.cat((tensor, tensor)) for tensor in (row_weight, gradient_scale)]
        doubled = cross_entropy(
            torch.cat((logits, logits)),
            torch.cat((labels, labels)),
            formula=formula,
            row_weight=twice[0],
            gradient_scale=twice[1],
            zero_rows=zero_rows,
        )
        return {name: tensor[:1] for name, tensor in doubled.items()}
    terms = _Terms.of(logits, formula)
    matrices = _allocate_matrices(logits, formula)
    in_place = matrices.get("gradients")
    if in_place is not None and in_place.dtype != terms.dtype:
        in_place = None
    scratch: Tensor | None = None
    blocks: list[dict[str, Tensor]] = []
    for part in _blocks(logits.shape, terms.dtype):
        if in_place is None and (scratch is None or scratch.shape[0] != part.stop - part.start):
            scratch = torch.empty((part.stop - part.start, logits.shape[1]), dtype=terms.dtype, device=logits.device)
        block = _Block(
            logits=logits[part],
            labels=labels[part],
            work=in_place[part] if in_place is not None else scratch,  # type: ignore[arg-type]
            scale=None if gradient_scale is None else gradient_scale[part].unsqueeze(1),
            row_weight=None if row_weight is None else row_weight[part].unsqueeze(1),
            matrices={name: matrix[part] for name, matrix in matrices.items()},
        )
        blocks.append(_index_rows(block, terms) if labels.ndim == 1 else _probability_rows(block, terms))
    rows = {name: torch.cat([block[name] for block in blocks]).squeeze(1) for name in blocks[0]}
    if zero_rows is not None and "gradients" in matrices:
        matrices["gradients"].index_fill_(0, zero_rows, 0.0)
    return {name: rows[name] for name in rows if name in formula.outputs} | matrices


@dataclass(frozen=True, slots=True)
class _Terms:
    """The constants of one pass, in the notation of the module's docstring."""

    formula: Formula
    dtype: torch.dtype
    eps: float
    smooth: float  # B
    weight: Tensor | None  # w, (C,)
    weight_sum: float  # W

    @classmethod
    def of(cls, logits: Tensor, formula: Formula) -> "_Terms":
        dtype = arithmetic_dtype(logits.dtype, formula)
        classes = logits.shape[1]
        weight, weight_sum = None, float(classes)
        if formula.class_weight is not None:
            exact = torch.frombuffer(bytearray(formula.class_weight), dtype=torch.float64)
            weight, weight_sum = exact.to(logits.device, dtype), float(exact.sum())
        eps = formula.label_smoothing
        return cls(formula, dtype, eps, eps / classes, weight, weight_sum)


@dataclass(frozen=True, slots=True)
class _Block:
    """Consecutive rows, the buffer they are worked on in, and where their matrices go."""

    logits: Tensor
    labels: Tensor
    work: Tensor
    scale: Tensor | None
    row_weight: Tensor | None
    matrices: dict[str, Tensor]


def _allocate_matrices(logits: Tensor, formula: Formula) -> dict[str, Tensor]:
    plain = torch.float64 if logits.dtype == torch.float64 else torch.float32
    gradient = DTYPES[formula.gradient_dtype] if formula.gradient_dtype else plain
    wanted = {"gradients": gradient, "probabilities": plain}
    return {
        name: torch.empty(logits.shape, dtype=kind, device=logits.device)
        for name, kind in wanted.items()
        if name in formula.outputs
    }


def _blocks(shape: torch.Size, dtype: torch.dtype) -> Iterator[slice]:
    """Yields slices of nearly equal length, none of a single row."""
    rows, classes = shape
    count = max(1, rows // max(2, BLOCK_BYTES // (classes * dtype.itemsize)))
    edges = [rows * i // count for i in range(count + 1)]
    return (slice(start, stop) for start, stop in itertools.pairwise(edges))


def _shift(block: _Block, terms: _Terms) -> tuple[Tensor, Tensor]:
    """Fills the work buffer with d = (x - max x) / T and returns it with the row maxima.

    The maximum is subtracted before the division: at an offset of 1e4, x / T first loses three digits.
    """
    formula, work = terms.formula, block.work
    if formula.input == "probabilities":
        maximum = work.copy_(block.logits).log_().amax(1, keepdim=True)
        work.sub_(maximum)
    elif work.dtype == block.logits.dtype:
        maximum = block.logits.amax(1, keepdim=True)
        torch.sub(block.logits, maximum, out=work)
    else:
        maximum = work.copy_(block.logits).amax(1, keepdim=True)
        work.sub_(maximum)
    if formula.temperature != 1:
        work.div_(formula.temperature)
    return work, maximum


def _index_rows(block: _Block, terms: _Terms) -> dict[str, Tensor]:
    formula, outputs = terms.formula, terms.formula.outputs
    y = block.labels.unsqueeze(1)
    d, maximum = _shift(block, terms)
    d_y = d.gather(1, y)
    found = _ranking(block, d, y, outputs)
    linear = _weighted_sum(d, terms.weight) if terms.smooth else None
    e = d.exp_()
    if "entropy" in outputs:
        found["entropy"] = _entropy(e)
    e_y = e.gather(1, y)
    e.scatter_(1, y, 0.0)
    rest = e.sum(1, keepdim=True)
    z = rest + e_y
    ln_z = torch.where(d_y == 0, rest.log1p(), z.log())
    nll = ln_z - d_y
    logsumexp = maximum / formula.temperature + ln_z
    found |= {"maximum": maximum, "nll": nll, "logsumexp": logsumexp, "confidence": z.reciprocal()}
    if "gradient_norm" in outputs:
        # Relative to `rest`, because the squares of small probabilities underflow.
        spread = (e / rest).square_().sum(1, keepdim=True)
        found["gradient_norm"] = torch.where(rest == 0, rest, (1 + spread).sqrt() * (rest / z))
    if "probabilities" in outputs:
        block.matrices["probabilities"].copy_(e / z).scatter_(1, y, (e_y / z).to(block.matrices["probabilities"].dtype))

    hit: float | Tensor = 1 - terms.eps  # A
    if terms.weight is not None:
        hit = terms.weight[block.labels].unsqueeze(1) * hit
    losses = _scaled(hit, nll)
    common: float | Tensor = terms.smooth * terms.weight_sum  # the part of q_c's coefficient that the label shares
    if linear is not None:
        losses = losses + terms.smooth * (terms.weight_sum * ln_z - linear)
    if formula.z_loss:
        losses = losses + formula.z_loss * logsumexp.square()
        common = common + 2 * formula.z_loss * logsumexp
    found["losses"] = _weighted(losses, block.row_weight)
    if "gradients" in outputs:
        at_label = common * (e_y / z) - hit * (rest / z)
        _write_gradients(block, terms, (hit + common) / z, y, at_label)
    return found


def _write_gradients(block: _Block, terms: _Terms, factor: Tensor, y: Tensor, at_label: Tensor) -> None:
    """Turns the exponentials in the work buffer into gradients; `at_label` still lacks -B w_y."""
    scale, e = block.scale, block.work
    if scale is None:
        msg = "gradients need a gradient_scale"
        raise TypeError(msg)
    e.mul_(factor * scale)
    if terms.smooth and terms.weight is None:
        e.sub_(scale * terms.smooth)
        at_label = at_label - terms.smooth
    elif terms.smooth and terms.weight is not None:
        e.addcmul_(scale, terms.weight.unsqueeze(0), value=-terms.smooth)
        at_label = at_label - terms.weight[block.labels].unsqueeze(1) * terms.smooth
    e.scatter_(1, y, at_label * scale + 0.0)  # + 0.0: a single class has gradient 0.0, not -0.0
    _deliver_gradients(block)


def _deliver_gradients(block: _Block) -> None:
    if block.matrices["gradients"].data_ptr() != block.work.data_ptr():
        block.matrices["gradients"].copy_(block.work)


def _probability_rows(block: _Block, terms: _Terms) -> dict[str, Tensor]:
    formula, outputs = terms.formula, terms.formula.outputs
    t = block.labels.to(terms.dtype)
    target = t.argmax(1, keepdim=True)
    d, maximum = _shift(block, terms)
    k = d.argmax(1, keepdim=True)
    found = _ranking(block, d, target, outputs) | {"target": target}
    a = _smoothed(t, terms)
    linear = _weighted_sum(d, a)
    plain_linear = _weighted_sum(d, t) if "nll" in outputs and a is not t else linear
    e = d.exp_()
    if "entropy" in outputs:
        found["entropy"] = _entropy(e)
    if "label_entropy" in outputs:
        found["label_entropy"] = -torch.xlogy(t, t).sum(1, keepdim=True)
    e.scatter_(1, k, 0.0)
    rest = e.sum(1, keepdim=True)
    z = rest + 1
    ln_z = rest.log1p()
    logsumexp = maximum / formula.temperature + ln_z
    found |= {"maximum": maximum, "logsumexp": logsumexp, "confidence": z.reciprocal()}
    if "nll" in outputs:
        found["nll"] = t.sum(1, keepdim=True) * ln_z - plain_linear
    if "gradient_norm" in outputs:
        found["gradient_norm"] = _distance(e / z, t, k, rest / z)
    if "probabilities" in outputs:
        block.matrices["probabilities"].copy_(e / z).scatter_(
            1, k, z.reciprocal().to(block.matrices["probabilities"].dtype)
        )

    a_k = a.gather(1, k)
    others = a.scatter(1, k, 0.0).sum(1, keepdim=True)
    total: Tensor = others + a_k  # S
    losses = total * ln_z - linear
    coefficient, at_largest = total, (others - a_k * rest) / z
    if formula.z_loss:
        losses = losses + formula.z_loss * logsumexp.square()
        slope = 2 * formula.z_loss * logsumexp
        coefficient, at_largest = total + slope, at_largest + slope / z
    absent = None if formula.z_loss else ~(a != 0).any(1, keepdim=True)
    if absent is not None:
        losses = losses.masked_fill(absent, 0.0)
    found["losses"] = _weighted(losses, block.row_weight)
    if "gradients" in outputs and block.scale is not None:
        e.mul_(coefficient / z).sub_(a).scatter_(1, k, at_largest).mul_(block.scale)
        if absent is not None:
            e.masked_fill_(absent, 0.0)
        _deliver_gradients(block)
    return found


def _smoothed(t: Tensor, terms: _Terms) -> Tensor:
    """Returns a = w ((1 - eps) t + eps / C), which is t itself without smoothing and weights."""
    a = t if not terms.eps else t * (1 - terms.eps) + terms.smooth
    return a if terms.weight is None else a * terms.weight


def _ranking(block: _Block, d: Tensor, target: Tensor, outputs: frozenset[str]) -> dict[str, Tensor]:
    """What needs the order of the logits, before the exponential."""
    found = {}
    if "margin" in outputs:
        found["margin"] = d.gather(1, target) - d.scatter(1, target, -math.inf).amax(1, keepdim=True)
    if "rank" in outputs:
        found["rank"] = (block.logits > block.logits.gather(1, target)).sum(1, keepdim=True)
    if "predictions" in outputs:
        found["predictions"] = block.logits.argmax(1, keepdim=True)
    return found


def _weighted_sum(d: Tensor, weight: Tensor | None) -> Tensor:
    """Returns sum_c w_c d_c per row; a masked class (d = -inf) of weight 0 takes no part."""
    if weight is None:
        return d.sum(1, keepdim=True)
    return (d * weight).masked_fill_(weight == 0, 0.0).sum(1, keepdim=True)


def _entropy(e: Tensor) -> Tensor:
    """Returns -sum q ln q from e = exp d, whose largest are exactly 1 and are left out of the logarithm."""
    largest = e == 1
    rest = e.masked_fill(largest, 0.0).sum(1, keepdim=True) + (largest.sum(1, keepdim=True) - 1)
    return rest.log1p() - torch.xlogy(e, e).sum(1, keepdim=True) / (1 + rest)


def _distance(q: Tensor, t: Tensor, k: Tensor, q_rest: Tensor) -> Tensor:
    """Returns |q - t| per row, where q_k = 1 - q_rest; scaled, because squares of small numbers underflow."""
    gap = (q - t).scatter_(1, k, (1 - t.gather(1, k)) - q_rest).abs_()
    largest = gap.amax(1, keepdim=True)
    norm = (gap / largest).square_().sum(1, keepdim=True).sqrt_() * largest
    return torch.where(largest == 0, largest, norm)


def _scaled(coefficient: float | Tensor, nll: Tensor) -> Tensor:
    """Returns coefficient * nll, where a coefficient of 0 forms no term: 0 times infinity is not NaN here."""
    if isinstance(coefficient, Tensor):
        return torch.where(coefficient == 0, 0.0, coefficient * nll)
    return nll * coefficient if coefficient else torch.zeros_like(nll)


def _weighted(losses: Tensor, row_weight: Tensor | None) -> Tensor:
    """Returns row_weight * losses; rows of weight 0 are selected to 0, never multiplied by it."""
    return losses if row_weight is None else torch.where(row_weight == 0, 0.0, losses * row_weight)
