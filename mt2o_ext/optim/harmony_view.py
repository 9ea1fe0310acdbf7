"""The model as a task sees it, beside the model as it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..masks.tables import MaskTables
from .buffers import Buffers
from .flat_masked import FlatMasked
from .now import Now

__all__ = ["TaskView"]


class TaskView(NamedTuple):
    """The way in which the user's model comes to what a task sees, and back.

    buffers: of the parameters.  tables: of the masks.  now: knows that other values are shown.
    """

    buffers: Buffers
    tables: MaskTables
    now: Now

    def _seen(self) -> Iterator[tuple[FlatMasked, int]]:
        """The buffers that tasks see through masks, and their places in the tables."""
        for index, flat in enumerate(self.buffers.flats):
            if self.tables.with_masks[index]:
                assert isinstance(flat, FlatMasked)
                yield flat, index

    @torch.no_grad()
    def enter(self, task: int, name: str | None = None) -> dict[Tensor, int]:
        """Shows the model to a task, with the values of a buffer (None: its own); returns the parameters' versions."""
        with torch.inference_mode(False):
            for flat, index in self._seen():
                flat.show_task(self.tables.of(index)[task : task + 1], self.tables.whole[index], name)
        torch.clear_autocast_cache()  # it knows tensors by their identity
        self.now.averaged = True
        return {p: p._version for flat, _ in self._seen() for p in flat.parameters}

    @torch.no_grad()
    def leave(self) -> None:
        """Shows all of the model again."""
        with torch.inference_mode(False):
            for flat, _ in self._seen():
                flat.activate(0)
        torch.clear_autocast_cache()
        self.now.averaged = False

    def give_away(self) -> None:
        """Leaves the memory of the view to those who kept tensors of it, in a state dict, say."""
        for flat, _ in self._seen():
            flat.give_view_away()

    def is_kept(self, task: int, name: str | None = None) -> bool:
        """True if nobody has changed what the task sees."""
        return all(
            flat.is_view_of(self.tables.of(index)[task : task + 1], self.tables.whole[index], name)
            for flat, index in self._seen()
        )
