"""One backward of a sum that was weighted before it, by the losses alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
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
        self._sharded = any(table.layout.sharded for table in tables)

    def collect(self, losses: Sequence[Tensor | None], weights: Tensor, way: Pass) -> None:
        """One backward of T scalars times weights [T]; heads that are not weighted first, on their own short ways.

        losses: T scalars, or None of tasks that are absent.
        """
        trunk, heads = self._slots.shared(0), self._slots.heads(0)
        total = weighted_sum(losses, weights) if way.function is not None else _stand_in(losses, weights)
        if self._weighted_heads:
            collect_sum(total, [*trunk, *chain.from_iterable(heads)], way=way)
            return
        if any(heads):
            short = not self._sharded  # whose shards a whole backward completes only
            others = () if short else [slot.parameter for slot in trunk]
            collect_sequential(losses, heads, others, short=short, way=way.keeping())
        collect_sum(total, trunk, self._slots.head_parameters(), way=way)


def _stand_in(losses: Sequence[Tensor | None], weights: Tensor) -> Tensor:
    """A scalar whose backward is that of the weighted sum, for a pass in which nobody else sees or scales it."""
    there = [task for task, loss in enumerate(losses) if loss is not None]
    total: Tensor = _Sum.apply(weights, there, *(loss for loss in losses if loss is not None))
    return total


class _Sum(torch.autograd.Function):
    """Stands for the sum of losses times weights, whose value nobody reads: backward gives each loss its weight.

    To add them up, and to go back through that, would cost a launch or two for each task.
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor, there: Sequence[int], *losses: Tensor) -> Tensor:
        ctx.there = there
        ctx.save_for_backward(weights)
        return losses[0].new_empty(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Any, ...]:
        (weights,) = ctx.saved_tensors
        return None, None, *(weights[task] for task in ctx.there)
