"""The combined gradient into ``.grad`` of parameters that another optimizer steps."""

from __future__ import annotations

import torch
from torch import Tensor

from ..sharding import like_parameter
from .layout import Layout
from .tasks import TaskGradients

__all__ = ["IntoGrad"]


class IntoGrad:
    """Adds combined gradients to ``.grad``.

    Where all ``.grad`` of shared parameters are None they become views of one buffer, which later such calls write
    again.

    Args:
        tasks: the task gradients, whose tables of shared parameters come before those of heads.
        copies: whether heads get copies of their gradients, which lie in something larger that does not last.
    """

    def __init__(self, tasks: TaskGradients, *, copies: bool) -> None:
        self._tasks = tasks
        self._copies = copies
        self._rows = [_row(table.layout) for table in tasks.trunks]

    @torch.no_grad()
    def add_shared(self, weights: Tensor) -> None:
        """Adds the gradients of shared parameters, combined with these weights, float64 [1, T] or [1, S, T]."""
        trunks = self._tasks.trunks
        fresh = all(p.grad is None for table in trunks for p in table.layout.parameters)
        for index, (table, row) in enumerate(zip(trunks, self._rows, strict=True)):
            out = row if fresh else _row(table.layout)
            self._tasks.combine_into(index, weights, out)
            reached = table.reached()
            for segment, p in enumerate(table.layout.parameters):
                if reached[segment]:
                    _add(p, like_parameter(p, table.layout.rows_of(out, segment)[0]), copy=not fresh)

    @torch.no_grad()
    def add_heads(self, weights: Tensor) -> None:
        """Adds the gradients of heads; with ``heads="weighted"`` times these weights, float64 [1, T]."""
        plain = self._tasks.heads == "plain"
        for task, slots in enumerate(self._tasks.slots.heads(0)):
            for slot in slots:
                grad = slot.table.at(0, 0, slot.segment)
                if grad is not None:
                    weighted = grad if plain else grad * weights[0, task].to(grad)
                    _add(slot.parameter, like_parameter(slot.parameter, weighted), copy=self._copies)


def _row(layout: Layout) -> Tensor:
    """Zeros [1, P] in the parameters' dtype."""
    return torch.zeros(1, layout.width, dtype=layout.dtype, device=layout.device)


def _add(p: Tensor, grad: Tensor, *, copy: bool) -> None:
    """Adds a gradient to ``.grad``; ``copy``: the tensor itself is not kept."""
    if p.grad is None:
        p.grad = grad.clone() if copy else grad
    else:
        p.grad.add_(grad)
