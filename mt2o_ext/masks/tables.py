"""Masks of tasks in the order of the columns of flat buffers, as the kernels read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..device import to_device
from ..gradients.layout import Layout
from ..ops import EXCHANGE_BINS, EXCHANGE_STATE, exchange_
from ..ranks import checksums
from .bits import pack, unpack
from .task_masks import TaskMasks

__all__ = ["MaskTables", "StepMasks"]


class StepMasks(NamedTuple):
    """The masks of a step, of one buffer.

    bits: uint8 [n, ceil(P / 8)], of the tasks whose gradients the step has.
    whole: bool [S], tensors whose gradients are not masked; None: no one.
    hold: moments stay, too, where no mask has the column.
    """

    bits: Tensor
    whole: Tensor | None
    hold: bool


class MaskTables:
    """The masks of T tasks over the columns of several buffers, side by side in one table.

    What has no mask, and what lies between two tensors, has bits that are set.

    Args:
        masks: as the user sees them.
        layouts: of the buffers.

    Attributes:
        bits: uint8 [T, bytes], of all buffers.
        whole: for each buffer, bool [S], or None where no tensor is whole.
        with_masks: for each buffer, the tensors that have masks.
    """

    def __init__(self, masks: TaskMasks, layouts: Sequence[Layout]) -> None:
        self._masks = masks
        self._layouts = list(layouts)
        self._starts = [0]
        for layout in self._layouts:
            self._starts.append(self._starts[-1] + -(-layout.width // 8))
        self._place()

    def _place(self) -> None:
        """Finds the places of the masks, and reads them."""
        masks = self._masks
        self._known = len(masks.parameters_with_masks)
        place = {id(p): index for index, p in enumerate(masks.parameters_with_masks)}
        self._places = [[place.get(id(p)) for p in layout.parameters] for layout in self._layouts]
        self.with_masks = [
            [segment for segment, index in enumerate(places) if index is not None] for places in self._places
        ]
        self.whole = [self._whole_of(index) for index in range(len(self._layouts))]
        self._read()

    def _whole_of(self, index: int) -> Tensor | None:
        flags = [place is not None and self._masks.whole[place] for place in self._places[index]]
        return torch.tensor(flags, dtype=torch.bool, device=self._layouts[index].device) if any(flags) else None

    def _read(self) -> None:
        """Makes the table of the user's masks."""
        masks = self._masks
        self._saw()
        flat = unpack(masks.bits, sum(masks.sizes))
        parts = flat.split(masks.sizes, 1)
        tables = []
        for layout, places in zip(self._layouts, self._places, strict=True):
            columns = torch.ones(masks.num_tasks, layout.width, dtype=torch.bool, device=layout.device)
            for segment, place in enumerate(places):
                if place is not None:
                    rows = layout.rows_of(columns, segment)
                    rows.copy_(parts[place].reshape(rows.shape))
            tables.append(pack(columns))
        device = self._layouts[0].device if self._layouts else masks.bits.device
        self.bits = (
            torch.cat(tables, 1) if tables else torch.zeros(masks.num_tasks, 0, dtype=torch.uint8, device=device)
        )

    def _saw(self) -> None:
        """Notes that the table is as the user's masks are now."""
        self._seen = (self._masks.bits, self._masks.bits._version)
        self._checksums: list[int] | None = None

    def checksums(self) -> list[int]:
        """A number for each task that is made from the bits of its mask; found once for each change of them."""
        if self._checksums is None:
            self._checksums = checksums(list(self._masks.bits))
        return self._checksums

    def exchange_channels(self, scores: Tensor, amount: int) -> None:
        """Exchanges whole channels by the sums of their elements' scores.

        scores: float32 [T, columns], of all elements, in the columns of the whole table.
        """
        masks, channels = self._masks, self._masks.channels
        missing = [torch.zeros(masks.num_tasks, size, dtype=scores.dtype, device=scores.device) for size in masks.sizes]
        parts, before = missing, unpack(masks.bits, sum(masks.sizes)).split(masks.sizes, 1)
        for index, (layout, places) in enumerate(zip(self._layouts, self._places, strict=True)):
            for segment, place in enumerate(places):
                if place is not None:
                    parts[place] = layout.rows_of(scores, segment, 8 * self._starts[index])
        number = channels.number
        sums = torch.zeros(masks.num_tasks, -(-number // 16) * 16, dtype=torch.float32, device=scores.device)
        sums[:, :number] = channels.sums(parts)
        old = torch.nn.functional.pad(channels.firsts(before), (0, sums.shape[1] - number))
        bits = pack(old).to(scores.device)
        chunks = torch.tensor([[0, 0, number]], dtype=torch.int64, device=scores.device)
        exchange(bits, sums, chunks, amount)
        new = unpack(bits, number).to(masks.bits.device)
        masks.bits.copy_(pack(torch.cat(channels.spread(new), 1)))
        self._read()

    def exchange_elements(self, scores: Tensor, amount: int) -> None:
        """Exchanges elements by their scores, of the same form."""
        exchange(self.bits, scores, self.chunks(), amount)
        self.write_back()

    def refresh(self) -> None:
        """Takes in what the user has done to the masks since they were read."""
        bits, version = self._seen
        if len(self._masks.parameters_with_masks) != self._known:  # masks of more parameters
            self._place()
        elif self._masks.bits is not bits or self._masks.bits._version != version:
            self._read()

    def write_back(self) -> None:
        """Gives the user's masks what has become of the table."""
        masks = self._masks
        parts: list[Tensor | None] = [None] * len(masks.sizes)
        old = unpack(masks.bits, sum(masks.sizes)).split(masks.sizes, 1)
        for index, (layout, places) in enumerate(zip(self._layouts, self._places, strict=True)):
            columns = unpack(self.of(index), layout.width)
            for segment, place in enumerate(places):
                if place is not None:
                    parts[place] = layout.rows_of(columns, segment).flatten(1).to(masks.bits.device)
        filled = [before if part is None else part for part, before in zip(parts, old, strict=True)]
        masks.bits.copy_(pack(torch.cat(filled, 1)))
        self._saw()

    def of(self, index: int) -> Tensor:
        """uint8 [T, ceil(P / 8)], of one buffer: a view of the table."""
        return self.bits[:, self._starts[index] : self._starts[index + 1]]

    def start(self, index: int) -> int:
        """The byte at which the part of a buffer begins."""
        return self._starts[index]

    def chunks_of(self, index: int) -> Tensor:
        """int64 [C, 3], the chunks of a buffer's tensors that have masks."""
        layout, segments = self._layouts[index], self.with_masks[index]
        return torch.cat([layout.chunks[:0], *(layout.chunks_of[segment] for segment in segments)])

    def chunks(self) -> Tensor:
        """int64 [C, 3], the same of all buffers, in the columns of the whole table."""
        found = []
        for index in range(len(self._layouts)):
            shift = 8 * self._starts[index]
            found.append(
                self.chunks_of(index) + torch.tensor([0, shift, shift], dtype=torch.int64, device=self.bits.device)
            )
        return torch.cat(found).contiguous()

    def of_step(self, index: int, tasks: Sequence[int], *, hold: bool) -> StepMasks | None:
        """The masks of a step with the gradients of these tasks, in ascending order; None where nothing has a mask."""
        if not self.with_masks[index]:
            return None
        table = self.of(index)
        first, last = tasks[0], tasks[-1] + 1
        if last - first == len(tasks):
            return StepMasks(table[first:last], self.whole[index], hold)
        there = to_device(torch.tensor(tasks, dtype=torch.int64), table.device)
        return StepMasks(table.index_select(0, there), self.whole[index], hold)


def exchange(bits: Tensor, scores: Tensor, chunks: Tensor, amount: int) -> None:
    """Exchanges bits [T, bytes] by scores [T, columns], and makes the scratch for it."""
    amount = min(amount, scores.shape[1])  # a kernel counts in 64 bits
    counts = chunks.new_empty((len(bits), len(chunks), EXCHANGE_BINS), dtype=torch.int32)
    state = chunks.new_empty((len(bits), EXCHANGE_STATE))
    exchange_(bits, counts, state, scores, chunks, amount=amount)
