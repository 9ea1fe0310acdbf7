"""Flat parameters that are points of a simplex, whose vertices are trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..device import host_knows
from ..ops import combine_
from .flat import AT_ONCE, FlatParameters

__all__ = ["FlatVertices"]


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
        super().__init__(parameters, len(points), **options)

    def _trained_rows(self) -> int:
        return self.points.shape[1]

    def _shows_others(self) -> bool:
        return True

    def _begin(self) -> None:
        for p, views in zip(self.parameters, zip(*self._value_views, strict=True), strict=True):
            for view in views:
                view.copy_(p.data)
        self.theta.copy_(self.values[:1].expand_as(self.theta))
        self.spread()

    def at(self, weights: Tensor, vertices: Tensor | None = None) -> Tensor:
        """[N, P] of the parameters' dtype: the points with weights float64 [N, V], of theta or of a [V, P] like it."""
        source = self.theta if vertices is None else vertices
        out = torch.zeros(len(weights), self.width, dtype=source.dtype, device=self.device)
        combine_(out, source.unsqueeze(0).expand(len(weights), -1, -1), weights, self.chunks)
        return out.to(self.dtype)

    def spread(self) -> None:
        """Writes the points, after a change of the vertices or of the weights."""
        if self.values.dtype == self.theta.dtype:
            combine_(self.values, self.theta.unsqueeze(0).expand(len(self.points), -1, -1), self.points, self.chunks)
        else:
            self.values.copy_(self.at(self.points))
        self.write_back()
        self.mark_changed()

    def adopt_rounded(self, row: int) -> None:
        """Leaves changes of one point until `take_changes`, which looks at all points at once."""

    def take_changes(self) -> None:
        """Moves the vertices by what somebody has changed in the points.

        All vertices move alike, which moves every point of the simplex so; where several points were changed, by the
        mean of the changes.  By value, since what is written through ``p.data`` counts up no version.
        """
        moved = torch.zeros(self.width, dtype=self.theta.dtype, device=self.device)
        count = torch.zeros((), dtype=self.theta.dtype, device=self.device)
        at_once = max(1, AT_ONCE // max(1, self.width))
        for weights, values in zip(self.points.split(at_once), self.values.split(at_once), strict=True):
            before = self.at(weights)
            if host_knows(values) and torch.equal(before, values):
                continue
            changes = values.to(moved.dtype) - before.to(moved.dtype)
            moved += changes.sum(0)
            count += (changes != 0).any(1).sum()
        if not host_knows(count) or bool(count > 0):
            self.theta.add_(moved / count.clamp(min=1))
            self.spread()

    def detach_values(self, name: str | None, row: int) -> None:
        """Gives the parameters tensors of their own with the values of a point of this step."""
        weights = self.points if self.stacked else self.points[row : row + 1]
        self.show(self.at(weights, None if name is None else self.buffers[name]))

    def load_theta(self, segment: int, rows: Tensor, *, keep_values: bool) -> None:
        """Sets all vertices of one parameter."""
        self.rows_of(self.theta, segment).copy_(rows)
        self.spread()
