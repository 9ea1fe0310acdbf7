"""The exchange of rows between the ranks that share K subproblems, where a transfer is due.

A column of the equation needs the same column of all K rows, and nothing of other columns.  So each rank gets all rows
of its part of the columns, P / R of them, blends these with the whole M as one process does, and sends the rows back to
where they are trained.  That takes as much memory as the rank's own rows, the R-th part of the work, and two
exchanges of (R - 1) / R of its own rows; to have all K rows on each rank would take R - 1 times its own rows.

Where a fixed M takes from few rows, these alone are sent to those who take from them, if that is not more: once.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..ops import combine_, gram_, transfer_
from ..ranks import SubproblemRanks
from .flat import FlatParameters
from .share import Share

__all__ = ["Columns", "Exchange", "Neighbours"]

ALIGNMENT = 16  # columns: rows that kernels read begin at multiples of that


class Columns:
    """All K rows of some columns of a buffer on each rank: `gathered` brings them there, `returned` brings them back.

    Args:
        flat: the buffer.
        share: this rank's rows.
        ranks: that have the others.
    """

    def __init__(self, flat: FlatParameters, share: Share, ranks: SubproblemRanks) -> None:
        self._share, self._ranks, self._width = share, ranks, flat.width
        step = -(-flat.width // (ALIGNMENT * ranks.size)) * ALIGNMENT
        ends = [min(step * place, flat.width) for place in range(ranks.size + 1)]
        self._parts = list(pairwise(ends))
        self._cut: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def _own(self) -> tuple[int, int]:
        return self._parts[self._share.place]

    def _lengths(self) -> tuple[list[int], list[int]]:
        """The elements of this rank's rows in the columns of each rank, and of each rank's rows in its own columns."""
        first, end = self._own
        there = [len(self._share.own) * (last - begin) for begin, last in self._parts]
        return there, [size * (end - first) for size in self._share.sizes]

    def gathered(self, rows: Tensor) -> Tensor:
        """[K, columns of this rank], from [rows of this rank, P]."""
        sent, received = self._lengths()
        pieces = torch.cat([rows[:, first:end].reshape(-1) for first, end in self._parts])
        return self._ranks.scatter(pieces, sent, received).view(self._share.total, -1)

    def returned(self, columns: Tensor) -> Tensor:
        """[rows of this rank, P], from [K, columns of this rank]."""
        received, sent = self._lengths()
        pieces = self._ranks.scatter(columns.reshape(-1), sent, received).split(received)
        num_rows = len(self._share.own)
        return torch.cat([piece.view(num_rows, -1) for piece in pieces], 1)

    def chunks(self, chunks: Tensor) -> Tensor:
        """Those of chunks int64 [C, 3] that lie in this rank's columns, cut at their ends, counted from the first."""
        if id(chunks) not in self._cut:
            first, end = self._own
            own = chunks.clone()
            own[:, 1:] = own[:, 1:].clamp(first, end) - first
            self._cut[id(chunks)] = chunks, own[own[:, 2] > own[:, 1]]  # and the tensor itself, which keeps its id
        return self._cut[id(chunks)][1]

    def gram(self, columns: Tensor, flat: FlatParameters) -> Tensor:
        """float64 [S, K, K]: this rank's columns' part of ``flat.centred_gram()``."""
        num_rows, chunks = len(columns), self.chunks(flat.gram_chunks(self._share.total))
        out = columns.new_zeros((1, len(flat.parameters), num_rows, num_rows), dtype=torch.float64)
        if len(chunks) > 0:
            partials = out.new_empty((1, len(chunks), num_rows * (num_rows + 1) // 2))
            gram_(out, partials, columns.unsqueeze(0), None, chunks, centre=True)
        return out[0]


class Neighbours:
    """The rows that a rank takes from, beside its own.

    Args:
        sources: for each of the K rows those that it may take from.
        share: this rank's rows.
        ranks: that have the others.
    """

    def __init__(self, sources: Sequence[Sequence[int]], share: Share, ranks: SubproblemRanks) -> None:
        self._share, self._ranks = share, ranks
        self._wanted = [
            sorted({j for k in share.of(place) for j in sources[k]}.difference(share.of(place)))
            for place in range(ranks.size)
        ]
        self.rows = sorted({*share.own, *self._wanted[share.place]})

    @property
    def most(self) -> int:
        """The largest number of rows that any rank receives."""
        return max(map(len, self._wanted))

    def gathered(self, own: Tensor) -> Tensor:
        """[len(rows), P]: the rows of this rank, [rows of this rank, P], and those of others that it takes from."""
        share, sent, received = self._share, {}, {}
        all_rows = own.new_empty((len(self.rows), own.shape[1]))
        for other in range(self._ranks.size):
            if other == share.place:
                continue
            if there := [j - share.own.start for j in self._wanted[other] if j in share.own]:
                together = there[-1] - there[0] + 1 == len(there)
                sent[other] = own[there[0] : there[-1] + 1] if together else own[there]
            if here := [row for row, j in enumerate(self.rows) if j in share.of(other)]:
                received[other] = all_rows[here[0] : here[-1] + 1]  # rows of one rank lie side by side
        self.own(all_rows).copy_(own)
        self._ranks.swap(sent, received)
        return all_rows

    def matrix(self, mix: Tensor) -> Tensor:
        """M [..., K, K] for these rows, of which those of others stay as they are."""
        rows = torch.tensor(self.rows, dtype=torch.int64, device=mix.device)
        some = mix.index_select(-2, rows).index_select(-1, rows)
        foreign = torch.tensor([k not in self._share.own for k in self.rows], dtype=torch.bool, device=mix.device)
        eye = torch.eye(len(self.rows), dtype=mix.dtype, device=mix.device)
        return torch.where(foreign.unsqueeze(1), eye, some).contiguous()

    def own(self, rows: Tensor) -> Tensor:
        """Those of ``rows`` that are this rank's."""
        first = self.rows.index(self._share.own.start)
        return rows[first : first + len(self._share.own)]


class Exchange:
    """The ways of rows to other ranks and back.

    Args:
        share: this rank's rows.
        ranks: that have the others.
    """

    def __init__(self, share: Share, ranks: SubproblemRanks) -> None:
        self.share, self.ranks = share, ranks
        self._columns: weakref.WeakKeyDictionary[FlatParameters, Columns] = weakref.WeakKeyDictionary()
        self._known: weakref.WeakSet[FlatParameters] = weakref.WeakSet()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.share, self.ranks)

    def are_new(self, flats: Sequence[FlatParameters]) -> bool:
        """True, once, of buffers that were made since the last call."""
        new = any(flat not in self._known for flat in flats)
        self._known.update(flats)
        return new

    def columns(self, flat: FlatParameters) -> Columns:
        """The way of whole columns of a buffer."""
        if flat not in self._columns:
            self._columns[flat] = Columns(flat, self.share, self.ranks)
        return self._columns[flat]

    def neighbours(self, sources: Sequence[Sequence[int]] | None) -> Neighbours | None:
        """The way of those rows alone that somebody takes from; None: to send columns there and back is less."""
        if sources is None:
            return None
        found, ranks = Neighbours(sources, self.share, self.ranks), self.ranks.size
        return found if found.most <= 2 * max(self.share.sizes) * (ranks - 1) / ranks else None

    def blended(
        self,
        flat: FlatParameters,
        rows: Tensor,
        mix: Tensor,
        near: Neighbours | None,
        *,
        columns: Tensor | None = None,
        plain: bool = False,
    ) -> Tensor:
        """M times the rows of all ranks: the rows [rows of this rank, P] of this rank, a new tensor.

        Args:
            flat: the buffer that rows are of.
            rows: of this rank.
            mix: float64 [K, K] or [S, K, K].
            near: the way of few rows, or None.
            columns: what ``columns(flat).gathered(rows)`` gave, which is overwritten; None: nobody has asked yet.
            plain: a product of which no entry can become negative, where there are no negative numbers.
        """
        if near is not None:
            all_rows = near.gathered(rows)
            blend(all_rows, near.matrix(mix), flat.transfer_chunks, _chunks_of(flat), plain=plain)
            return near.own(all_rows)
        way = self.columns(flat)
        columns = way.gathered(rows) if columns is None else columns
        of_segments = [(segment, way.chunks(chunks)) for segment, chunks in _chunks_of(flat)]
        blend(columns, mix, way.chunks(flat.transfer_chunks), of_segments, plain=plain)
        return way.returned(columns)


def _chunks_of(flat: FlatParameters) -> list[tuple[int, Tensor]]:
    return [(segment, flat.chunks_of[segment]) for segment in flat.transferred]


def blend(rows: Tensor, mix: Tensor, chunks: Tensor, of_segments: Sequence[tuple[int, Tensor]], *, plain: bool) -> None:
    """rows <- mix rows, in place, in these chunks; ``plain`` as of `Exchange.blended`."""
    if rows.numel() == 0:
        return
    if not plain:
        transfer_(rows, mix, chunks)
        return
    old = rows.clone().unsqueeze(0).expand(len(rows), -1, -1)
    if mix.dim() == 2:
        combine_(rows, old, mix, chunks)
        return
    for segment, own in of_segments:
        combine_(rows, old, mix[segment].contiguous(), own)
