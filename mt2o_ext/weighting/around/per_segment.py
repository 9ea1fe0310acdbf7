"""A weighting for each parameter tensor on its own."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..base import Weighting
from ..context import Needs, WeightingContext
from ..registry import register_around
from .base import Combinator


@register_around("per-segment")
class PerSegment(Combinator):
    """``inner`` on the Gram matrix of each segment (parameter tensor) alone: weights [K, S, T].

    As the paper of `GradVac` does, and "per layer" variants of `PCGrad`. The inner weighting is bound to K S
    subproblems.

    Raises:
        ValueError: for one that changes gradients, learns from feedback, wants two mini-batches, or compares points.

    Example:
        >>> segments = torch.stack([torch.eye(2), torch.tensor([[4.0, -1.0], [-1.0, 1.0]])])
        >>> PerSegment(UPGrad())(segments=segments)
        tensor([[0.5000, 0.5000],
                [0.6250, 1.0000]], dtype=torch.float64)
    """

    def __init__(self, inner: Weighting | str) -> None:
        super().__init__(inner)
        unfit = self.inner.needs & (Needs.ROWS | Needs.FEEDBACK | Needs.CROSS | Needs.SEGMENTS | Needs.POINTS)
        if unfit or self.inner.per_segment:
            name = type(self.inner).__name__
            raise ValueError(
                f"expected a weighting of one Gram matrix, got {name}, which needs {unfit}: take another one"
            )
        self.needs = (self.inner.needs & ~(Needs.GRAM | Needs.DIAGONAL)) | Needs.SEGMENTS
        self.per_segment = True

    def bind(self, num_rows: int, num_tasks: int, num_segments: int, device: torch.device | str) -> None:
        super().bind(num_rows, num_tasks, num_segments, device)
        self.inner.bind(num_rows * num_segments, num_tasks, 1, device)

    def needs_at(self, step: int) -> Needs:
        due = self.inner.needs_at(step)
        own = Needs.SEGMENTS if due & (Needs.GRAM | Needs.DIAGONAL) else Needs.NOTHING
        return (due & ~(Needs.GRAM | Needs.DIAGONAL)) | own

    def _weights(self, context: WeightingContext) -> Tensor:
        assert self._shape is not None
        rows, tasks, count = self._shape

        def repeated(table: Tensor | None) -> Tensor | None:
            return None if table is None else table.repeat_interleave(count, 0)

        segments = context.segments
        inner = replace(
            context,
            preferences=context.preferences.repeat_interleave(count, 0),
            losses=repeated(context.losses),
            gram=None if segments is None else segments.reshape(rows * count, tasks, tasks),
            segments=None,
            cross=None,
            finite=repeated(context.finite),
            largest=repeated(context.largest),
        )
        return self.inner.weights(inner).view(rows, count, tasks)
