"""MGDA: the vector of least norm in the convex hull of the gradients."""

from __future__ import annotations

from torch import Tensor

from ..checks import check_choice, check_flag
from ..loss_domain import LossDomain
from .base import Weighting
from .context import Needs, WeightingContext
from .registry import register
from .solvers import inverse, minimum_norm, row_norms, scaled, strictly


@register("mgda")
class MGDA(Weighting):
    """Multiple gradient descent (Désidéri 2012; Sener and Koltun, NeurIPS 2018, arXiv 1810.04650).

    w = argmin over the simplex of w'Qw: (Qw)_t >= w'Qw, equal on the support. The sum is 1. Homogeneous. Exact, also
    for rows of very different lengths; the clamps to [.001, .999] of published line searches are left out.

    MGDA-UB is this weighting on the gradients of a shared representation, which the optimizer collects.

    Args:
        normaliser: alpha = argmin on the rows g_t / n_t, with n = 1 (None), |g| ("l2"), l ("loss") or l |g| ("loss+");
            the last two need positive losses.
        apply_on: "raw": w = alpha, on the gradients themselves (nash-mtl); "normalised": w = alpha / n (LibMTL), whose
            update has degree 0 (-1 for "loss+").
        strict: a row that is zero makes all weights 0, as the formula says; else such a row leaves the problem.

    Example:
        >>> gram = torch.tensor([[4.0, -1.0], [-1.0, 1.0]])
        >>> MGDA()(gram)
        tensor([0.2857, 0.7143], dtype=torch.float64)
    """

    reads_preferences = False

    def __init__(self, *, normaliser: str | None = None, apply_on: str = "raw", strict: bool = False) -> None:
        super().__init__()
        if normaliser is not None:
            check_choice("normaliser", normaliser, ("l2", "loss", "loss+"))
        self.normaliser = normaliser
        self.apply_on = check_choice("apply_on", apply_on, ("raw", "normalised"))
        self.strict = check_flag("strict", strict)
        if normaliser is not None and apply_on == "normalised":
            self.degree = -1.0 if normaliser == "loss+" else 0.0
        by_loss = normaliser in ("loss", "loss+")
        self.needs = Needs.GRAM | (Needs.LOSSES if by_loss else Needs.NOTHING)
        self.loss_domain = LossDomain.POSITIVE if by_loss else LossDomain.ANY

    def _weights(self, context: WeightingContext) -> Tensor:
        assert context.gram is not None
        if self.normaliser is None:
            return strictly(minimum_norm(context.gram), context.gram, self.strict)
        by = inverse(self._normaliser(context))
        alpha = minimum_norm(scaled(context.gram, by))
        weights = alpha * by if self.apply_on == "normalised" else alpha
        return strictly(weights, context.gram, self.strict)

    def _normaliser(self, context: WeightingContext) -> Tensor:
        assert context.gram is not None
        if self.normaliser == "l2":
            return row_norms(context.gram)
        assert context.losses is not None
        return context.losses if self.normaliser == "loss" else context.losses * row_norms(context.gram)
