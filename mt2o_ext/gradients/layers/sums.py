"""Gram matrices that are added up parameter by parameter, and the gradients of parameters that no formula covers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from ..collect import batched_backward
from .terms import gram_of_rows

__all__ = ["GramSums", "through_autograd"]


class GramSums:
    """Gram matrices of T losses, for each parameter or for all of them together.

    Args:
        parameters: in the order of the matrices.
        num_tasks: T.
        apart: one matrix for each parameter; False: only their sum.

    Attributes:
        values: float64 [S, T, T], or [1, T, T].
        ways: for each parameter that the losses depend on, how its gradients were found.
    """

    def __init__(self, parameters: Sequence[Tensor], num_tasks: int, *, apart: bool) -> None:
        self._place = {p: index if apart else 0 for index, p in enumerate(parameters)}
        count = len(parameters) if apart else 1
        device = parameters[0].device if parameters else None
        self.values = torch.zeros(count, num_tasks, num_tasks, dtype=torch.float64, device=device)
        self.ways: dict[Tensor, str] = {}

    def add(self, p: Tensor, gram: Tensor, way: str, tasks: Tensor | None = None) -> None:
        """Add the inner products by a parameter: of these tasks, or of the first ones."""
        out = self.values[self._place[p]]
        if tasks is None:
            out[: len(gram), : len(gram)].add_(gram)
        else:
            out[tasks.unsqueeze(1), tasks] += gram
        self.ways[p] = way


def through_autograd(
    losses: Sequence[Tensor],
    parameters: Sequence[Tensor],
    points: Sequence[GradientEdge],
    take: Callable[[Tensor, Tensor], None],
    *,
    batched: bool,
) -> list[Tensor | None]:
    """The gradients of P losses one by one, by backward passes that keep the graph.

    Args:
        losses: P scalars.
        parameters: those whose Gram matrices are wanted.
        points: places of the graph.
        take: called with a parameter and its Gram matrix, float64 [P, P].
        batched: one pass through ``torch.func.vmap``, which keeps the gradients by one parameter at a time; False: P
            passes, which work with every graph and keep them all.

    Returns:
        The gradients [P, *shape] by each point, None where no loss depends on it.
    """
    if not parameters and not points:
        return []
    if batched:

        def taker(p: Tensor) -> Callable[[Tensor], None]:
            return lambda grads: take(p, gram_of_rows(grads))

        return batched_backward(torch.stack(list(losses)), [(p, taker(p)) for p in parameters], True, points)
    inputs: list[Any] = [*points, *parameters]
    passes = [torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True) for loss in losses]
    columns = [_stacked(grads) for grads in zip(*passes, strict=True)]
    for p, grads in zip(parameters, columns[len(points) :], strict=True):
        if grads is not None:
            take(p, gram_of_rows(grads))
    return columns[: len(points)]


def _stacked(grads: Sequence[Tensor | None]) -> Tensor | None:
    """[P, *shape], with zeros where there is none; None if there is none at all."""
    dense = [grad.to_dense() if grad is not None and grad.is_sparse else grad for grad in grads]
    there = [grad for grad in dense if grad is not None]
    if not there:
        return None
    return torch.stack([torch.zeros_like(there[0]) if grad is None else grad for grad in dense])
