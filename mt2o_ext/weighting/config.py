"""ConFIG: equal cosines with all gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_real
from .base import Weighting
from .context import Needs, WeightingContext
from .registry import register
from .solvers import inverse, pseudo_inverse_times, row_norms, scaled, squared_norm, times


@register("config")
class ConFIG(Weighting):
    """Conflict-free inverse gradients (Liu, Chu and Thuerey, ICLR 2025, arXiv 2408.11104).

    With the cosines C and s = |g|: y = C^+ u, w = (y / s) (s'Cy) / (y'Cy): the cosines of the direction with the
    gradients are in proportion to the preferences u (all equal without any), its length is the sum of the projections
    of the gradients on it. Parallel to `IMTLG` for equal preferences. Homogeneous; the direction does not depend on the
    lengths of the rows.

    With dependent gradients there may be no such direction: then the cosines are the nearest in least squares (a task
    may be in conflict), and all weights are 0 where these cosines are zero to the accuracy of the gradients, as two
    opposite gradients have them.

    Args:
        rtol: what counts as zero, see `CAGrad`; eigenvalues of C count above it.

    Example:
        >>> gram = torch.tensor([[4.0, -1.0], [-1.0, 1.0]])
        >>> ConFIG()(gram)
        tensor([0.7500, 1.5000], dtype=torch.float64)
    """

    reads_preferences = True
    undoes_factors = True
    needs = Needs.GRAM

    def __init__(self, *, rtol: float | None = None) -> None:
        super().__init__()
        self.rtol = None if rtol is None else check_real("rtol", rtol)

    def _weights(self, context: WeightingContext) -> Tensor:
        assert context.gram is not None
        return conflict_free(context.gram, context.preferences, context.rtol(self.rtol))


def conflict_free(gram: Tensor, preferences: Tensor, rtol: float) -> Tensor:
    """ConFIG's weights [K, T]."""
    norms = row_norms(gram)
    by = inverse(norms)
    cosines = scaled(gram, by)
    y = cosine_solution(cosines, preferences * (by > 0), rtol)
    projections = (norms * times(cosines, y)).sum(-1, keepdim=True)
    return by * y * projections * inverse(squared_norm(cosines, y))


def cosine_solution(cosines: Tensor, wanted: Tensor, rtol: float) -> Tensor:
    """y = C^+ u: rows of length one combine to a direction with these products; 0 where it has none but rounding."""
    y = pseudo_inverse_times(cosines, wanted, rtol)
    reached = times(cosines, y).norm(dim=-1, keepdim=True)
    return torch.where(reached > rtol * wanted.norm(dim=-1, keepdim=True), y, 0.0)
