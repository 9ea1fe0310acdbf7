"""MoDo: multi-objective descent with double sampling."""

from __future__ import annotations

from torch import Tensor

from ..checks import check_flag, check_real
from .base import Weighting
from .context import Needs, WeightingContext
from .registry import register
from .solvers import mean_diagonal, onto_simplex, times
from .state import State


@register("modo")
class MoDo(Weighting):
    """MoDo (Chen, Fernando, Ying and Chen, NeurIPS 2023, arXiv 2305.20057).

    w <- Proj(w - gamma (Q12 w + rho w)) on the simplex, with the cross Gram matrix Q12 of two independent mini-batches,
    from 1 / T; combine the gradients of a third. The sum is 1.

    Args:
        gamma, rho: step and regularisation.
        scale_free: Q12 in units of tr(Q12) / T (ours): homogeneous; False: as published, gamma and rho in units of
            gradients.

    State:
        ``simplex`` [K, T], w.

    Example:
        >>> cross = torch.tensor([[4.0, -1.0], [-1.2, 1.0]])
        >>> MoDo(gamma=0.1)(cross=cross)
        tensor([0.4680, 0.5320], dtype=torch.float64)
    """

    reads_preferences = False
    needs = Needs.CROSS
    shares = ("simplex",)

    def __init__(self, *, gamma: float = 1e-3, rho: float = 0.1, scale_free: bool = True) -> None:
        super().__init__()
        self.gamma = check_real("gamma", gamma)
        self.rho = check_real("rho", rho)
        self.scale_free = check_flag("scale_free", scale_free)
        if not scale_free:
            self.degree = None

    def _initial_state(self, ones: Tensor) -> State:
        return {"simplex": ones / ones.shape[1]}

    def _weights(self, context: WeightingContext) -> Tensor:
        assert context.cross is not None
        cross = context.cross / mean_diagonal(context.cross) if self.scale_free else context.cross
        w = self._state["simplex"]
        self._state["simplex"] = onto_simplex(w - self.gamma * (times(cross, w) + self.rho * w))
        return self._state["simplex"]
