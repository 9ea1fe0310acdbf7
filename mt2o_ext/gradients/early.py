"""One backward of a sum that was weighted before it, by the losses alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from torch import Tensor

from .collect import TaskSlots, collect_sequential, collect_sum, weighted_sum
from .passes import Pass
from .table import GradientTable

__all__ = ["EarlySum"]


class EarlySum:
    """Collects the gradient of a weighted sum, one of each parameter instead of T.

    Args:
        tables: of combined gradients.
        tasks: for each table, the task of each of its parameters; None: shared.
        num_tasks: T.
        weighted_heads: whether heads get the gradient of the weighted sum, not that of their own task's loss.
    """

    def __init__(
        self,
        tables: Sequence[GradientTable],
        tasks: Sequence[Sequence[int | None]],
        num_tasks: int,
        *,
        weighted_heads: bool,
    ) -> None:
        self._slots = TaskSlots(tables, tasks, num_tasks)
        self._weighted_heads = weighted_heads

    def collect(self, losses: Sequence[Tensor | None], weights: Tensor, way: Pass) -> None:
        """One backward of T scalars times weights [T]; heads that are not weighted first, on their own short ways.

        losses: T scalars, or None of tasks that are absent.
        """
        trunk, heads = self._slots.shared(0), self._slots.heads(0)
        total = weighted_sum(losses, weights)
        if self._weighted_heads:
            collect_sum(total, [*trunk, *chain.from_iterable(heads)], way=way)
            return
        if any(heads):
            collect_sequential(losses, heads, short=True, way=way.keeping())
        collect_sum(total, trunk, self._slots.head_parameters(), way=way)
