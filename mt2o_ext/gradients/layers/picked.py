"""Rows of a table that are picked by number, as by an embedding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .terms import WORKSPACE, Term

__all__ = ["Picked"]


class Picked(Term):
    """Rows of a table [V, D] that were picked by number: each gradient adds to the row of its number.

    Args:
        index: int64 [N, L].
        values: [N, L, D], gradients of what was picked.
        height: V.
        ignored: a number whose row gets no gradient, or None.

    Example:
        >>> Picked(torch.tensor([[0, 1], [1, 1]]), torch.ones(2, 2, 3), height=4).gram()
        tensor([[ 6.,  6.],
                [ 6., 12.]], dtype=torch.float64)
    """

    way = "picked rows"

    def __init__(self, index: Tensor, values: Tensor, height: int, ignored: int | None = None) -> None:
        self.index = index
        self.values = values if ignored is None else values * (index != ignored).unsqueeze(-1)
        self._height = height

    def gram(self) -> Tensor:
        """The inner products: only gradients of the same number meet, after each loss has added up its own."""
        count, _, width = self.values.shape
        loss = torch.arange(count, dtype=torch.int64, device=self.index.device).unsqueeze(1)
        pairs, place = torch.unique(self.index * count + loss, return_inverse=True)
        sums = self.values.new_zeros(len(pairs), width, dtype=torch.float64)
        sums.index_add_(0, place.flatten(), self.values.reshape(-1, width).double())
        number, loss = torch.div(pairs, count, rounding_mode="floor"), pairs % count
        _, sizes = torch.unique_consecutive(number, return_counts=True)
        first = sizes.cumsum(0) - sizes
        out = sums.new_zeros(count * count)
        smallest, most = 0, 1
        while smallest < count:  # numbers that about as many losses share, side by side
            among = (sizes > smallest) & (sizes <= most)
            step = max(1, WORKSPACE // (most * max(width, most)))
            for start, size in zip(first[among].split(step), sizes[among].split(step), strict=True):
                offset = torch.arange(most, dtype=torch.int64, device=sizes.device)
                there = offset < size.unsqueeze(1)
                at = torch.where(there, start.unsqueeze(1) + offset, 0)
                block = sums[at] * there.unsqueeze(-1)
                cell = loss[at].unsqueeze(2) * count + loss[at].unsqueeze(1)
                out.index_add_(0, cell.flatten(), (block @ block.mT).flatten())
            smallest, most = most, 2 * most
        return out.view(count, count)

    def rows(self) -> Tensor:
        count, _, width = self.values.shape
        out = self.values.new_zeros(count * self._height, width)
        place = self.index + self._height * torch.arange(count, dtype=torch.int64, device=self.index.device).unsqueeze(
            1
        )
        return out.index_add_(0, place.flatten(), self.values.reshape(-1, width)).view(count, -1)

    def total(self) -> Tensor:
        width = self.values.shape[-1]
        out = self.values.new_zeros(self._height, width)
        return out.index_add_(0, self.index.flatten(), self.values.reshape(-1, width)).flatten()

    def joined(self, others: Sequence[Picked]) -> Picked | None:
        terms = [self, *others]
        index, values = torch.cat([term.index for term in terms], 1), torch.cat([term.values for term in terms], 1)
        return Picked(index, values, self._height)
