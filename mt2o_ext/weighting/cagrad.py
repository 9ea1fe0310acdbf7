"""CAGrad: conflict-averse gradient descent."""

from __future__ import annotations

from torch import Tensor

from ..checks import check_flag, check_real
from .base import Weighting
from .context import Needs, WeightingContext
from .registry import register
from .solvers import conflict_averse, strictly


@register("cagrad")
class CAGrad(Weighting):
    """Conflict-averse gradient descent (Liu, Liu, Jin, Stone and Liu, NeurIPS 2021, arXiv 2110.14048).

    The direction d in the ball |d - g0| <= c |g0| around g0 = J'u with the largest min_t <g_t, d>:
    w = u + (k / |g_v|) v, k = c |g0|, where v minimises <g0, g_v> + k |g_v| over the simplex. All weights are 0 where
    the gradients are stationary: the shortest vector g_v of their convex hull is zero to the accuracy of the gradients,
    |g_v|^2 <= rtol sum_t (v_t |g_t|)^2. Homogeneous.

    Args:
        c: 0.5 in LibMTL, 0.4 in the authors' experiments.
        rescale: divides w by 1 (0; TorchJD), 1 + c^2 (1; LibMTL's default) or 1 + c (2).
        rtol: T times the accuracy of the Gram matrix if None: 2^-23 for float32 gradients, 2^-52 for float64, 2^-14 for
            bfloat16.
        strict: a row that is zero makes all weights 0, as the formula says; else such a row leaves the problem.

    Example:
        >>> gram = torch.tensor([[4.0, -1.0], [-1.0, 1.0]])
        >>> CAGrad(c=0.4)(gram)
        tensor([0.4310, 0.7297], dtype=torch.float64)
    """

    reads_preferences = True
    needs = Needs.GRAM

    def __init__(self, c: float = 0.5, *, rescale: int = 1, rtol: float | None = None, strict: bool = False) -> None:
        super().__init__()
        self.c = check_real("c", c)
        if rescale not in (0, 1, 2):
            raise ValueError(f"expected rescale as 0 (none), 1 (by 1 + c^2) or 2 (by 1 + c), got {rescale!r}")
        self.rescale = rescale
        self.divisor = (1.0, 1 + self.c**2, 1 + self.c)[rescale]
        self.rtol = None if rtol is None else check_real("rtol", rtol)
        self.strict = check_flag("strict", strict)

    def _weights(self, context: WeightingContext) -> Tensor:
        assert context.gram is not None
        weights = conflict_averse(context.gram, context.preferences, self.c, context.rtol(self.rtol))
        return strictly(weights, context.gram, self.strict)
