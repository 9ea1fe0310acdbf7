"""GLS: the geometric mean of the losses."""

from __future__ import annotations

from torch import Tensor

from ..loss_domain import LossDomain
from .base import Weighting
from .context import Needs, WeightingContext
from .registry import register


@register("gls")
class GLS(Weighting):
    """Geometric loss strategy (Chennupati et al., CVPR workshops 2019, arXiv 1904.08492).

    w_t = (prod l)^(1/T) / (T l_t), the gradient of the geometric mean of the losses, through logarithms; w l is the
    same for all tasks. Homogeneous.

    LibMTL minimises the same loss but reports other numbers as its weights.

    Example:
        >>> GLS()(losses=torch.tensor([2.0, 0.5]))
        tensor([0.2500, 1.0000], dtype=torch.float64)
    """

    reads_preferences = False
    needs = Needs.LOSSES
    loss_domain = LossDomain.POSITIVE

    def _weights(self, context: WeightingContext) -> Tensor:
        assert context.losses is not None
        logs = context.losses.log()
        return (logs.mean(-1, keepdim=True) - logs).exp() / logs.shape[1]
