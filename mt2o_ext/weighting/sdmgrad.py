"""SDMGrad: stochastic direction-oriented multi-objective descent."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_count, check_flag, check_positive, check_real
from .base import Weighting
from .context import Needs, WeightingContext
from .registry import register
from .solvers import mean_diagonal, minimum_norm, onto_simplex, times
from .state import State


@register("sdmgrad")
class SDMGrad(Weighting):
    """SDMGrad (Xiao, Ban and Ji, NeurIPS 2023, arXiv 2305.18409).

    v minimises |J'(v + lam u)|^2 over the simplex, w = (v + lam u) / (1 + lam). lam = 0 is `MGDA`, infinity linear
    scalarization. Homogeneous.

    Args:
        lam: 0.3 in LibMTL, 0.6 in the authors' code.
        two_batches: v descends for the cross Gram matrix Q12 of two mini-batches, whose products are not biased by
            noise: ``iterations`` steps of projected gradient descent with momentum on Q12 in units of tr(Q12) / T, from
            where the last step ended. The gradients that are combined should be those of a third mini-batch. False:
            solved exactly on one mini-batch, which is what the authors' code comes to, because its buffers are one.
        iterations, lr, momentum: 20 steps with 5 (LibMTL) or 10 and 0.5 in published codes, on Q12 / (mean s)^2.

    State:
        With ``two_batches``: ``simplex`` [K, T], v.

    Example:
        >>> gram = torch.tensor([[4.0, -1.0], [-1.0, 1.0]])
        >>> SDMGrad()(gram)
        tensor([0.2857, 0.7143], dtype=torch.float64)
    """

    reads_preferences = False
    shares = ("simplex",)

    def __init__(
        self,
        *,
        lam: float = 0.3,
        two_batches: bool = False,
        iterations: int = 20,
        lr: float = 10.0,
        momentum: float = 0.5,
    ) -> None:
        super().__init__()
        self.lam = check_real("lam", lam)
        self.two_batches = check_flag("two_batches", two_batches)
        self.iterations = check_count("iterations", iterations)
        self.lr = check_positive("lr", lr)
        self.momentum = check_real("momentum", momentum, 0.0, 1.0)
        self.needs = Needs.CROSS if two_batches else Needs.GRAM

    def _initial_state(self, ones: Tensor) -> State:
        return {"simplex": ones / ones.shape[1]} if self.two_batches else {}

    def _weights(self, context: WeightingContext) -> Tensor:
        oriented = self.lam * context.preferences
        if self.two_batches:
            assert context.cross is not None
            self._state["simplex"] = self._descended(context.cross / mean_diagonal(context.cross), oriented)
            return (self._state["simplex"] + oriented) / (1 + self.lam)
        assert context.gram is not None
        return (minimum_norm(context.gram, times(context.gram, oriented)) + oriented) / (1 + self.lam)

    def _descended(self, cross: Tensor, oriented: Tensor) -> Tensor:
        simplex, velocity = self._state["simplex"], torch.zeros_like(oriented)
        for _ in range(self.iterations):
            velocity = self.momentum * velocity + times(cross, simplex + oriented)
            simplex = onto_simplex(simplex - self.lr * velocity)
        return simplex
