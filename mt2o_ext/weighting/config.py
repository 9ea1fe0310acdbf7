"""ConFIG: equal cosines with all gradients."""

from __future__ import annotations

from torch import Tensor

from mt2o_ext.weighting.base import Weighting
from mt2o_ext.weighting.context import Needs, WeightingContext
from mt2o_ext.weighting.settings import check_real
from mt2o_ext.weighting.solvers import inverse, pseudo_inverse_times, row_norms, scaled, squared_norm, times


class ConFIG(Weighting):
    """Conflict-free inverse gradients (Liu, Chu and Thuerey, ICLR 2025, arXiv 2408.11104).

    With the cosines C and s = |g|: y = C^+ u, w = (y / s) (s'Cy) / (y'Cy): the cosines of the direction with the
    gradients are in proportion to the preferences u (all equal without any), its length is the sum of the projections
    of the gradients on it. Parallel to `IMTLG` for equal preferences. Homogeneous; the direction does not depend on the
    lengths of the rows.

    rtol: eigenvalues of C count above rtol of the largest one; T 2^-23 if None, the accuracy of a Gram matrix of
        float32 rows.
    """

    needs = Needs.GRAM

    def __init__(self, *, rtol: float | None = None) -> None:
        super().__init__()
        self.rtol = None if rtol is None else check_real("rtol", rtol)

    def _weights(self, context: WeightingContext) -> Tensor:
        assert context.gram is not None
        return conflict_free(context.gram, context.preferences, self.rtol)


def conflict_free(gram: Tensor, preferences: Tensor, rtol: float | None) -> Tensor:
    """ConFIG's weights [K, T]."""
    norms = row_norms(gram)
    by = inverse(norms)
    cosines = scaled(gram, by)
    y = pseudo_inverse_times(cosines, preferences * (by > 0), rtol)
    projections = (norms * times(cosines, y)).sum(-1, keepdim=True)
    return by * y * projections * inverse(squared_norm(cosines, y))
