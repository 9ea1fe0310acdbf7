"""Steps without some of the tasks: meanwhile a weighting knows nothing of the others.

The one place that says what happens to a weighting's state then: rows (and columns) of absent tasks are put aside, the
method runs on those that are present as if there were no others, and its new rows go back to their places.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["restored", "selected", "selected_share", "share_restored", "widened"]


def selected(table: Tensor, axes: Sequence[int], present: Tensor) -> Tensor:
    """The part of a table that belongs to some tasks.

    Args:
        table: whose dimensions ``axes`` count all T tasks.
        axes: () for a table that belongs to no task in particular, which is returned as it is.
        present: int64 [P], the tasks.
    """
    for axis in axes:
        table = table.index_select(axis, present)
    return table


def restored(table: Tensor, part: Tensor, axes: Sequence[int], present: Tensor) -> Tensor:
    """The table with another part in the place of `selected`; a new tensor."""
    if not axes:
        return part
    axis, *others = axes
    if others:
        part = restored(table.index_select(axis, present), part, others, present)
    return table.index_copy(axis, present, part)


def selected_share(weights: Tensor, present: Tensor) -> Tensor:
    """The weights [K, T] on the simplex, of some tasks, on their own simplex: [K, P]; equal ones where all are 0."""
    part = weights.index_select(-1, present)
    total = part.sum(-1, keepdim=True)
    return torch.where(total > 0, part / torch.where(total > 0, total, 1.0), 1 / part.shape[-1])


def share_restored(weights: Tensor, part: Tensor, present: Tensor) -> Tensor:
    """The weights [K, T] on the simplex, of which some tasks have shared their total anew, [K, P]."""
    total = weights.index_select(-1, present).sum(-1, keepdim=True)
    # Where they had none, they get what would be theirs among equals; the next step of all tasks projects.
    total = torch.where(total > 0, total, part.shape[-1] / weights.shape[-1])
    return weights.index_copy(-1, present, part * total)


def widened(part: Tensor, present: Tensor, num_tasks: int, fill: float = 0.0) -> Tensor:
    """[..., T] with the numbers [..., P] of the tasks that are present, and ``fill`` for the others."""
    return part.new_full((*part.shape[:-1], num_tasks), fill).index_copy(-1, present, part)
