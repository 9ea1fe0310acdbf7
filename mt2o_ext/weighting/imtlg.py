"""IMTL-G: equal projections on all gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_real
from .base import Weighting
from .config import cosine_solution
from .context import Needs, WeightingContext
from .registry import register
from .solvers import inverse, row_norms, scaled


@register("imtl-g")
class IMTLG(Weighting):
    """IMTL-G, the gradient half of impartial multi-task learning (Liu et al., ICLR 2021).

    v = Q^+ s, s = |g|; w = v / sum v: the direction has the same projection (Qw)_t / s_t on every gradient. The sum
    is 1. Homogeneous; its direction does not depend on the lengths of the rows.

    All weights are 0 where the sum of v is not positive (above rtol sum |v|): the weights would then have equal
    projections that are negative, uphill for all tasks. They are 0, too, where the projections are zero to the accuracy
    of the gradients, as for two opposite ones. `ConFIG` is the robust form. Solved on the cosines C as v = (C^+ 1) / s,
    so that the rank does not depend on the lengths of the rows; the same where Q is regular.

    Args:
        rtol: what counts as zero, see `CAGrad`.

    Example:
        >>> gram = torch.tensor([[4.0, -1.0], [-1.0, 1.0]])
        >>> IMTLG()(gram)
        tensor([0.3333, 0.6667], dtype=torch.float64)
    """

    reads_preferences = False
    undoes_factors = True
    needs = Needs.GRAM

    def __init__(self, *, rtol: float | None = None) -> None:
        super().__init__()
        self.rtol = None if rtol is None else check_real("rtol", rtol)

    def _weights(self, context: WeightingContext) -> Tensor:
        assert context.gram is not None
        by = inverse(row_norms(context.gram))
        rtol = context.rtol(self.rtol)
        v = by * cosine_solution(scaled(context.gram, by), (by > 0).double(), rtol)
        total = v.sum(-1, keepdim=True)
        usable = total > rtol * v.abs().sum(-1, keepdim=True)
        return torch.where(usable, v / torch.where(usable, total, 1.0), 0.0)
