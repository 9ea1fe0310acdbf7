"""The length of the update: where published implementations of one method differ most."""

from __future__ import annotations

import torch
from torch import Tensor

from ...checks import check_choice, check_positive
from ..base import Weighting
from ..context import Needs, WeightingContext
from ..registry import register_around
from ..solvers import clipped
from .base import Combinator


@register_around("rescale")
class Rescale(Combinator):
    """The weights of ``inner`` times a factor.

    Args:
        scale: "sum": as they are; "mean": divided by T (PCGrad as a mean); "simplex": divided by |sum w| (0 where the
            sum is zero to the accuracy of the gradients); "T": times T (MGDA in nash-mtl; the authors' FairGrad, PIVRG
            and SDMGrad).
        max_norm: then the direction is shortened to this length if it is longer. Free of the scale of the losses only
            where the inner update has degree 0; published codes use 1 for Nash-MTL, FairGrad, PIVRG and SDMGrad.

    Example:
        >>> gram = torch.tensor([[4.0, -1.0], [-1.0, 1.0]])
        >>> Rescale(PCGrad(), "mean")(gram)
        tensor([0.6250, 1.0000], dtype=torch.float64)
    """

    def __init__(self, inner: Weighting | str, scale: str = "sum", *, max_norm: float | None = None) -> None:
        super().__init__(inner)
        self.scale = check_choice("scale", scale, ("sum", "mean", "simplex", "T"))
        self.max_norm = None if max_norm is None else check_positive("max_norm", max_norm)
        if max_norm is not None:
            self.needs |= Needs.SEGMENTS if self.per_segment else Needs.GRAM
            self.degree = self.degree if self.degree == 0 else None

    def needs_at(self, step: int) -> Needs:
        own = self.needs & (Needs.SEGMENTS | Needs.GRAM) if self.max_norm is not None else Needs.NOTHING
        return self.inner.needs_at(step) | own

    def _weights(self, context: WeightingContext) -> Tensor:
        weights = self.inner.weights(context)
        tasks = weights.shape[-1]
        if self.scale == "mean":
            weights = weights / tasks
        elif self.scale == "T":
            weights = weights * tasks
        elif self.scale == "simplex":
            total = weights.sum(-1, keepdim=True).abs()
            cancels = total <= context.rtol() * weights.abs().sum(-1, keepdim=True)  # not true of refused weights, NaN
            weights = torch.where(cancels, 0.0, weights / torch.where(cancels, 1.0, total))
        if self.max_norm is None:
            return weights
        gram = context.segments if self.per_segment else context.gram
        assert gram is not None
        return clipped(weights, gram, self.max_norm)
