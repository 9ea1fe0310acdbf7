"""Flat parameters that can show what a task sees of them: zeros outside of the task's mask."""

from __future__ import annotations

import torch
from torch import Tensor

from ..device import in_shared_memory, with_own_storage
from ..ops import mask_
from .flat import FlatParameters

__all__ = ["FlatMasked"]


class FlatMasked(FlatParameters):
    """Parameters of one model with a second row, in which a task sees them.

    The truth stays where it is.  While a task is shown the parameters are views of the other row, which one kernel has
    written; to go back copies nothing.
    """

    _view: Tensor | None = None
    _seen: list[Tensor]

    def show_task(self, masks: Tensor, whole: Tensor | None, name: str | None = None) -> None:
        """Lets the parameters show what a task sees; `activate` goes back.

        Args:
            masks: uint8 [1, ceil(P / 8)], of the task.
            whole: bool [S], tensors that are shown as they are; None: no one.
            name: the buffer whose values are shown; None: the parameters' own.
        """
        if self._view is None:
            self._view = self._zeros(1, self.dtype)
            self._seen = [with_own_storage(view) for view in self.views(self._view)[0]]
        self.write_view(self._view, masks, whole, name)
        for p, seen in zip(self.parameters, self._seen, strict=True):
            if in_shared_memory(p):
                p.data.copy_(seen)
            else:
                p.data = seen
        self.mark_changed()

    def give_view_away(self) -> None:
        """Makes the next view in memory of its own, so that tensors which somebody kept of this one stay."""
        self._view = None

    def write_view(self, out: Tensor, masks: Tensor, whole: Tensor | None, name: str | None = None) -> None:
        """Writes what a task sees to a row [1, P] of the parameters' dtype."""
        values = self.values if name is None else self.buffers[name].to(self.dtype)
        mask_(out, values, masks, whole, self.chunks)

    def is_view_of(self, masks: Tensor, whole: Tensor | None, name: str | None = None) -> bool:
        """True if the parameters show, by value, what a task sees."""
        expected = self._zeros(1, self.dtype)
        self.write_view(expected, masks, whole, name)
        views = self.views(expected)[0]
        return all(_same_bits(p.data, view) for p, view in zip(self.parameters, views, strict=True))


def _same_bits(one: Tensor, other: Tensor) -> bool:
    words = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    same_kind = one.shape == other.shape and one.dtype == other.dtype
    return same_kind and torch.equal(one.view(words[one.itemsize]), other.view(words[other.itemsize]))
