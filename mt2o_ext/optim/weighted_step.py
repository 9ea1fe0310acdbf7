"""From the gradients of T tasks to a step: which gradients it has, their weights, the inputs of the kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ..gradients.early import EarlySum
from ..gradients.passes import Pass
from ..gradients.skipped import with_losses
from ..gradients.table import GradientTable
from ..gradients.tasks import Batch, Combination, Losses, TaskGradients
from ..weighting import Needs
from .amp import Scaling
from .buffers import Buffers
from .showing import Showing
from .skips import SkipReport
from .step import Plan, StepInputs

__all__ = ["StepGradients", "TaskRound", "WeightedPlan"]


class WeightedPlan(NamedTuple):
    """A step that is ready to be made.

    weights: float64 [1, T] (per tensor: [1, S, T]), or None where nobody weighed.
    """

    plan: Plan
    weights: Tensor | None


class StepGradients(NamedTuple):
    """The gradients that a step is made from.

    tables: of each buffer.
    combined: they are one of each parameter already, instead of T.
    divisor: float32 [1], what they have to be divided by, or None.
    found: float32 [1], the number of what was found in them and in the losses, but for what is seen when they are
        weighed; None: nobody has looked.
    losses: float64 [1, T], or T scalars; None: there are none.
    batch: what backward left beside them.
    """

    tables: Sequence[GradientTable]
    combined: bool
    divisor: Tensor | None
    found: Tensor | None
    losses: Losses | None
    batch: Batch

    def plan(self, tasks: TaskGradients, report: SkipReport) -> WeightedPlan:
        """The step of these gradients; task gradients are weighed for it."""
        found, early = self.found, self.batch.early
        weights = None if early is None else early.weights
        if self.combined:
            combinations = [Combination(table.source(), None) for table in self.tables]
        else:
            weighed = tasks.weigh(self.batch, self.losses, found, self.divisor, together=report.skip_all)
            weights, found = weighed.weights, weighed.found
            combinations = [tasks.combination(index, weighed.applied) for index in range(len(self.tables))]
        assert found is not None
        found = report.with_refusals(found)
        skipped = report.rows_to_skip(found)
        inputs = [
            StepInputs.of(table, gradients, self.divisor, skipped)
            for table, gradients in zip(self.tables, combinations, strict=True)
        ]
        return WeightedPlan(Plan(found, skipped, inputs), weights)


class TaskRound:
    """The ways of T task gradients through one round of backward and step.

    Weights are made from the losses before a single backward of the weighted sum, or from the gradients of T tasks:
    these are combined in ``.grad`` after backward, or in the step.

    Args:
        tasks: the task gradients.
        buffers: of the parameters, as they are now.
        report: says which rows skip the step.
        accumulate: task gradients are kept also where the weighting needs only losses.
        look_for_nonfinite: whether gradients are read for that where nothing else tells.
    """

    def __init__(
        self,
        tasks: TaskGradients,
        buffers: Buffers,
        report: SkipReport,
        *,
        accumulate: bool,
        look_for_nonfinite: bool,
    ) -> None:
        self._tasks = tasks
        self._buffers = buffers
        self._report = report
        self._accumulate = accumulate
        self._look_for_nonfinite = look_for_nonfinite
        combined = [flat.combined for flat in buffers.flats]
        weighted = tasks.heads == "weighted"
        self._early_sum = EarlySum(combined, buffers.tasks, tasks.num_tasks, weighted_heads=weighted)
        self.showing = Showing(tasks, buffers.flats, report, look_for_nonfinite=look_for_nonfinite)

    @property
    def weighs_early(self) -> bool:
        """True if the weights of the next step are made from the losses, before their backward."""
        return not self._accumulate and not self._tasks.weigher.reads_gradients()

    def collect(self, losses: Sequence[Tensor | None], batch: Batch, way: Pass) -> None:
        """Backward of T scalar losses into the tables."""
        if batch.early is not None:
            self._early_sum.collect(losses, batch.early.applied[0], way)
        else:
            self._tasks.collect(losses, 0, way)

    def is_combined(self, batch: Batch) -> bool:
        """True if the gradients of the next step are one of each parameter already.

        They are shown in ``.grad``, weighted before their backward, or those of a single task that the user's own
        backward left.
        """
        own = self._tasks.num_tasks == 1 and batch.losses[0] is None
        return batch.shown or batch.early is not None or own

    def tables(self, batch: Batch) -> list[GradientTable]:
        """The tables with the gradients of the next step."""
        combined = self.is_combined(batch)
        return [flat.combined if combined else flat.tasks for flat in self._buffers.flats]

    def collected(self, batch: Batch) -> list[GradientTable]:
        """The tables with what backward has collected, also where ``.grad`` shows its combination already."""
        return [flat.tasks if batch.early is None else flat.combined for flat in self._buffers.flats]

    def take(self, batch: Batch, scaling: Scaling) -> None:
        """Takes what others made of ``.grad``, if the gradients are there."""
        if batch.shown or (self.is_combined(batch) and batch.early is None):
            self.showing.take_back()
        else:
            scaling.check_known()

    def gradients(self, batch: Batch, losses: Losses | None, scaling: Scaling, divisor: Tensor | None) -> StepGradients:
        """The gradients of the next step; a weighting that does so has changed them then.

        losses: of the step, or None.  divisor: as of `StepGradients`.
        """
        combined, tables = self.is_combined(batch), self.tables(batch)
        found = self._find(batch, losses, scaling)
        if not combined and Needs.ROWS in self._tasks.weigher.due():
            if found is None:
                found = with_losses(self._report.nothing_found(), batch.all_losses())
            self._tasks.transform(batch, losses, found, divisor, together=self._report.skip_all)
        return StepGradients(tables, combined, divisor, found, losses, batch)

    def _find(self, batch: Batch, losses: Losses | None, scaling: Scaling) -> Tensor | None:
        """float32 [1], the number of what is found; None: nothing, and what `weigh` sees was not looked at."""
        found, batch.found = batch.found, None  # which is written to: if the step fails, the next one looks again
        if self.is_combined(batch):
            if found is None:
                table = losses if losses is None or isinstance(losses, Tensor) else batch.all_losses()
                found = with_losses(self._report.nothing_found(), table)
            found = scaling.with_infinities(found)
            if self._look_for_nonfinite:
                for gradients in self.tables(batch):
                    gradients.find_nonfinite(found)
            return found
        found = scaling.found(self._report.nothing_found)
        return self._tasks.find_nonfinite(found, self._report.nothing_found) if self._look_for_nonfinite else found
