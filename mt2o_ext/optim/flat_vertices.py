"""Flat parameters that are points of a simplex, whose vertices are trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..device import has_addresses, host_knows
from ..ops import can_read_addresses, combine_
from ..sharding import local_of
from .flat import FlatParameters

__all__ = ["FlatVertices"]

AT_ONCE = 2**20  # elements of points that are compared at once: they stay in the cache


class FlatVertices(FlatParameters):
    """Parameters that show points of the simplex whose vertices are the trained rows.

    Args:
        parameters, options: as of `FlatParameters`.
        points: float64 [K, V], the weights of the vertices in each point; shared, and written to by its owner.

    Attributes:
        theta: [V, P], the vertices.
        values: [K, P] of the parameters' dtype, the points.
    """

    def __init__(self, parameters: Sequence[Tensor], points: Tensor, **options: Any) -> None:
        self.points = points
        self._scratch: Tensor | None = None  # for the points as they were written
        self._spread_version = -1  # of theta, when the points were written
        self._table: Tensor | None = None
        super().__init__(parameters, len(points), **options)

    def _trained_rows(self) -> int:
        return self.points.shape[1]

    def _shows_others(self) -> bool:
        return True

    def _begin(self) -> None:
        for p, views in zip(self.parameters, zip(*self._value_views, strict=True), strict=True):
            for view in views:
                view.copy_(local_of(p.data))
        self.theta.copy_(self.values[:1].expand_as(self.theta))
        self._table = self._rows_table()
        self.spread()

    def at(self, weights: Tensor, vertices: Tensor | None = None) -> Tensor:
        """[N, P] of the parameters' dtype: the points with weights float64 [N, V], of theta or of a [V, P] like it."""
        source = self.theta if vertices is None else vertices
        out = torch.zeros(len(weights), self.width, dtype=source.dtype, device=self.device)
        return self._blend_into(out, weights, source).to(self.dtype)

    def _blend_into(self, out: Tensor, weights: Tensor, vertices: Tensor) -> Tensor:
        combine_(out, vertices.unsqueeze(0).expand(len(weights), -1, -1), weights, self.chunks)
        return out

    def spread(self) -> None:
        """Writes the points, after a change of the vertices or of the weights."""
        if self.values.dtype == self.theta.dtype:
            self._blend_into(self.values, self.points, self.theta)
        else:
            for rows, scratch in self._blocks():
                self.values[rows].copy_(self._blend_into(scratch, self.points[rows], self.theta))
        if not torch.compiler.is_compiling():
            self._spread_version = self.theta._version
        self.write_back()
        self.mark_changed()

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """A few points at once, and scratch [N, P] like theta for them."""
        num_points = len(self.points)
        at_once = min(num_points, max(1, AT_ONCE // max(1, self.width)))
        if self._scratch is None:
            self._scratch = self._zeros(at_once, self.theta.dtype)
        for first in range(0, num_points, at_once):
            last = min(first + at_once, num_points)
            yield slice(first, last), self._scratch[: last - first]

    def adopt_rounded(self, row: int) -> None:
        """Leaves changes of one point until `take_changes`, which looks at all points at once."""

    @torch.no_grad()
    def take_changes(self) -> None:
        """Moves the vertices by what somebody has changed in the points.

        All vertices move alike, which moves every point of the simplex so; where several points were changed, by the
        mean of the changes.  By value, since what is written through ``p.data`` counts up no version.  Where somebody
        has written to the vertices themselves, in the state, the points follow them.
        """
        if not torch.compiler.is_compiling() and self.theta._version != self._spread_version:
            self.spread()
            return
        found: list[tuple[Tensor, Tensor]] = []  # sums of changes, and how many points have some
        for rows, scratch in self._blocks():
            if host_knows(self.values) and self._is_unchanged(rows, scratch):
                continue
            changes = self._changes(rows, scratch)
            if changes.numel() > 0:
                found.append((changes.sum(0), changes.any(1).sum()))
        if found:
            sums, numbers = found[0]
            if len(found) > 1:
                sums, numbers = (torch.stack(each).sum(0) for each in zip(*found, strict=True))
            self.theta.add_(sums / numbers.clamp(min=1))
            self.spread()

    def _is_unchanged(self, rows: slice, scratch: Tensor) -> bool:
        """True if these points are what `spread` wrote there."""
        before = self._blend_into(scratch, self.points[rows], self.theta)
        return torch.equal(before.to(self.dtype), self.values[rows])

    def _changes(self, rows: slice, out: Tensor) -> Tensor:
        """[N, P]: these points less what was written there; exactly zero where nobody has changed them."""
        weights, values = self.points[rows], self.values[rows]
        if self._table is None or torch.compiler.is_compiling():
            before = self._blend_into(out, weights, self.theta)
            return values.to(out.dtype) - before.to(values.dtype).to(out.dtype)
        # One pass: minus the products that `spread` summed up, in its order, and then the value.
        signed = torch.nn.functional.pad(-weights, (0, 1), value=1.0)
        like = self.theta[:1].unsqueeze(0).expand(len(values), signed.shape[1], -1)
        combine_(out, like, signed, self.chunks, addresses=self._table[rows])
        return out

    def _rows_table(self) -> Tensor | None:
        """int64 [K, V + 1, S]: where the vertices lie, and behind them each point; None: kernels cannot follow it."""
        if self.values.dtype != self.theta.dtype or not can_read_addresses(self.device):
            return None
        if not has_addresses(self.device) or self.width == 0:
            return None
        vertices = [row.data_ptr() for row in self.theta]
        places = [[*vertices, row.data_ptr()] for row in self.values]
        table = torch.tensor(places, dtype=torch.int64).unsqueeze(2).repeat(1, 1, len(self.parameters))
        return table.to(self.device)

    def detach_values(self, name: str | None, row: int) -> None:
        """Gives the parameters tensors of their own with the values of a point of this step."""
        weights = self.points if self.stacked else self.points[row : row + 1]
        self.show(self.at(weights, None if name is None else self.buffers[name]))

    def load_theta(self, segment: int, rows: Tensor, *, keep_values: bool) -> None:
        """Sets all vertices of one parameter; the points follow in `rows_loaded`."""
        self.rows_of(self.theta, segment).copy_(rows)

    def rows_loaded(self) -> None:
        """Writes the points anew."""
        self.spread()
