"""The shares of tasks in a step: the mean of their gradients, none longer than allowed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..device import to_device
from ..gradients.table import GradientTable

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
