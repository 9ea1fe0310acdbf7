"""Every kernel family in plain torch: the oracle of the tests, and what runs where nothing was compiled.

The same formulas as ``csrc/core``, written for clarity; with float64 inputs these are the exact values that kernels are
compared with.  Signatures are those of the operators (see the functions of the same name in :mod:`mt2o_ext.ops`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .reference_gradients import gathered
from .reference_mask import kept as bits_of
from .rules import FIELDS, Rule, reference_update

ALIGNMENT = 16


def plan_layout(numels: Sequence[int]) -> tuple[list[int], int, list[tuple[int, int, int]]]:
    """The operator of :func:`mt2o_ext.ops.plan_layout`."""
    offsets: list[int] = []
    row = 0
    for numel in numels:
        offsets.append(row)
        row += -(-numel // ALIGNMENT) * ALIGNMENT
    if row > 0 and row % 1024 == 0:
        row += ALIGNMENT
    length = min(max(-(-(row // 64) // 2048) * 2048, 2048), 16384)
    chunks = [
        (segment, begin, min(begin + length, offset + numel))
        for segment, (offset, numel) in enumerate(zip(offsets, numels, strict=True))
        for begin in range(offset, offset + numel, length)
    ]
    return offsets, row, chunks


def joined_chunks(chunks: Tensor | Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Chunks joined to (segment, begin, end)."""
    joined: list[tuple[int, int, int]] = []
    for segment, begin, end in chunks.tolist() if isinstance(chunks, Tensor) else chunks:
        if joined and joined[-1][0] == segment and joined[-1][2] == begin:
            joined[-1] = (segment, joined[-1][1], end)
        else:
            joined.append((segment, begin, end))
    return joined


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def combine_(out: Tensor, grads: Tensor, weights: Tensor, chunks: Tensor, addresses: Tensor | None = None) -> None:
    """The operator of :func:`mt2o_ext.ops.combine_`."""
    grads = gathered(grads, addresses, chunks)
    dtype = _wide(grads.dtype)
    for _, begin, end in joined_chunks(chunks):
        out[:, begin:end] = torch.einsum("kt,ktp->kp", weights.to(dtype), grads[..., begin:end].to(dtype)).to(out.dtype)


def gram_(
    out: Tensor,
    partials: Tensor,
    rows: Tensor,
    others: Tensor | None,
    chunks: Tensor,
    addresses: Tensor | None = None,
    *,
    centre: bool = False,
    diagonal: bool = False,
) -> None:
    """The operator of :func:`mt2o_ext.ops.gram_`."""

    def prepared(values: Tensor) -> Tensor:
        values = values.double()
        return values - values.mean(dim=1, keepdim=True) if centre else values

    if addresses is not None and (centre or others is not None):
        raise RuntimeError("rows behind addresses are neither centred nor multiplied with others")
    rows = gathered(rows, addresses, chunks)
    out.zero_()
    for segment, begin, end in joined_chunks(chunks):
        x = prepared(rows[..., begin:end])
        y = x if others is None else prepared(others[..., begin:end])
        if diagonal:
            out[:, segment] += (x * y).sum(dim=-1)
            continue
        products = x @ y.mT
        if others is None:  # the product alone is symmetric only up to rounding
            products = (products + products.mT) / 2
        out[:, segment] += products


def transfer_(theta: Tensor, mix: Tensor, chunks: Tensor) -> None:
    """The operator of :func:`mt2o_ext.ops.transfer_`."""
    for segment, begin, end in joined_chunks(chunks):
        values = theta[:, begin:end]
        values.copy_(_blended(values, values, mix, segment))


def _blended(values: Tensor, base: Tensor, mix: Tensor, segment: int) -> Tensor:
    """base + (M - I) (values - values_0): M values where base is values and M's rows sum to one.

    Rows of the identity take nothing, not even a NaN times zero.
    """
    matrix = mix if mix.dim() == 2 else mix[segment]
    coupling = (matrix - torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)).to(values.dtype)
    takes = (coupling != 0).any(dim=1, keepdim=True)
    return torch.where(takes, base + coupling @ (values - values[:1]), base)


def finite_(found_inf: Tensor, grads: Tensor, chunks: Tensor, addresses: Tensor | None = None) -> None:
    """The operator of :func:`mt2o_ext.ops.finite_`."""
    grads = gathered(grads, addresses, chunks)
    for _, begin, end in joined_chunks(chunks):
        bad = ~torch.isfinite(grads[..., begin:end]).all(dim=2).all(dim=1)
        found_inf.masked_fill_(bad, 1.0)


def priority_(
    out: Tensor, dots: Tensor, coefficients: Tensor, grads: Tensor, owners: Tensor, records: Tensor, chunks: Tensor
) -> None:
    """The operator of :func:`mt2o_ext.ops.priority_`."""
    tasks = grads.shape[0]
    wide = _wide(grads.dtype)
    column = torch.zeros(grads.shape[1], dtype=torch.bool, device=grads.device)
    layer, owner = (torch.full(grads.shape[1:], -1, dtype=torch.int64, device=grads.device) for _ in range(2))
    table = records.tolist()
    for record, begin, end in chunks.tolist():
        index, first, channels, offset, length, _ = table[record]
        column[begin:end] = True
        if index >= 0:
            channel = (torch.arange(begin, end, dtype=torch.int64, device=grads.device) - offset) // length % channels
            layer[begin:end], owner[begin:end] = index, owners[first + channel]
    coefficients.zero_()
    factor = torch.zeros(grads.shape[1], dtype=torch.float64, device=grads.device)
    own = torch.zeros(grads.shape[1:], dtype=wide, device=grads.device)
    for index in range(len(coefficients)):
        for task in range(tasks):
            part = ((layer == index) & (owner == task)).nonzero().flatten()
            group = grads[:, part].double()
            products = group @ group[task]
            conflicts = torch.where(products < 0, -products, 0.0).sum()
            norm = products[task]
            coefficients[index, task] = torch.where(norm > 0, conflicts / norm, 0.0)
            factor[part], own[part] = coefficients[index, task], grads[task, part].to(wide)
    total = grads[0].to(wide)
    for gradient in grads[1:]:
        total = total + gradient.to(wide)
    total = torch.where(factor != 0, total + factor.to(wide) * own, total)
    out[column] = total.to(out.dtype)[column]


def step_(
    theta: Tensor,
    exp_avg: Tensor | None,
    exp_avg_sq: Tensor | None,
    max_exp_avg_sq: Tensor | None,
    ema: Tensor | None,
    low_precision: Tensor | None,
    step: Tensor,
    constants: Tensor,
    grads: Tensor,
    weights: Tensor | None,
    mix: Tensor | None,
    segments: Tensor,
    chunks: Tensor,
    active: Tensor | None,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    addresses: Tensor | None = None,
    masks: Tensor | None = None,
    whole: Tensor | None = None,
    *,
    rule: int,
    order: int,
    hold: bool = False,
) -> None:
    """The operator of :func:`mt2o_ext.ops.step_`."""
    if masks is not None and mix is not None:
        raise RuntimeError("mt2o_ext: rows with masks are not blended: leave out mix or masks")
    rows = theta.shape[0]
    kept = []
    for name, moment in zip(Rule(rule).moments, (exp_avg, exp_avg_sq, max_exp_avg_sq), strict=False):
        if moment is None:
            raise ValueError(f"mt2o_ext: this rule needs {name}")
        kept.append(moment)
    grads = gathered(grads, addresses, chunks)
    taking_part = torch.ones_like(step, dtype=torch.bool) if active is None else active.clone()
    if found_inf is not None:
        taking_part &= (found_inf == 0).expand(rows).unsqueeze(1)
    step += taking_part
    scale = 1.0 if grad_scale is None else grad_scale.to(theta.dtype)
    if weights is None:
        weights = torch.ones(rows, 1, dtype=torch.float64, device=theta.device)
    bits = None if masks is None else bits_of(masks, theta.shape[1])
    for segment, begin, end in joined_chunks(chunks):
        at = slice(begin, end)
        # In float64 (1 - beta2 of a float32 is wrong by 1e-5); a 0-d tensor does not widen what it is multiplied with.
        field = dict(zip(FIELDS, segments[segment], strict=True))
        who = taking_part[:, segment].unsqueeze(1)
        moments = [moment[:, at] for moment in kept]
        x = theta[:, at]
        seen = grads[..., at].to(theta.dtype)
        moves = advances = who
        if bits is not None:
            moves = who & bits[:, at].any(0)
            advances = moves if hold else who
            if whole is None or not bool(whole[segment]):
                seen = torch.where(bits[:, at], seen, torch.zeros_like(seen))
        g = torch.einsum("kt,ktp->kp", weights.to(theta.dtype), seen) / scale
        count = step[:, segment].double().unsqueeze(1)
        update, new = reference_update(rule, x, g, moments, field, count)
        for moment, value in zip(moments, new, strict=True):
            moment.copy_(torch.where(advances, value, moment))
        update = torch.where(moves, update, torch.zeros_like(update))
        if mix is None or not bool(field["transfer"]):
            result = x + update
        elif order == 0:
            result = _blended(x, x, mix, segment) + update
        else:
            result = _blended(x + update, x + update, mix, segment)
        x.copy_(torch.where(moves, result, x))
        if ema is not None:
            average = ema[:, at]
            average.copy_(torch.where(moves, average + (1 - field["ema"]) * (x - average), average))
        if low_precision is not None:
            low_precision[:, at] = torch.where(moves, x.to(low_precision.dtype), low_precision[:, at])
