"""Another weighting where the first has no answer."""

from __future__ import annotations

import torch
from torch import Tensor

from ..base import Weighting
from ..context import Needs, WeightingContext
from .base import checked_part


class Fallback(Weighting):
    """The weights of ``first``; those of ``second`` where the first are all 0 (stationary) or not finite.

    Both are asked in each step. A subproblem skips its step only where ``second`` has no answer either. Raises
    ValueError where one answers per segment and the other does not.
    """

    def __init__(self, first: Weighting, second: Weighting) -> None:
        super().__init__()
        self.first = checked_part(first)
        self.second = checked_part(second)
        if first.per_segment != second.per_segment:
            raise ValueError("expected two weightings of the same kind, got one per segment and one of the whole model")
        self.needs = first.needs | second.needs
        self.degree = first.degree if first.degree == second.degree else None
        self.per_segment = first.per_segment

    def needs_at(self, step: int) -> Needs:
        return self.first.needs_at(step) | self.second.needs_at(step)

    def _parts(self) -> dict[str, Weighting]:
        return {"first": self.first, "second": self.second}

    def _weights(self, context: WeightingContext) -> Tensor:
        first, second = self.first.weights(context), self.second.weights(context)
        usable = first.isfinite().flatten(1).all(1) & (first != 0).flatten(1).any(1)
        return torch.where(usable.view(-1, *[1] * (first.ndim - 1)), first, second)
