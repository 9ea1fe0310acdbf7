"""Family ``judge`` in plain torch, see :mod:`mt2o_ext.ops.reference`; no value is read on the host."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..loss_domain import first_offence

NONFINITE, OF_WEIGHTED_SUM = 1, 2  # what is found in a row that skips the step; the reasons of refusals follow
DOMAIN, OVERFLOW = 1, 2  # reasons of a refusal: a loss, a weight
_LANES = 32


def _gathered(losses: Tensor | None, scalars: Sequence[Tensor]) -> None:
    if scalars and losses is not None:
        losses.copy_(torch.stack([scalar.detach().reshape(()).double() for scalar in scalars]).view_as(losses))


def _added(terms: Tensor) -> Tensor:
    """The sum over the second dimension, in the order of the kernels."""
    lanes = terms.new_zeros((len(terms), _LANES, *terms.shape[2:]))
    for begin in range(0, terms.shape[1], _LANES):
        part = terms[:, begin : begin + _LANES]
        lanes[:, : part.shape[1]] += part
    total = torch.zeros_like(lanes[:, 0])
    for lane in lanes.unbind(1):
        total = total + lane
    return total


def judge_(
    found: Tensor,
    flags: Tensor,
    losses: Tensor | None,
    sums: Tensor | None,
    filled: Tensor | None,
    usable_losses: Tensor | None,
    largest: Tensor | None,
    scalars: Sequence[Tensor],
    grams: Tensor | None,
    factor: Tensor | None,
    before: Tensor | None,
    outside: Tensor | None,
    *,
    limit: float,
    together: bool,
) -> None:
    """The operator of :func:`mt2o_ext.ops.judge_`."""
    _gathered(losses, scalars)
    good = torch.ones_like(flags[0])
    if grams is not None and sums is not None:
        sums.copy_(_added(grams if factor is None else grams / factor.double().square()))
        good = good & sums.flatten(1).isfinite().all(1)
    if losses is not None:
        good = good & losses.isfinite().all(1)
    found.copy_(torch.where(good, 0.0 if before is None else before, float(NONFINITE)))
    finite = found == 0
    if together:
        finite = finite.all().expand_as(finite)
    usable = finite if outside is None else finite & ~outside.any(1)
    flags.copy_(torch.stack([finite, usable]))
    if sums is not None:
        square = torch.diag_embed(sums) if sums.dim() == 2 else sums
        if filled is not None:
            identity = torch.eye(square.shape[-1], dtype=square.dtype, device=square.device)
            filled.copy_(torch.where(usable[:, None, None], square, identity))
        if largest is not None:
            lengths = square.diagonal(dim1=1, dim2=2).sqrt()
            lengths = torch.where(lengths > 1, lengths, 1.0)  # at least 1: weights become numbers of this type too
            largest.copy_(torch.full_like(lengths, limit) / (square.shape[-1] * lengths))
    if usable_losses is not None and losses is not None:
        usable_losses.copy_(torch.where(usable[:, None], losses, 1.0))


def settle_(
    weights: Tensor,
    applied: Tensor,
    flags: Tensor,
    refusals: Tensor,
    found: Tensor,
    losses: Tensor | None,
    raw: Tensor,
    scalars: Sequence[Tensor],
    judged: Tensor | None,
    before: Tensor | None,
    outside: Tensor | None,
    largest: Tensor | None,
    *,
    tasks: int,
    limit: float,
    offset: int,
    divisor: float = 1.0,
) -> None:
    """The operator of :func:`mt2o_ext.ops.settle_`."""
    _gathered(losses, scalars)
    raw = raw / divisor
    earlier = torch.zeros_like(found) if before is None else before
    if losses is not None:
        earlier = torch.where(losses.isfinite().all(1) | (earlier != 0), earlier, float(NONFINITE))
    if judged is not None:
        finite, usable = judged.unbind()
    else:
        finite = usable = earlier == 0
        usable = usable if outside is None else usable & ~outside.any(1)
    bounds = limit if largest is None else largest.repeat(1, raw.shape[1] // tasks)
    unusable = ~(raw.abs() <= bounds)
    took_part = usable & ~unusable.any(1)
    refused = finite & ~took_part
    reasons = first_offence(unusable, raw, OVERFLOW, tasks)
    if outside is not None and losses is not None:
        of_losses = first_offence(outside, losses, DOMAIN, tasks)
        reasons = torch.where(of_losses[:, :1] > 0, of_losses, reasons)
    refusals.copy_(torch.where(refused[:, None], reasons, 0.0))
    found.copy_(torch.where(refusals[:, 0] > 0, refusals[:, 0] + offset, earlier.double()))
    weights.copy_(torch.where(took_part[:, None], raw, math.nan))
    applied.copy_(torch.where(refused[:, None], 0.0, weights))
    flags.copy_(torch.stack([took_part, refused]))


def count_(
    counts: Tensor,
    table: Tensor | None,
    found: Tensor,
    refusals: Tensor | None,
    weights: Tensor | None,
    finite: Tensor | None,
    *,
    offset: int,
    together: bool,
    expected: bool,
) -> None:
    """The operator of :func:`mt2o_ext.ops.count_`."""
    skipped = found != 0
    if together:
        skipped = skipped.any().expand_as(skipped)
    counts += skipped
    if table is None:
        return
    number = found.double().unsqueeze(1)
    told = torch.cat([number, torch.zeros_like(number).expand(-1, 2)], 1)
    if weights is not None and finite is not None:
        at = weights.abs().argmax(1, keepdim=True)
        largest = torch.cat([torch.full_like(number, OF_WEIGHTED_SUM), at.double(), weights.gather(1, at)], 1)
        told = torch.where((number == NONFINITE) & finite.unsqueeze(1), largest, told)
    if refusals is not None:
        shifted = torch.cat([refusals[:, :1] + offset, refusals[:, 1:]], 1)
        told = torch.where(refusals[:, :1] > 0, shifted, told)
    if expected:
        told = torch.where((told[:, :1] == NONFINITE) | (told[:, :1] == OF_WEIGHTED_SUM), 0.0, told)
    missed = skipped.unsqueeze(1)
    table.copy_(torch.cat([torch.where(missed, told, table[:, :3]), torch.where(missed, table[:, 3:] + 1, 0.0)], 1))
