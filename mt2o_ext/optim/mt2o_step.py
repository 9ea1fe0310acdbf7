"""The step of K subproblems or points as a value: its losses, what is found in them, weights, inputs of the kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..base import BaseRule
from ..device import to_device
from ..gradients.skipped import found_in, with_losses
from ..gradients.tasks import Batch, Combination, Losses, TaskGradients
from ..weighting import Needs
from .amp import Scaling
from .blend import Blend
from .buffers import Buffers
from .mesh_step import step_of_rows, summed
from .skips import SkipReport
from .step import Plan, StepInputs, combined_gradient, moments_of

__all__ = ["Applying", "Round", "RowsPlan", "about_missing_rows", "check_present", "mixed", "without_absent"]


def without_absent(losses: Tensor | None, batch: Batch) -> Tensor | None:
    """The losses [K, T] of a step, NaN of tasks that were absent."""
    missing = [(row, task) for row, tasks in batch.absent_of.items() for task in tasks]
    if losses is None or not missing:
        return losses
    mask = torch.zeros(losses.shape, dtype=torch.bool)
    mask[tuple(zip(*missing, strict=True))] = True
    return losses.masked_fill(to_device(mask, losses.device), torch.nan)


def check_present(batch: Batch) -> None:
    """Checks that a weighting has the same tasks in all subproblems, which it weighs together.

    Raises:
        ValueError: where it has not.
    """
    if len(set(batch.absent_of.values())) > 1:
        raise ValueError(
            "expected the same tasks without a loss in all subproblems of a step with weighting=, got "
            f"{[sorted(tasks) for tasks in batch.absent_of.values()]}: give each subproblem a mini-batch of the same "
            "tasks, or leave weighting= out"
        )


def about_missing_rows(buffers: Buffers) -> str | None:
    """The words about subproblems without gradients where others have some; None: all have."""
    there = [flat.tasks.rows_with_gradients() for flat in buffers.flats]
    missing = [k for row, k in enumerate(buffers.share.own) if not any(rows[row] for rows in there)]
    if not missing:
        return None
    vertices = buffers.vertices is not None
    return (
        f"{'points' if vertices else 'subproblems'} {', '.join(map(str, missing))} have no gradients: this "
        f"step {'goes without them' if vertices else 'leaves them as they are'}. "
        "Call backward for each, `for k in optimizer.subproblems(): optimizer.backward(losses)`, or pass a "
        "closure to step()."
    )


class RowsPlan(NamedTuple):
    """A step that is ready to be made, but for the transfer.

    weights: float64 [K, T] (per tensor: [K, S, T]), or None where nobody weighed.
    losses: float64 [K, T], or None.
    """

    plan: Plan
    weights: Tensor | None
    losses: Tensor | None


class Round(NamedTuple):
    """All that backward has left for a step.

    buffers, tasks, report: of the optimizer.
    batch: what lies beside the gradients.
    losses: float64 [K, T], or K T scalars that nobody has put into a table yet; None: there are none.
    divisor: float32 [1], what gradients have to be divided by, or None.
    preferences: float64 [K, T], for a weighting that has others in each step; None: its own.
    """

    buffers: Buffers
    tasks: TaskGradients | None
    report: SkipReport
    batch: Batch
    losses: Losses | None
    divisor: Tensor | None
    preferences: Tensor | None

    def find(self, scaling: Scaling, *, look: bool) -> tuple[Round, Tensor | None]:
        """Looks at the losses and the gradients, as far as `plan` does not; a weighting changes gradients here.

        Args:
            scaling: the scaler's part in the step.
            look: whether gradients are read where nothing else tells whether they are finite.

        Returns:
            The same round, with losses in a table where one was made; and float32 [K], the number of what was found,
            None where nobody has looked.
        """
        if self.tasks is None:
            found, this = self._find_in_losses(scaling)
            if look:
                for flat in self.buffers.flats:
                    flat.tasks.find_nonfinite(found)
            return this, found
        seen = scaling.found(self.report.nothing_found)
        if look:
            seen = self.tasks.find_nonfinite(seen, self.report.nothing_found)
        if Needs.ROWS not in self.tasks.weigher.due():
            return self, seen
        table = self._table()
        seen = with_losses(self.report.nothing_found() if seen is None else seen, table)
        self.tasks.transform(
            self.batch, table, seen, self.divisor, together=self.report.skip_all, preferences=self.preferences
        )
        return self._replace(losses=table), seen

    def _find_in_losses(self, scaling: Scaling) -> tuple[Tensor, Round]:
        if self.losses is None:
            return scaling.with_infinities(self.report.nothing_found()), self
        found, table = found_in(self.losses, len(self.report.counts), self.buffers.device)
        return scaling.with_infinities(found), self._replace(losses=table)

    def _table(self) -> Tensor | None:
        """float64 [K, T], the losses."""
        return self.losses if self.losses is None or isinstance(self.losses, Tensor) else self.batch.all_losses()

    def plan(self, found: Tensor | None) -> RowsPlan:
        """The step of these gradients; task gradients are weighed for it.

        found: as `find` has returned it.
        """
        tables, tasks, weights = [flat.tasks for flat in self.buffers.flats], self.tasks, None
        if tasks is None:
            combinations = [Combination(table.source(), None) for table in tables]
        else:
            weighed = tasks.weigh(
                self.batch, self.losses, found, self.divisor, together=self.report.skip_all,
                preferences=self.preferences,
            )  # fmt: skip
            weights, found = weighed.weights, weighed.found
            combinations = [tasks.combination(index, weighed.applied) for index in range(len(tables))]
        assert found is not None
        found = self.report.with_refusals(found)
        skipped = self.report.rows_to_skip(found)
        inputs = [
            StepInputs.of(table, gradients, self.divisor, skipped)
            for table, gradients in zip(tables, combinations, strict=True)
        ]
        return RowsPlan(Plan(found, skipped, inputs), weights, self._table())


class Applying(NamedTuple):
    """The fused step with its transfer.

    buffers, base, blend, groups: of the optimizer.
    apply: makes the fused step.
    ema: decay of the running average, or None.
    together: all subproblems skip a step, or none does.
    """

    buffers: Buffers
    base: BaseRule
    blend: Blend
    groups: Sequence[dict[str, Any]]
    apply: Callable[..., None]
    ema: float | None
    together: bool

    def step(self, plan: Plan, losses: Tensor | None, others: list[list[bool]] | None) -> bool:
        """Makes the step.

        Args:
            plan: of the models here.
            losses: float64 [K, T] of them, or None.
            others: as of `met`, where other ranks have other models.

        Returns:
            Whether all subproblems started with one mini-batch, once, where that matters.
        """
        buffers, blend, lr = self.buffers, self.blend, self.groups[0]["lr"]
        flats, vertices, exchange = buffers.flats, buffers.vertices, buffers.exchange
        if blend.rule.relative:  # which changes theta before the kernel: there is memory for moments by then
            moments_of(buffers, self.base, self.groups)
        if vertices is not None:
            inputs = [vertices.returned(given) for given in plan.inputs]
            self.apply(inputs if exchange is None or others is None else summed(exchange, flats, inputs, others))
            return False
        if exchange is not None and others is not None:
            return step_of_rows(
                exchange, blend, flats, plan, losses, lr, self.apply, ema=self.ema, together=self.together,
                inactive=any(map(any, others)),
            )  # fmt: skip
        shared = losses is not None and blend.has_shared_batch(losses)
        matrices, mixes = mixed(plan, blend, buffers, losses, lr)
        self.apply(mixes, blend.order)
        blend.after_step(flats, matrices)
        return shared


class Mixed(NamedTuple):
    """The transfer of a step.

    matrices: of each buffer, M [K, K] or [S, K, K], None where no transfer is due.
    inputs: of the kernel, with the transfer that is left to it.
    """

    matrices: list[Tensor | None]
    inputs: list[StepInputs]


def mixed(plan: Plan, blend: Blend, buffers: Buffers, losses: Tensor | None, lr: float | Tensor) -> Mixed:
    """The step of rows with its transfer, of which a part that the kernel cannot do is made here.

    losses: float64 [K, T], or None.  lr: of the first group.
    """
    flats = buffers.flats

    def gradients() -> list[Tensor]:
        both = zip(flats, plan.inputs, strict=True)
        rows = [(combined_gradient(flat, given.gradients)[:, 0], given.divisor) for flat, given in both]
        return [row if divisor is None else row / divisor.to(row.dtype) for row, divisor in rows]

    matrices = [
        None if mix is None else blend.held(mix, given.active, plan.skipped)
        for mix, given in zip(blend.matrices(flats, losses, lr, gradients=gradients), plan.inputs, strict=True)
    ]
    mixes = blend.before_step(flats, matrices, plan.skipped)
    return Mixed(matrices, [given._replace(mix=mix) for given, mix in zip(plan.inputs, mixes, strict=True)])
