"""The names that random numbers are drawn for."""

from __future__ import annotations

import torch
from torch import Tensor

from mt2o_ext.weighting.context import WeightingContext
from mt2o_ext.weighting.draw import Draw


def drawn(context: WeightingContext) -> Draw:
    """``context.draw``, which `Weighting.weights` has found to be there."""
    assert context.draw is not None
    return context.draw


def task_names(context: WeightingContext) -> Tensor:
    """int64 [T]."""
    if context.tasks is not None:
        return context.tasks
    return torch.arange(context.preferences.shape[1], dtype=torch.int64, device=context.preferences.device)


def subproblem_and_task(context: WeightingContext) -> tuple[Tensor, Tensor]:
    """int64 [K, 1] and [1, T]: the ids of numbers [K, T]."""
    return torch.arange(len(context.preferences), dtype=torch.int64, device=context.preferences.device)[
        :, None
    ], task_names(context)[None]


def meeting_orders(context: WeightingContext, stream: int = 0) -> Tensor:
    """int64 [K, T, T]: in row i a random order of all tasks, for the task i that meets the others."""
    subproblem, task = subproblem_and_task(context)
    return drawn(context).bits(stream, subproblem[..., None], task[..., None], task[:, None]).argsort(-1)


def shared_order(context: WeightingContext, stream: int = 0) -> Tensor:
    """int64 [K, T]: one random order of the tasks."""
    return drawn(context).bits(stream, *subproblem_and_task(context)).argsort(-1)
