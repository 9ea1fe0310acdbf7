"""The priority rule on flat buffers: tables made once, owners and the combined gradient at every step of phase 2."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..device import to_device
from ..ops import PriorityRecord, plan_priority, priority_
from ..optim.flat import FlatParameters
from ..ranks import Ranks
from .connection import ChannelRange, Connection
from .history import HistoryRecorder
from .owners import LayerSums, channel_owners

__all__ = ["Projection", "Projections"]


class Projection:
    """Connections whose weights lie in one flat buffer of T gradients.

    Args:
        flat: the buffer, with one row and T tasks.
        connections: those whose weight it holds.
        faithful: weights without biases, and the owners of the faithful mode.

    Attributes:
        owners: int64 [N], of the channels of all connections one after another; -1: none.
        coefficients: float64 [layers, T], how much of an owner's gradient was added; > 0: there was a conflict.
    """

    def __init__(self, flat: FlatParameters, connections: Sequence[Connection], *, faithful: bool) -> None:
        self.flat = flat
        self.connections = list(connections)
        self.faithful = faithful
        self._segments: list[list[int]] = []  # of each connection
        segment_of = {id(p): segment for segment, p in enumerate(flat.parameters)}
        records, first = [], 0
        for layer, connection in enumerate(self.connections):
            weight = segment_of[id(connection.weight)]
            parts = [(weight, connection.weight_ranges(flat.strides[weight]))]
            if connection.bias is not None and not faithful and id(connection.bias) in segment_of:
                parts.append((segment_of[id(connection.bias)], [connection.bias_range()]))
            self._segments.append([segment for segment, _ in parts])
            for segment, ranges in parts:
                records += [_record(layer, first, flat.offsets[segment], part) for part in ranges]
            first += connection.channels
        owned = {segment for segments in self._segments for segment in segments}
        for segment, (offset, numel) in enumerate(zip(flat.offsets, flat.numels, strict=True)):
            if segment not in owned and numel > 0:
                records.append(PriorityRecord(-1, 0, 1, offset, numel, 1))
        device, tasks = flat.device, flat.tasks.num_tasks
        self._records, self._chunks = (table.to(device) for table in plan_priority(records))
        self._dots = torch.zeros(len(self._chunks), tasks, tasks, dtype=torch.float64, device=device)
        self.coefficients = torch.zeros(len(self.connections), tasks, dtype=torch.float64, device=device)
        self.owners = torch.full((first,), -1, dtype=torch.int64, device=device)
        self.layers = LayerSums([c.channels for c in self.connections], device) if self.connections else None
        # Sums of 16-bit gradients are rounded once, in the step; those of others take the place of the first task's.
        self._wide = (
            torch.zeros(1, 1, flat.width, dtype=torch.float32, device=device) if flat.values is not flat.theta else None
        )

    def combine(self, ranks: Ranks | None = None, absent: frozenset[int] = frozenset()) -> Tensor:
        """Finds the owners from the model as it is (on the first rank), and combines the gradients.

        Args:
            ranks: of data parallelism, or None.
            absent: tasks that have no gradients in this step: they own nothing.

        Returns:
            The combined gradient, [1, 1, P].  It may take the place of the first task's gradients.
        """
        if self.layers is not None:
            strengths = torch.cat([c.strengths().to(self.flat.device) for c in self.connections], dim=1)
            if absent:
                there = [task for task in range(len(strengths)) if task not in absent]
                present = torch.tensor(there, dtype=torch.int64)
                present = to_device(present, self.flat.device)
                owners = channel_owners(strengths[present], self.layers, faithful=self.faithful)
                owners = torch.where(owners < 0, -1, present[owners.clamp(min=0)])
            else:
                owners = channel_owners(strengths, self.layers, faithful=self.faithful)
            left_out = self._without_all_gradients(absent) if self.faithful else []
            if left_out:
                out = torch.zeros(len(self.connections), dtype=torch.bool)
                out[left_out] = True
                owners = torch.where(to_device(out, self.flat.device)[self.layers.layer], -1, owners)
            self.owners.copy_(owners)
            if ranks is not None:
                ranks.from_first_(self.owners)
        grads = self.flat.tasks.flat()
        out = grads[:, :1] if self._wide is None else self._wide
        priority_(out[0, 0], self._dots, self.coefficients, grads[0], self.owners, self._records, self._chunks)
        return out

    def _without_all_gradients(self, absent: frozenset[int]) -> list[int]:
        """The connections that some task gave no gradient, of those that are there."""
        of_tasks = [filled for task, filled in enumerate(self.flat.tasks.filled) if task not in absent]
        return [
            layer
            for layer, segments in enumerate(self._segments)
            if not all(filled[segment] for filled in of_tasks for segment in segments)
        ]

    def shares(self) -> Tensor:
        """float32 [layers, T + 1]: the part of each layer's channels that each task owns, and that none owns."""
        tasks = self.flat.tasks.num_tasks
        if self.layers is None:
            return torch.zeros(0, tasks + 1, dtype=torch.float32, device=self.flat.device)
        of_layer = self.layers.padded(torch.where(self.owners < 0, tasks, self.owners), -1)
        counts = torch.stack([(of_layer == task).sum(dim=1) for task in range(tasks + 1)], dim=1)
        return counts.float() / counts.sum(dim=1, keepdim=True)


def _record(layer: int, first_channel: int, offset: int, part: ChannelRange) -> PriorityRecord:
    return PriorityRecord(
        layer, first_channel + part.first_channel, part.channels, offset + part.offset, part.length, part.runs
    )


class Projections:
    """The projections of all buffers of a model.

    Args:
        flats: the buffers.
        shared: for each of them, whether its parameters are shared; heads have no projection.
        connections: those whose weights the buffers hold.
        faithful: as of `Projection`.
    """

    def __init__(
        self,
        flats: Sequence[FlatParameters],
        shared: Sequence[bool],
        connections: Sequence[Connection],
        *,
        faithful: bool,
    ) -> None:
        self._of_buffers: list[Projection | None] = []
        for flat, is_shared in zip(flats, shared, strict=True):
            held = set(map(id, flat.parameters))
            here = [c for c in connections if id(c.weight) in held]
            self._of_buffers.append(Projection(flat, here, faithful=faithful) if is_shared else None)
        self._there = [projection for projection in self._of_buffers if projection is not None]
        built = [c for projection in self._there for c in projection.connections]
        order = torch.tensor([built.index(c) for c in connections], dtype=torch.int64)
        self._order = order.to(flats[0].device) if flats else order

    def combine(self, ranks: Ranks | None, recorder: HistoryRecorder, absent: frozenset[int]) -> list[Tensor | None]:
        """Projects the gradients of all buffers.

        Args:
            ranks: of data parallelism, or None.
            recorder: is told of owners and conflicts, in the order in which the connections were given.
            absent: as of `Projection`.

        Returns:
            For each buffer the combined gradient, [1, 1, P]; None for heads.
        """
        projected = [None if each is None else each.combine(ranks, absent) for each in self._of_buffers]
        if self._there:
            coefficients = torch.cat([p.coefficients for p in self._there])
            shares = torch.cat([p.shares() for p in self._there])[self._order] if recorder.due() else None
            recorder.add_projection(shares, coefficients[self._order])
        return projected
