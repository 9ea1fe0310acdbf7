"""PCGrad: projecting conflicting gradients."""

from __future__ import annotations

from torch import Tensor

from ..checks import check_flag
from ..ops import solve
from .base import Weighting
from .context import Needs, WeightingContext
from .draw import meeting_orders, shared_order
from .registry import register
from .solvers import present, projected


@register("pcgrad")
class PCGrad(Weighting):
    """PCGrad, gradient surgery (Yu et al., NeurIPS 2020, arXiv 2001.06782).

    Each g_i meets the others in random order and loses its component along g_j where their product is negative (with
    the original g_j); w are the coefficients of the sum of the results. With two tasks each changed row is orthogonal
    to the other. Homogeneous.

    The sum, as in LibMTL; `Rescale(..., "mean")` gives the mean.

    Args:
        shared: one order for all rows (a shuffled list that many codes share) instead of one for each (the paper).
        visit_self: g_i meets its own original too, as in LibMTL and nash-mtl; it may act after two projections.

    Example:
        >>> gram = torch.tensor([[4.0, -1.0], [-1.0, 1.0]])
        >>> PCGrad()(gram)
        tensor([1.2500, 2.0000], dtype=torch.float64)
    """

    reads_preferences = False
    needs = Needs.GRAM | Needs.DRAWS

    def __init__(self, *, shared: bool = False, visit_self: bool = False) -> None:
        super().__init__()
        self.shared = check_flag("shared", shared)
        self.visit_self = check_flag("visit_self", visit_self)

    def _weights(self, context: WeightingContext) -> Tensor:
        assert context.gram is not None
        order = meeting_orders(context)
        if self.shared:
            order = shared_order(context)[:, None].expand_as(order).contiguous()
        if self.visit_self:
            return present(context.gram, projected(context.gram, order, visit_self=True).sum(1))
        weights = context.gram.new_empty(context.gram.shape[:2])
        solve.project_(weights, None, context.gram, order)
        return weights
