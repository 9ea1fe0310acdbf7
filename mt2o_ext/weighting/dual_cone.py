"""DualProj and UPGrad: projections on the directions that conflict with no task."""

from __future__ import annotations

import torch
from torch import Tensor

from ..device import capturing
from .base import Weighting
from .context import Needs, WeightingContext
from .registry import register
from .solvers import dual_cone


@register("dualproj")
class DualProj(Weighting):
    """DualProj, the projection of gradient episodic memory (Lopez-Paz and Ranzato, NeurIPS 2017, arXiv 1706.08840).

    The direction nearest to J'u among those with <g_t, d> >= 0 for all t: w = argmin v'Qv over v >= u; w = u where J'u
    conflicts with no task. Homogeneous.

    Example:
        >>> gram = torch.tensor([[4.0, -1.0], [-1.0, 1.0]])
        >>> DualProj()(gram)
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """

    reads_preferences = True
    needs = Needs.GRAM

    def _weights(self, context: WeightingContext) -> Tensor:
        assert context.gram is not None
        return dual_cone(context.gram, context.preferences[:, None], context.gram_rtol())[:, 0]


@register("upgrad")
class UPGrad(Weighting):
    """UPGrad, unconflicting projections (Quinton and Rey, arXiv 2406.16232).

    Each u_t g_t is projected on the directions that conflict with no task, and the results are added: w = sum over t of
    argmin v'Qv over v >= u_t e_t. The direction never conflicts, (Qw)_t >= 0, and is linear in positive scalings of the
    rows; with two tasks it is half of `PCGrad`. Homogeneous.

    Example:
        >>> gram = torch.tensor([[4.0, -1.0], [-1.0, 1.0]])
        >>> UPGrad()(gram)
        tensor([0.6250, 1.0000], dtype=torch.float64)
    """

    reads_preferences = True
    needs = Needs.GRAM
    _known: tuple[Tensor, int, Tensor] | None = None  # preferences, their version, and what is made of them

    def _weights(self, context: WeightingContext) -> Tensor:
        assert context.gram is not None
        return dual_cone(context.gram, self._corners(context.preferences), context.gram_rtol()).sum(1)

    def _corners(self, preferences: Tensor) -> Tensor:
        """[K, T, T], u_t e_t for each task; made anew for other preferences only."""
        known = self._known
        if torch.compiler.is_compiling() or preferences.is_inference() or capturing(preferences.device):
            return preferences.diag_embed()
        if known is None or known[0] is not preferences or known[1] != preferences._version:
            known = self._known = preferences, preferences._version, preferences.diag_embed()
        return known[2]
