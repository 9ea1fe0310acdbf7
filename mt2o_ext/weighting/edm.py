"""EDM: equal descent in all tasks, from gradients of length one."""

from __future__ import annotations

from torch import Tensor

from ..checks import check_flag
from .base import Weighting
from .context import Needs, WeightingContext
from .registry import register
from .solvers import inverse, minimum_norm, row_norms, scaled, strictly


@register("edm")
class EDM(Weighting):
    """Equiangular direction method (Katrutsa, Merkulov, Tursynbek and Oseledets, 2020, arXiv 2007.06937).

    lam = the weights of `MGDA` on g_t / |g_t|; w = (lam / s) / sum(lam / s), s = |g|: the angles with all gradients of
    the support are equal. The sum is 1. Homogeneous.

    Args:
        strict: a row that is zero makes all weights 0, as the formula says; else such a row leaves the problem.

    Example:
        >>> gram = torch.tensor([[4.0, -1.0], [-1.0, 1.0]])
        >>> EDM()(gram)
        tensor([0.3333, 0.6667], dtype=torch.float64)
    """

    reads_preferences = False
    undoes_factors = True
    needs = Needs.GRAM

    def __init__(self, *, strict: bool = False) -> None:
        super().__init__()
        self.strict = check_flag("strict", strict)

    def _weights(self, context: WeightingContext) -> Tensor:
        assert context.gram is not None
        return strictly(equiangular(context.gram), context.gram, self.strict)


def equiangular(gram: Tensor) -> Tensor:
    """EDM's weights [K, T]; 0 where all rows are zero."""
    by = inverse(row_norms(gram))
    weights = minimum_norm(scaled(gram, by)) * by
    return weights * inverse(weights.sum(-1, keepdim=True))
