"""IMTL-G: equal projections on all gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from mt2o_ext.weighting.base import Weighting
from mt2o_ext.weighting.context import Needs, WeightingContext
from mt2o_ext.weighting.settings import check_real
from mt2o_ext.weighting.solvers import inverse, pseudo_inverse_times, row_norms, scaled


class IMTLG(Weighting):
    """IMTL-G, the gradient half of impartial multi-task learning (Liu et al., ICLR 2021).

    v = Q^+ s, s = |g|; w = v / sum v: the direction has the same projection (Qw)_t / s_t on every gradient. The sum
    is 1. Homogeneous; its direction does not depend on the lengths of the rows.

    rtol: which eigenvalues count, see `ConFIG`.

    Dividing by a signed sum can flip the direction; all weights are 0 where |sum v| <= 1e-12 sum |v|. `ConFIG` is the
    robust form. Solved on the cosines C as v = (C^+ 1) / s, so that the rank does not depend on the lengths of the
    rows; the same where Q is regular.
    """

    needs = Needs.GRAM

    def __init__(self, *, rtol: float | None = None) -> None:
        super().__init__()
        self.rtol = None if rtol is None else check_real("rtol", rtol)

    def _weights(self, context: WeightingContext) -> Tensor:
        assert context.gram is not None
        by = inverse(row_norms(context.gram))
        v = by * pseudo_inverse_times(scaled(context.gram, by), (by > 0).double(), self.rtol)
        total = v.sum(-1, keepdim=True)
        usable = total.abs() > 1e-12 * v.abs().sum(-1, keepdim=True)
        return torch.where(usable, v / torch.where(usable, total, 1.0), 0.0)
