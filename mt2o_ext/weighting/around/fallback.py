"""Another weighting where the first has no answer."""

from __future__ import annotations

import torch
from torch import Tensor

from ..base import Weighting
from ..context import Needs, WeightingContext
from ..registry import register, register_around


@register_around("fallback")
class Fallback(Weighting):
    """The weights of ``first``; those of ``second`` where the first are all 0 (stationary) or not finite.

    Both are asked in each step. A subproblem skips its step only where ``second`` has no answer either. Raises
    ValueError where one answers per segment and the other does not.

    Example:
        >>> Fallback(CAGrad(), "ls")(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))  # opposite gradients
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """

    def __init__(self, first: Weighting | str, second: Weighting | str) -> None:
        super().__init__()
        self.first = register.make(first)
        self.second = register.make(second)
        one, other = self.first, self.second
        if one.per_segment != other.per_segment:
            raise ValueError(
                "expected two weightings of the same kind, got one per segment and one of the whole model: put "
                "PerSegment around both or none"
            )
        self.needs = one.needs | other.needs
        self.degree = one.degree if one.degree == other.degree else None
        self.per_segment = one.per_segment

    def needs_at(self, step: int) -> Needs:
        return self.first.needs_at(step) | self.second.needs_at(step)

    def _parts(self) -> dict[str, Weighting]:
        return {"first": self.first, "second": self.second}

    def _weights(self, context: WeightingContext) -> Tensor:
        first, second = self.first.weights(context), self.second.weights(context)
        usable = first.isfinite().flatten(1).all(1) & (first != 0).flatten(1).any(1)
        return torch.where(usable.view(-1, *[1] * (first.ndim - 1)), first, second)
