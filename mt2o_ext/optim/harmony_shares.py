"""The shares of tasks in a step: the mean of their gradients, none longer than allowed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..device import to_device
from ..gradients.table import GradientTable, Source
from ..gradients.tasks import Combination
from ..masks.tables import StepMasks
from .step import StepInputs

__all__ = ["Shares", "Shortened"]


class Shortened(NamedTuple):
    """The weights of gradients that are no longer than allowed.

    weights: float64 [1, n].
    norms: float64 [T], how long the gradients were; NaN of tasks that have none.
    finite: bool [], whether all of them are finite.
    """

    weights: Tensor
    norms: Tensor
    finite: Tensor


class Shares(NamedTuple):
    """The gradients of a step.

    tables: of each buffer: of one task, or of T and of their heads.
    heads: for each table, the task that a parameter belongs to, or None.
    order: the tasks that had a turn.
    there: those that have given a loss, in ascending order.
    num_tasks: T.
    """

    tables: Sequence[GradientTable]
    heads: Sequence[Sequence[int | None]]
    order: Sequence[int]
    there: list[int]
    num_tasks: int

    def equal(self) -> Tensor | None:
        """float64 [1, n], the weights of a mean; None where there is one gradient."""
        if len(self.there) == 1:
            return None
        shape, device = (1, len(self.there)), self.tables[0].layout.device
        return torch.full(shape, 1 / len(self.there), dtype=torch.float64, device=device)

    def shortened(self, longest: float, divisor: Tensor | None) -> Shortened:
        """The weights of a mean of gradients that are no longer than allowed; those of heads are shortened in place.

        Args:
            longest: a task's gradient, all parameters as one vector.
            divisor: float32 [1], what the gradients are times too long, or None.
        """
        squares = self._squares()
        norms = squares.sqrt() if divisor is None else squares.sqrt() / divisor.double()
        factors = torch.where(norms > longest, longest / norms, 1.0)
        if len(self.order) > 1:
            self._shorten_heads(factors)
        finite = squares.isfinite().all()
        if len(self.there) < self.num_tasks:
            there = to_device(torch.tensor(self.there, dtype=torch.int64), norms.device)
            factors = factors.index_select(0, there)
            norms = torch.full_like(norms, torch.nan).index_copy(0, there, norms.index_select(0, there))
        return Shortened(factors[None] / len(self.there), norms, finite)

    def inputs(
        self, weights: Tensor | None, divisor: Tensor | None, skipped: Tensor, masks: Sequence[StepMasks | None]
    ) -> list[StepInputs]:
        """The step of each buffer; masks: of each, of the tasks that are there."""
        found = []
        for table, own in zip(self.tables, masks, strict=True):
            source, shares = table.source(), weights
            if table.num_tasks > 1:
                source = _rows_of(source, self.there)
            elif len(self.order) > 1:  # heads, which take their own task's gradient as it is
                shares = None
            found.append(StepInputs.of(table, Combination(source, shares), divisor, skipped)._replace(masks=own))
        return found

    def _squares(self) -> Tensor:
        """float64 [T], the squared lengths of the tasks' gradients."""
        found = torch.zeros(self.num_tasks, dtype=torch.float64, device=self.tables[0].layout.device)
        for table, heads in zip(self.tables, self.heads, strict=True):
            own = table.gram(diagonal=True)[0]  # [S, T], or [S, 1]
            if len(self.order) == 1:
                found[self.order[0]] += own.sum()
            elif heads[0] is None:
                found += own.sum(0)
            else:
                found.index_add_(0, to_device(torch.tensor(heads, dtype=torch.int64), found.device), own[:, 0])
        return found

    def _shorten_heads(self, factors: Tensor) -> None:
        for table, heads in zip(self.tables, self.heads, strict=True):
            for grad, task in zip(table.tensors[0], heads, strict=True):
                if task is not None and grad is not None:
                    grad.mul_(factors[task].to(grad.dtype))


def _rows_of(source: Source, tasks: list[int]) -> Source:
    """The gradients of some tasks, of sources [1, T, ...]."""
    grads, addresses = source
    first, last = tasks[0], tasks[-1] + 1
    if last - first == len(tasks):
        return Source(grads[:, first:last], None if addresses is None else addresses[:, first:last])
    at = to_device(torch.tensor(tasks, dtype=torch.int64), grads.device)
    if addresses is None:
        return Source(grads.index_select(1, at), None)
    return Source(grads[:, : len(tasks)], addresses.index_select(1, at))
