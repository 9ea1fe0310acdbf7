"""Steps without some of the tasks: meanwhile a weighting knows nothing of the others.

The one place that says what happens to a weighting's state then: rows (and columns) of absent tasks are put aside, the
method runs on those that are present as if there were no others, and its new rows go back to their places.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["Narrowed", "selected", "selected_share", "widened"]


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


def _restored(table: Tensor, part: Tensor, axes: Sequence[int], present: Tensor) -> Tensor:
    """The table with another part in the place of what `selected` gave; a new tensor."""
    if not axes:
        return part
    axis, *others = axes
    if others:
        part = _restored(table.index_select(axis, present), part, others, present)
    return table.index_copy(axis, present, part)


def selected_share(weights: Tensor, present: Tensor) -> Tensor:
    """The weights [K, T] on the simplex, of some tasks, on their own simplex: [K, P]; equal ones where all are 0."""
    part = weights.index_select(-1, present)
    total = part.sum(-1, keepdim=True)
    return torch.where(total > 0, part / torch.where(total > 0, total, 1.0), 1 / part.shape[-1])


def _share_restored(weights: Tensor, part: Tensor, present: Tensor) -> Tensor:
    """The weights [K, T] on the simplex, of which some tasks have shared their total anew, [K, P]."""
    total = weights.index_select(-1, present).sum(-1, keepdim=True)
    # Where they had none, they get what would be theirs among equals; the next step of all tasks projects.
    total = torch.where(total > 0, total, part.shape[-1] / weights.shape[-1])
    return weights.index_copy(-1, present, part * total)


def widened(part: Tensor, present: Tensor, num_tasks: int, fill: float = 0.0) -> Tensor:
    """[..., T] with the numbers [..., P] of the tasks that are present, and ``fill`` for the others."""
    return part.new_full((*part.shape[:-1], num_tasks), fill).index_copy(-1, present, part)


class Narrowed:
    """A state without the rows of absent tasks, which are put aside.

    Args:
        state: of a weighting of T tasks.
        axes: for each of its tables, the dimensions that count tasks.
        shares: names of tables [K, T] that are weights on the simplex.
        present: int64 [P], the tasks that are there.

    Attributes:
        state: of the P tasks.
    """

    def __init__(
        self,
        state: Mapping[str, Tensor],
        axes: Mapping[str, Sequence[int]],
        shares: Collection[str],
        present: Tensor,
    ) -> None:
        self._before, self._axes, self._shares, self._present = state, axes, shares, present
        self.state = {
            name: selected_share(table, present) if name in shares else selected(table, axes[name], present)
            for name, table in state.items()
        }

    def restored(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state of all tasks after a step of these; tables that the step did not replace are those of before."""
        after = dict(self._before)
        for name, part in state.items():
            if part is self.state[name]:
                continue
            if name in self._shares:
                after[name] = _share_restored(after[name], part, self._present)
            else:
                after[name] = _restored(after[name], part, self._axes[name], self._present)
        return after
