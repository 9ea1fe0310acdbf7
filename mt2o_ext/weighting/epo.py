"""EPO: exact Pareto optimal search."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_flag, check_positive
from ..loss_domain import LossDomain
from ..ops import solve
from .base import Weighting
from .context import Needs, WeightingContext
from .registry import register
from .solvers import inverse


@register("epo")
class EPO(Weighting):
    """Exact Pareto optimal search (Mahapatra and Rajan, ICML 2020).

    Brings the losses to the ray where u_t l_t is the same for all tasks, as the Tchebycheff scalarization does (the
    preferences u are the paper's r, the inverse ray). With h = u l / sum(u l) and mu = sum h log(T h): while
    mu > tolerance a linear program over the simplex lowers mu without raising the largest u l (balance), else it lowers
    all losses (descent, Qw >= 0); see :func:`mt2o_ext.ops.solve.descent_`. The sum is 1. Homogeneous.

    Losses that are all 0 are on the ray: descent.

    Args:
        relax: descent may raise mu.

    Example:
        >>> gram = torch.tensor([[4.0, -1.0], [-1.0, 1.0]])
        >>> EPO()(gram, losses=torch.tensor([2.0, 0.5]))
        tensor([0.8466, 0.1534], dtype=torch.float64)
    """

    reads_preferences = True
    undoes_factors = True
    needs = Needs.GRAM | Needs.LOSSES
    loss_domain = LossDomain.NON_NEGATIVE

    def __init__(self, *, tolerance: float = 1e-4, relax: bool = False) -> None:
        super().__init__()
        self.tolerance = check_positive("tolerance", tolerance)
        self.relax = check_flag("relax", relax)

    def _judged(self, context: WeightingContext, losses: Tensor) -> Tensor:
        return context.preferences * losses  # a task that nobody prefers may have any loss

    def _weights(self, context: WeightingContext) -> Tensor:
        assert context.gram is not None and context.losses is not None
        weights = torch.empty_like(context.losses)
        any_left = (context.preferences * context.losses > 0).any(-1, keepdim=True)
        losses = torch.where(any_left, context.losses, inverse(context.preferences))
        solve.descent_(weights, context.gram, losses, context.preferences, tolerance=self.tolerance, relax=self.relax)
        return weights
