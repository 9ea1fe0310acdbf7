"""The step of subproblems that several ranks share, where it needs those of other ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..device import refuse_in_graph, to_device
from ..gradients.table import Source
from ..gradients.tasks import Combination
from ..ops import MOMENTS, SQUARES, Order, combine_
from ..ranks import Ranks
from ..transfer.moments import Moments
from .blend import Blend
from .blending import add_changes
from .buffers import Buffers
from .exchange import Exchange, Neighbours
from .flat import FlatParameters
from .step import Plan, StepInputs

__all__ = ["Everything", "met", "share_starts", "step_of_rows", "summed"]


def met(buffers: Buffers, call: dict[str, Any]) -> list[list[bool]]:
    """Looks whether the ranks of all subproblems are at the same step.

    call: the facts that are the same on all of them.

    Returns:
        Of each buffer, on vertices the parameters that have a gradient on any rank; on rows whether there are some
        without on any rank.

    Raises:
        RanksError: on all ranks, if they are not.
        RuntimeError: while a CUDA graph is captured.
    """
    refuse_in_graph(buffers.device, "a step with subproblem_mesh=", "call step() outside of the graph")
    exchange, vertices, flats = buffers.exchange, buffers.vertices, buffers.flats
    assert exchange is not None
    new = vertices is not None and exchange.are_new(flats)
    there = [[flat.tasks.active() is not None] if vertices is None else flat.tasks.reached() for flat in flats]
    there = exchange.ranks.merge({**call, "buffers made anew": new}, there)
    if vertices is not None and new:  # ranks show other points of them, which round in other ways
        exchange.ranks.share_([flat.theta for flat in flats])
        vertices.spread(flats)
    return there


def share_starts(buffers: Buffers, ranks: Ranks | None) -> None:
    """Shares the first rank's models, each of which began in another way, with those that have the same ones.

    ranks: of data parallelism, or None.
    """
    flats, vertices = buffers.flats, buffers.vertices
    for others in (ranks, None if vertices is None else buffers.peers):
        if others is not None and not others.of_shards:
            others.share_([flat.theta for flat in flats])
            others.share_([flat.values for flat in flats if vertices is None])
    if vertices is not None:
        vertices.spread(flats)


class Everything(NamedTuple):
    """The facts of a step that M may go by, of all K subproblems.

    skipped: float32 [K] ([1]: of all), not zero where a subproblem skips the step.
    active: of each buffer bool [K, S], the tensors that are updated; None: all.
    losses: float64 [K, T], or None.
    gram: float64 [S, K, K] of the rows less their mean, or None where nobody needs it.
    """

    skipped: Tensor
    active: list[Tensor | None]
    losses: Tensor | None
    gram: Tensor | None

    @classmethod
    def of(
        cls,
        exchange: Exchange,
        plan: Plan,
        losses: Tensor | None,
        gram: Tensor | None,
        *,
        together: bool,
        inactive: bool,
        asked: bool,
    ) -> Everything:
        """The facts, in one exchange of a small vector.

        Args:
            exchange: with the other ranks.
            plan: of this rank's step.
            losses: of this rank's subproblems.
            gram: the part of this rank's columns.
            together: all subproblems skip the step, or none does, as all ranks know already.
            inactive: whether any rank has tensors that are not updated.
            asked: whether the facts of the others matter; else they are zeros.
        """
        num_rows = len(exchange.share.own)
        active = [given.active if inactive else None for given in plan.inputs]
        if inactive:
            active = [
                torch.ones(num_rows, len(given.reached), dtype=torch.bool, device=plan.skipped.device)
                if mask is None
                else mask
                for mask, given in zip(active, plan.inputs, strict=True)
            ]
        rows = [None if together else plan.skipped, losses, *active]
        tables = [exchange.share.placed(one.double()) for one in rows if one is not None]
        tables += [] if gram is None else [gram]
        if asked and tables:
            joined = exchange.ranks.add_(torch.cat([table.flatten() for table in tables]))
            parts = joined.split([table.numel() for table in tables])
            tables = [part.view_as(table) for part, table in zip(parts, tables, strict=True)]
        found = iter(tables)
        skipped = plan.skipped if together else next(found).float()
        losses = None if losses is None else next(found)
        masks = [None if mask is None else next(found) != 0 for mask in active]
        return cls(skipped, masks, losses, None if gram is None else next(found))


@torch._disable_dynamo
def step_of_rows(
    exchange: Exchange,
    blend: Blend,
    flats: Sequence[FlatParameters],
    plan: Plan,
    losses: Tensor | None,
    lr: float | Tensor,
    apply: Callable[[Sequence[StepInputs]], None],
    *,
    ema: float | None,
    together: bool,
    inactive: bool,
) -> bool:
    """The fused step of this rank's rows, and the transfer from all rows, if it is due.

    Args:
        exchange: with the other ranks.
        blend: the transfer.
        flats: the buffers.
        plan: of this rank's step.
        losses: float64 [rows of this rank, T], or None.
        lr: of the first group.
        apply: makes the step of the base rule.
        ema: decay of the running average that is kept beside the rows, or None.
        together: all subproblems skip the step, or none does.
        inactive: whether any rank has tensors that are not updated.

    Returns:
        Whether all subproblems started with one mini-batch, once, where that matters.
    """
    if not blend.due(flats):
        apply(plan.inputs)
        blend.count_step()
        return False
    near = exchange.neighbours(blend.sources())
    reads_gram = blend.reads_gram
    columns: list[Tensor | None] = [None] * len(flats)
    gram = None
    if reads_gram:
        gathered = [exchange.columns(flat).gathered(blend.rows(flat)) for flat in flats]
        gram = torch.cat([exchange.columns(flat).gram(own, flat) for flat, own in zip(flats, gathered, strict=True)])
        columns = list(gathered)
    asked = near is None or blend.steps == 0  # a first step may have had one mini-batch for all
    facts = Everything.of(exchange, plan, losses, gram, together=together, inactive=inactive, asked=asked)
    found = blend.matrices(flats, facts.losses, lr, facts.gram)
    mixes = [
        None if mix is None else blend.held(mix, mask, facts.skipped)
        for mix, mask in zip(found, facts.active, strict=True)
    ]
    transfer = _Transfer(exchange, near, blend, flats, mixes, columns)
    transfer.step(plan, apply, ema)
    shared = facts.losses is not None and blend.has_shared_batch(facts.losses)
    blend.count_step(mixes)
    return shared


class _Transfer(NamedTuple):
    """One transfer.

    mixes: of each buffer M, or None.  columns: the rows of theta, where somebody has gathered them already.
    """

    exchange: Exchange
    near: Neighbours | None
    blend: Blend
    flats: Sequence[FlatParameters]
    mixes: list[Tensor | None]
    columns: list[Tensor | None]

    def changes(self, columns: Sequence[Tensor | None]) -> list[Tensor | None]:
        """(M - I) times the rows that are blended, of each buffer; None where no transfer is due."""
        found: list[Tensor | None] = []
        for flat, mix, own in zip(self.flats, self.mixes, columns, strict=True):
            if mix is None:
                found.append(None)
                continue
            rows = self.blend.rows(flat)
            found.append(self.exchange.blended(flat, rows, mix, self.near, columns=own).sub_(rows))
        return found

    def step(self, plan: Plan, apply: Callable[[Sequence[StepInputs]], None], ema: float | None) -> None:
        """The step of the base rule, with the transfer before, beside or behind it."""
        if self.blend.rule.relative:
            for flat, own in zip(self.flats, self.changes(self.columns), strict=True):
                if own is not None:
                    add_changes(flat, own, plan.skipped)
            apply(plan.inputs)
        elif self.blend.order is Order.ADAPT_THEN_COMBINE:
            apply(plan.inputs)
            self._add(self.changes([None] * len(self.flats)), ema)
        else:
            changes = self.changes(self.columns)
            apply(plan.inputs)
            self._add(changes, ema)
        if self.blend.moments is not Moments.KEEP:
            self._blend_moments()

    def _add(self, found: Sequence[Tensor | None], ema: float | None) -> None:
        """theta <- theta + changes, and so their running average, which the kernel has made without them."""
        for flat, changes in zip(self.flats, found, strict=True):
            if changes is None:
                continue
            flat.theta.add_(changes)
            if ema is not None:
                flat.buffers["ema"].add_(changes, alpha=1 - ema)
            if flat.shows_rounded:
                flat.values.copy_(flat.theta)
            flat.write_back()
            flat.mark_changed()

    def _blend_moments(self) -> None:
        for flat, mix in zip(self.flats, self.mixes, strict=True):
            for name in MOMENTS if mix is not None else ():
                if name in flat.buffers:
                    assert mix is not None
                    squared = self.blend.moments is Moments.MIX_SQUARED and name in SQUARES
                    moment, matrix = flat.buffers[name], mix * mix if squared else mix
                    moment.copy_(self.exchange.blended(flat, moment, matrix, self.near, plain=True))


# ---------------------------------------------------------------------- vertices
@torch._disable_dynamo
def summed(
    exchange: Exchange, flats: Sequence[FlatParameters], inputs: Sequence[StepInputs], reached: Sequence[Sequence[bool]]
) -> list[StepInputs]:
    """The step of vertices, with the gradients from the points of all ranks.

    inputs: of each buffer, with those from the points of this rank.  reached: of each buffer, the parameters that have
    a gradient on any rank.
    """
    found = []
    for flat, given, there in zip(flats, inputs, reached, strict=True):
        (grads, addresses), weights = given.gradients
        assert weights is not None
        wide = torch.promote_types(grads.dtype, torch.float32)  # 16 bits are rounded once, in the step
        out = torch.zeros(flat.num_trained, flat.width, dtype=wide, device=flat.device)
        combine_(out, grads, weights, flat.chunks, addresses=addresses)
        exchange.ranks.add_(out)
        active = None
        if not all(there):
            mask = torch.tensor([list(there)] * flat.num_trained, dtype=torch.bool)
            active = to_device(mask, flat.device)
        joint = Combination(Source(out.unsqueeze(1), None), None)
        found.append(given._replace(gradients=joint, active=active, reached=list(there)))
    return found
