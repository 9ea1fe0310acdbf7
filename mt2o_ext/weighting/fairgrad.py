"""FairGrad: alpha-fair gradients."""

from __future__ import annotations

from torch import Tensor

from ..checks import check_real
from .base import Weighting
from .context import Needs, WeightingContext
from .registry import register
from .solvers import power_barrier


@register("fairgrad")
class FairGrad(Weighting):
    """Fair resource allocation (Ban and Ji, ICML 2024, arXiv 2402.15638).

    w > 0 with w_t = b_t (Qw)_t^(-alpha), b = T u (1 without preferences). alpha = 0 is linear scalarization, 1 Nash's
    bargaining, infinity max-min fairness. Degree (1 - alpha) / (1 + alpha). All weights are 0 where positive
    combinations of the gradients cancel.

    The authors' code multiplies w by T and shortens the direction to length 1: `Rescale(FairGrad(), "T", max_norm=1)`.

    Example:
        >>> gram = torch.tensor([[4.0, -1.0], [-1.0, 1.0]])
        >>> FairGrad(alpha=2.0)(gram)
        tensor([0.6775, 1.4953], dtype=torch.float64)
    """

    reads_preferences = True
    undoes_factors = True

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        self.alpha = check_real("alpha", alpha)
        self.degree = (1 - alpha) / (1 + alpha)
        self.needs = Needs.GRAM if alpha > 0 else Needs.NOTHING

    def _weights(self, context: WeightingContext) -> Tensor:
        target = context.preferences.shape[1] * context.preferences
        if self.alpha == 0:
            return target
        assert context.gram is not None
        return power_barrier(context.gram, target, 1 / self.alpha, context.rtol())
