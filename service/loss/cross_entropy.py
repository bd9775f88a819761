"""The kernel: losses, gradients and diagnostics of rows of logits in one pass, without autograd.

For a row x of C logits, u = x / T and q = softmax(u), the loss and its gradient with respect to u are

    index label y:          A (L - u_y) + B (W L - sum_c w_c u_c),   q_c (A + B W) - A [c = y] - B w_c
    probability labels t:   S L - sum_c a_c u_c,                     S q_c - a_c

with A = (1 - eps) w_y, B = eps / C, W = sum_c w_c, a_c = w_c ((1 - eps) t_c + eps / C), S = sum_c a_c and
L = logsumexp(u); `z_loss` adds zeta L^2 and 2 zeta L q_c (Szegedy et al. 2015 for the smoothing, Chowdhery et al. 2022
for the z-loss; the conventions on class weights are PyTorch's).

Computed as written, these forms cancel wherever a model is sure of itself: L - u_y is the difference of two equal
numbers. So everything is expressed in d_c = (x_c - max x) / T, and the class that matters (k: the label, or the largest
logit for probability labels) is left out of the sum of exponentials:

    rest = sum_{c != k} exp d_c;   Z = rest + exp d_k;   L - u_k = ln Z - d_k;   1 - q_k = rest / Z

A row's result does not depend on its neighbours, down to the last bit: reductions run over contiguous (rows, classes),
and never over a single long row, which torch would split across its threads.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import row_diagnostics
from .options import FloatName, Formula

BLOCK_BYTES = 4 << 20
"""On the CPU, rows are worked on in blocks that stay in its last cache, whatever the size of the input."""
DEVICE_BLOCK_BYTES = 256 << 20
"""Elsewhere a block is a launch of each operation: fewer are better, and memory is bounded still."""
_TORCH_GRAIN = 32768
"""Reductions of a single row of more elements are split across threads (at::internal::GRAIN_SIZE)."""

DTYPES: dict[FloatName, torch.dtype] = {
    "F32": torch.float32,
    "F64": torch.float64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


@torch.inference_mode()
def cross_entropy(  # noqa: PLR0913 - the data of a row
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
        formula: What to compute.
        row_weight: (R,), multiplies the losses; a row of weight 0 has loss 0 even where it is not finite.
        gradient_scale: (R,), multiplies the gradient with respect to x / T: upstream gradient, sample weight and
            1 / (normalizer T). Required for the output `gradients`.
        zero_rows: Indices of the rows whose gradients are exact zeros.

    Returns:
        Tensors by name: (R,) in the arithmetic dtype or int64, but `gradients` (R, C) in `formula.gradient_dtype` and
        `probabilities` (R, C) in float32 (float64 for float64 logits). `maximum`, the largest logit of a row, always
        comes: where it is not finite, everything but `predictions`, `rank` and `target` is NaN.
    """
    if logits.shape[0] == 1 and logits.shape[1] > _TORCH_GRAIN:
        data = {"labels": labels, "row_weight": row_weight, "gradient_scale": gradient_scale}
        twice = {name: None if tensor is None else torch.cat((tensor, tensor)) for name, tensor in data.items()}
        both = cross_entropy(torch.cat((logits, logits)), formula=formula, zero_rows=zero_rows, **twice)  # type: ignore[arg-type]
        return {name: tensor[:1] for name, tensor in both.items()}
    terms = _Terms.of(logits, formula)
    matrices = _allocate_matrices(logits, formula)
    work = matrices.get("gradients")
    is_in_place = work is not None and work.dtype == terms.dtype
    found = []
    for part in _blocks(logits, terms.dtype):
        block = _Block(
            terms,
            logits[part],
            labels[part],
            work[part] if is_in_place and work is not None else torch.empty_like(logits[part], dtype=terms.dtype),
            None if row_weight is None else row_weight[part].unsqueeze(1),
            None if gradient_scale is None else gradient_scale[part].unsqueeze(1),
            {name: matrix[part] for name, matrix in matrices.items()},
        )
        (_index_rows if labels.ndim == 1 else _probability_rows)(block)
        if "gradients" in matrices and not is_in_place:
            block.matrices["gradients"].copy_(block.work)
        found.append(block.found)
    rows = {
        name: torch.cat([block[name] for block in found]) if len(found) > 1 else found[0][name] for name in found[0]
    }
    if zero_rows is not None and "gradients" in matrices:
        matrices["gradients"].index_fill_(0, zero_rows, 0.0)
    return {name: tensor.squeeze(1) for name, tensor in rows.items()} | matrices


@dataclass(frozen=True, slots=True)
class _Terms:
    """The constants of one pass, in the notation of the module's docstring."""

    formula: Formula
    dtype: torch.dtype
    kept: float  # 1 - eps
    smooth: float  # B
    weight: Tensor | None  # w, (C,)
    weight_sum: float  # W

    @classmethod
    def of(cls, logits: Tensor, formula: Formula) -> "_Terms":
        dtype: torch.dtype = getattr(torch, formula.arithmetic)
        classes = logits.shape[1]
        weight, weight_sum = None, float(classes)
        if formula.class_weight is not None:
            exact = torch.frombuffer(bytearray(formula.class_weight), dtype=torch.float64)
            weight, weight_sum = exact.to(logits.device, dtype), float(exact.sum())
        return cls(formula, dtype, 1 - formula.label_smoothing, formula.label_smoothing / classes, weight, weight_sum)


@dataclass(frozen=True, slots=True)
class _Block:
    """Consecutive rows, the buffer they are worked on in, where their matrices go, and the (R, 1) columns found."""

    terms: _Terms
    logits: Tensor
    labels: Tensor
    work: Tensor
    row_weight: Tensor | None
    scale: Tensor | None
    matrices: dict[str, Tensor]
    found: dict[str, Tensor] = field(default_factory=dict)

    def wants(self, name: str) -> bool:
        return name in self.terms.formula.outputs


def _allocate_matrices(logits: Tensor, formula: Formula) -> dict[str, Tensor]:
    plain = torch.float64 if logits.dtype == torch.float64 else torch.float32
    gradient = DTYPES[formula.gradient_dtype] if formula.gradient_dtype else plain
    dtypes = {"gradients": gradient, "probabilities": plain}
    return {name: torch.empty_like(logits, dtype=dtypes[name]) for name in dtypes if name in formula.outputs}


def _blocks(logits: Tensor, dtype: torch.dtype) -> Iterator[slice]:
    """Yields slices of nearly equal length, none of a single row unless there is but one."""
    rows, classes = logits.shape
    size = BLOCK_BYTES if logits.device.type == "cpu" else DEVICE_BLOCK_BYTES
    count = max(1, rows // max(2, size // (classes * dtype.itemsize)))
    return itertools.starmap(slice, itertools.pairwise(rows * i // count for i in range(count + 1)))


def _shift(block: _Block) -> Tensor:
    """Fills the work buffer with d = (x - max x) / T, and returns the row maxima.

    The maximum is subtracted before the division: at an offset of 1e4, x / T first loses three digits.
    """
    formula, work, logits = block.terms.formula, block.work, block.logits
    if formula.input == "probabilities":
        logits = work.copy_(logits).log_()
    elif logits.dtype != work.dtype:
        logits = work.copy_(logits)
    maximum = logits.amax(1, keepdim=True)
    torch.sub(logits, maximum, out=work)
    if formula.temperature != 1:
        work.div_(formula.temperature)
    return maximum


def _index_rows(block: _Block) -> None:
    terms, formula = block.terms, block.terms.formula
    y = block.labels.unsqueeze(1)
    maximum, d = _shift(block), block.work
    d_y = d.gather(1, y)
    row_diagnostics.before_exponential(block.found, formula.outputs, block.logits, d, y)
    linear = _weighted_sum(d, terms.weight) if terms.smooth else None
    e = d.exp_()
    row_diagnostics.after_exponential(block.found, formula.outputs, e)
    e_y = e.gather(1, y)
    e.scatter_(1, y, 0.0)
    rest = e.sum(1, keepdim=True)
    z = rest + e_y
    ln_z = torch.where(d_y == 0, rest.log1p(), z.log())
    nll = ln_z - d_y
    found = {"maximum": maximum, "nll": nll, "losses": nll}
    if block.wants("confidence"):
        found["confidence"] = z.reciprocal()  # of the largest, whose exponential is 1
    if block.wants("gradient_norm"):
        found["gradient_norm"] = row_diagnostics.norm_beside_label(e, rest, z)
    if block.wants("probabilities"):
        _write_probabilities(block, z, y, e_y / z)

    hit: float | Tensor = terms.kept if terms.weight is None else terms.weight[y] * terms.kept  # A
    if terms.weight is not None or hit != 1:
        found["losses"] = _product(hit, nll)
    shared: float | Tensor = terms.smooth * terms.weight_sum  # what z_loss and B W add to q_c's coefficient
    if linear is not None:
        found["losses"] = found["losses"] + terms.smooth * (terms.weight_sum * ln_z - linear)
    if formula.z_loss or block.wants("logsumexp"):
        found["logsumexp"] = maximum / formula.temperature + ln_z
    if formula.z_loss:
        found["losses"] = found["losses"] + formula.z_loss * found["logsumexp"] * found["logsumexp"]
        shared = shared + 2 * formula.z_loss * found["logsumexp"]
    if block.row_weight is not None:
        found["losses"] = _product(block.row_weight, found["losses"])
    _keep(block, found)
    if block.wants("gradients"):
        at_label = (
            (rest / z) * -hit if isinstance(shared, float) and not shared else shared * (e_y / z) - hit * (rest / z)
        )
        _write_gradients(block, (hit + shared) / z, y, at_label)


def _write_gradients(block: _Block, factor: Tensor, y: Tensor, at_label: Tensor) -> None:
    """Turns the exponentials in the work buffer into gradients; `at_label` still lacks -B w_y."""
    terms, scale, e = block.terms, block.scale, block.work
    if scale is None:
        raise TypeError("gradients need a gradient_scale")
    e.mul_(factor * scale)
    if terms.smooth and terms.weight is None:
        e.sub_(scale * terms.smooth)
        at_label = at_label - terms.smooth
    elif terms.smooth and terms.weight is not None:
        e.addcmul_(scale, terms.weight.unsqueeze(0), value=-terms.smooth)
        at_label = at_label - terms.weight[y] * terms.smooth
    e.scatter_(1, y, at_label * scale + 0.0)  # + 0.0: a single class has gradient 0.0, not -0.0


def _probability_rows(block: _Block) -> None:
    terms, formula = block.terms, block.terms.formula
    t = block.labels.to(terms.dtype)
    target = t.argmax(1, keepdim=True)
    maximum, d = _shift(block), block.work
    k = d.argmax(1, keepdim=True)
    row_diagnostics.before_exponential(block.found, formula.outputs, block.logits, d, target)
    a = t if terms.kept == 1 else t * terms.kept + terms.smooth
    a = a if terms.weight is None else a * terms.weight
    linear = _weighted_sum(d, a)
    plain_linear = _weighted_sum(d, t) if block.wants("nll") else linear
    e = d.exp_()
    row_diagnostics.after_exponential(block.found, formula.outputs, e)
    e.scatter_(1, k, 0.0)
    # The exponential left out is 1, unless the row has no softmax.
    rest = torch.where(maximum.isfinite(), e.sum(1, keepdim=True), torch.nan)
    z = rest + 1
    ln_z = rest.log1p()
    found = {"maximum": maximum, "target": target, "nll": t.sum(1, keepdim=True) * ln_z - plain_linear}
    found["confidence"] = z.reciprocal()
    if block.wants("label_entropy"):
        found["label_entropy"] = row_diagnostics.label_entropy(t)
    if block.wants("gradient_norm"):
        found["gradient_norm"] = row_diagnostics.distance(e / z, t, k, rest / z)
    if block.wants("probabilities"):
        _write_probabilities(block, z, k, z.reciprocal())

    a_k = a.gather(1, k)
    others = a.scatter(1, k, 0.0).sum(1, keepdim=True)  # without a_k, which it would drown in
    coefficient, at_largest = others + a_k, (others - a_k * rest) / z  # S, and S q_k - a_k
    found["losses"] = coefficient * ln_z - linear
    if formula.z_loss or block.wants("logsumexp"):
        found["logsumexp"] = maximum / formula.temperature + ln_z
    if formula.z_loss:
        found["losses"] = found["losses"] + formula.z_loss * found["logsumexp"] * found["logsumexp"]
        slope = 2 * formula.z_loss * found["logsumexp"]
        coefficient, at_largest = coefficient + slope, at_largest + slope / z
    # Rows whose coefficients are all 0 are selected to 0: they may be NaN otherwise.
    is_void = None if formula.z_loss else ~(a != 0).any(1, keepdim=True)
    if is_void is not None:
        found["losses"] = found["losses"].masked_fill(is_void, 0.0)
    if block.row_weight is not None:
        found["losses"] = _product(block.row_weight, found["losses"])
    _keep(block, found)
    if block.wants("gradients") and block.scale is not None:
        e.mul_(coefficient / z).sub_(a).scatter_(1, k, at_largest).mul_(block.scale)
        if is_void is not None:
            e.masked_fill_(is_void, 0.0)


def _keep(block: _Block, found: dict[str, Tensor]) -> None:
    block.found.update({name: column for name, column in found.items() if block.wants(name)})


def _write_probabilities(block: _Block, z: Tensor, left_out: Tensor, probability: Tensor) -> None:
    q = block.matrices["probabilities"]
    q.copy_(block.work / z).scatter_(1, left_out, probability.to(q.dtype))


def _weighted_sum(d: Tensor, weight: Tensor | None) -> Tensor:
    """Returns sum_c w_c d_c per row; a masked class (d = -inf) of weight 0 takes no part."""
    weighted = d if weight is None else (d * weight).masked_fill_(weight == 0, 0.0)
    return weighted.sum(1, keepdim=True)


def _product(factor: float | Tensor, losses: Tensor) -> Tensor:
    """Returns factor * losses, where a factor of 0 forms no product: 0 times infinity is not NaN here."""
    if isinstance(factor, Tensor):
        return torch.where(factor == 0, 0.0, factor * losses)
    return losses * factor if factor else torch.zeros_like(losses)
