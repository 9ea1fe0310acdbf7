"""Aligned-MTL: gradients with a condition number of one."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_choice, check_real
from .base import Weighting
from .context import Needs, WeightingContext
from .registry import register
from .solvers import spectrum, times


@register("aligned-mtl")
class AlignedMTL(Weighting):
    """Aligned-MTL (Senushkin, Patakin, Kuznetsov and Konushin, CVPR 2023, arXiv 2305.19000).

    w = B u, B = sqrt(sg) V Lam^(-1/2) V' over the numerical rank of Q = V Lam V': BQB = sg I there. Homogeneous.

    u is the preferences, 1 / T without any (TorchJD); the authors and LibMTL take 1: `Rescale(..., "T")`. "min" jumps
    where the numerical rank changes.

    Args:
        scale: sg is the least eigenvalue of the rank ("min"), their median (the lower of two) or their mean ("rmse" in
            TorchJD).
        rtol: what counts as zero, see `CAGrad`: an eigenvalue |J'e|^2 counts above rtol sum_t (e_t |g_t|)^2, so that
            short gradients count as long ones do.

    Example:
        >>> gram = torch.tensor([[4.0, -1.0], [-1.0, 1.0]])
        >>> AlignedMTL()(gram)
        tensor([0.3092, 0.5578], dtype=torch.float64)
    """

    reads_preferences = True
    needs = Needs.GRAM

    def __init__(self, *, scale: str = "min", rtol: float | None = None) -> None:
        super().__init__()
        self.scale = check_choice("scale", scale, ("min", "median", "mean"))
        self.rtol = None if rtol is None else check_real("rtol", rtol)

    def _weights(self, context: WeightingContext) -> Tensor:
        assert context.gram is not None
        values, vectors, kept = spectrum(context.gram, context.rtol(self.rtol))
        values = torch.where(kept, values, 0.0)
        inner = times(vectors.mT, context.preferences)
        roots = torch.where(kept, self._scale(values, kept) / torch.where(kept, values, 1.0), 0.0).sqrt()
        return torch.where(context.gram.diagonal(dim1=-2, dim2=-1) == 0, 0.0, times(vectors, roots * inner))

    def _scale(self, values: Tensor, kept: Tensor) -> Tensor:
        """sg [K, 1] of ascending eigenvalues, those that do not count being 0."""
        rank = kept.sum(-1, keepdim=True)
        if self.scale == "mean":
            return values.sum(-1, keepdim=True) / rank.clamp(min=1)
        place = values.shape[-1] - rank
        if self.scale == "median":
            place = place + torch.div((rank - 1).clamp(min=0), 2, rounding_mode="floor")
        return values.gather(-1, place.clamp(max=values.shape[-1] - 1))
