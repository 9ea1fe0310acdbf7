"""One look at the numbers of a step before its weights are made, and one at the weights: a launch each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..ops import judge_, settle_
from ..ops.judge import OF_WEIGHTED_SUM
from .needs import Needs
from .present import selected
from .refusal import Outcome

if TYPE_CHECKING:
    from .context import WeightingContext

__all__ = ["Judged", "Measured", "as_table", "judged", "settled"]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Numbers of a step as an optimizer measured them: nobody has looked yet whether they are finite.

    Attributes:
        scalars: K T losses, row after row, instead of ``context.losses``; () if they are there.
        grams: float64 [K, S, T, T], or squares [K, S, T]; None: nobody needs them.
        factor: float32 [1], what the gradients of the grams have still to be divided by, or None.
        found: float32 [K], not zero in rows where something was found before; None: nothing.
        together: what is found in one row skips the step of all.
        limit: the largest number of the type that gradients are added up in; None: weights are as large as they are.
        dtype: float32 or float64, of the weights as they are applied.
        again: gradients are looked at again in the step: in the end ``found`` tells of losses and refusals alone.
    """

    scalars: Sequence[Tensor] = ()
    grams: Tensor | None = None
    factor: Tensor | None = None
    found: Tensor | None = None
    together: bool = False
    limit: float | None = None
    dtype: torch.dtype = torch.float64
    again: bool = False

    def sums(self) -> Tensor | None:
        """Return float64 [K, T, T], or [K, T] of squares: the Gram matrix, also of absent tasks."""
        if self.grams is None or self.factor is None:
            return None if self.grams is None else self.grams.sum(1)
        return (self.grams / self.factor.double().square()).sum(1)

    def of(self, present: Tensor) -> Measured:
        """The same of these tasks alone, int64 [P]; not of losses one by one."""
        axes = () if self.grams is None else range(2, self.grams.ndim)
        return replace(self, grams=None if self.grams is None else selected(self.grams, axes, present))


class Judged(NamedTuple):
    """Findings from before the weights are made.

    context: with harmless numbers in rows that are not usable.
    measured: as of the context before.
    flags: bool [2, K], finite and usable rows; None: nobody has looked yet, because the formula reads no numbers.
    found: float32 [K], as of `mt2o_ext.ops.judge_`; what was found before, where nobody has looked.
    losses: float64 [K, T] as they are, or None; not filled yet where nobody has looked at scalars.
    sums: float64 [K, T, T], or [K, T] of squares: the Gram matrix as it is, or None.
    outside: bool [K, T], losses that the method is not defined for, or None.
    """

    context: WeightingContext
    measured: Measured
    flags: Tensor | None
    found: Tensor | None
    losses: Tensor | None
    sums: Tensor | None
    outside: Tensor | None


def as_table(scalars: Sequence[Tensor], rows: int) -> Tensor:
    """float64 [K, T] of K T losses, row after row."""
    return torch.stack([scalar.reshape(()) for scalar in scalars]).double().view(rows, -1)


def judged(context: WeightingContext, due: Needs, outside: Tensor | None, *, look: bool) -> Judged:
    """Look whether all numbers are finite, and put harmless ones where a row is not usable.

    Args:
        context: of the step.
        due: what the formula reads.
        outside: bool [K, T], losses that the method is not defined for, or None.
        look: False: leave it to `settled`, where nothing has to be known before.
    """
    measured = context.measured or Measured()
    like, (rows, tasks) = context.preferences, context.preferences.shape
    found = _found_before(context, measured)
    grams, losses = measured.grams, context.losses
    if grams is None:
        grams = context.segments if context.gram is None else context.gram.unsqueeze(1)
    if measured.scalars:
        losses = like.new_empty((rows, tasks))
    losses = None if losses is None else losses.double().contiguous()
    if grams is None and (losses is None or not look):
        return Judged(context, measured, None, found, losses, None, outside)
    grams = None if grams is None else grams.double().contiguous()
    reads_gram = context.gram is not None or bool(due & (Needs.GRAM | Needs.DIAGONAL))
    sums = filled = largest = usable_losses = None
    if grams is not None:
        sums = grams.new_empty((rows, *grams.shape[2:]))
        filled = grams.new_empty((rows, tasks, tasks)) if reads_gram else None
        largest = None if measured.limit is None else like.new_empty((rows, tasks))
    if losses is not None:
        usable_losses = torch.empty_like(losses)
    flags = torch.empty((2, rows), dtype=torch.bool, device=like.device)
    now = torch.empty(rows, dtype=torch.float32, device=like.device)
    judge_(
        now, flags, losses, sums, filled, usable_losses, largest, measured.scalars, grams, measured.factor, found,
        outside, limit=measured.limit or 0.0, together=measured.together,
    )  # fmt: skip
    usable = flags[1]
    seen = replace(
        context,
        measured=None,
        losses=usable_losses,
        gram=filled,
        segments=_usable(_segments(context, measured, due), usable),
        cross=_usable(context.cross, usable),
        finite=usable,
        largest=context.largest if largest is None else largest,
    )
    return Judged(seen, measured, flags, now, losses, sums, outside)


def _found_before(context: WeightingContext, measured: Measured) -> Tensor | None:
    """float32 [K], not zero where the step is skipped for what was found before, or in tables that few have."""
    denied = [] if context.finite is None else [~context.finite]
    tables = [context.cross, context.segments if context.gram is not None else None]
    denied += [~table.flatten(1).isfinite().all(1) for table in tables if table is not None]
    found = measured.found
    for rows in denied:
        found = rows.to(torch.float32) if found is None else torch.maximum(found, rows.to(torch.float32))
    return found


def _segments(context: WeightingContext, measured: Measured, due: Needs) -> Tensor | None:
    if measured.grams is None or Needs.SEGMENTS not in due:
        return context.segments
    return measured.grams if measured.factor is None else measured.grams / measured.factor.double().square()


def _usable(table: Tensor | None, usable: Tensor) -> Tensor | None:
    """The table [K, ..., T, T] with the identity where a row is not usable."""
    if table is None:
        return None
    identity = torch.eye(table.shape[-1], dtype=table.dtype, device=table.device)
    return torch.where(usable.view(-1, *[1] * (table.ndim - 1)), table, identity)


def settled(raw: Tensor, judged: Judged, divisor: float = 1.0) -> Outcome:
    """Refuse weights [K, T] or [K, S, T] that are too large or no numbers, and say which rows take part.

    divisor: of the raw weights.
    """
    context, measured = judged.context, judged.measured
    flat = raw.double().reshape(len(raw), -1).contiguous()
    rows, device = len(flat), flat.device
    found = judged.found
    if judged.flags is None and measured.together and rows > 1 and found is not None:
        found = found.amax().expand(rows).contiguous()
    scalars = measured.scalars if judged.flags is None else ()  # else they are in the table
    weights = torch.empty_like(flat)
    applied = torch.empty(flat.shape, dtype=measured.dtype, device=device)
    flags = torch.empty((2, rows), dtype=torch.bool, device=device)
    refusals = flat.new_empty((rows, 3))
    now = torch.empty(rows, dtype=torch.float32, device=device)
    settle_(
        weights, applied, flags, refusals, now, judged.losses, flat, scalars, judged.flags,
        None if measured.again else found, judged.outside, context.largest, tasks=raw.shape[-1],
        limit=torch.finfo(torch.float64).max, offset=OF_WEIGHTED_SUM, divisor=divisor,
    )  # fmt: skip
    return Outcome(
        weights.view(raw.shape), applied.view(raw.shape), flags[0], flags[1], refusals, now, judged.losses, judged.sums
    )
