"""DB-MTL: dual balancing of losses and gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import check_real
from ..loss_domain import LossDomain
from .context import Needs, WeightingContext
from .memory import MemoryWeighting
from .registry import register
from .solvers import inverse, row_norms
from .state import State


@register("db-mtl")
class DBMTL(MemoryWeighting):
    """Dual balancing (Lin, Jiang, Ye, Zhang, Chen, Chen, Liu and Kwok, arXiv 2308.12029).

    G = J / l, the gradients of the log losses; Y <- G + b_k (Y - G), b_k = beta k^-beta_decay, from Y = 0 without bias
    correction; w_t = max |y| / |y_t|: all weighted rows are as long as the longest. The update is Y'w, of degree 0.

    State:
        ``steps`` [K, T], k of each task; ``memory.average`` [K, T, P], Y.

    Example:
        >>> p = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> optimizer = mt2o_ext.WeightedFused([p], num_tasks=2, weighting=DBMTL(), base="sgd", lr=0.1)
        >>> losses = optimizer.step(lambda: [p.square().sum(), (p - 1).square().sum()])
        >>> p.detach()
        tensor([0.9911, 1.9621])
    """

    reads_preferences = False
    undoes_factors = True
    needs = Needs.ROWS | Needs.DIAGONAL | Needs.LOSSES
    loss_domain = LossDomain.POSITIVE
    degree = 0.0

    def __init__(self, *, beta: float = 0.9, beta_decay: float = 0.0) -> None:
        super().__init__()
        self.beta = check_real("beta", beta, 0.0, 1.0)
        self.beta_decay = check_real("beta_decay", beta_decay)

    def _initial_state(self, ones: Tensor) -> State:
        return {"steps": torch.zeros_like(ones)}

    def _transform_(self, rows: Sequence[Tensor], context: WeightingContext) -> None:
        assert context.losses is not None and context.finite is not None
        self._state["steps"] = self._state["steps"] + 1
        keep = self.beta * self._state["steps"] ** -self.beta_decay
        self._track_(rows, "average", keep, (1 - keep) / context.losses, context)

    def _weights(self, context: WeightingContext) -> Tensor:
        assert context.gram is not None
        norms = row_norms(context.gram)
        return norms.amax(-1, keepdim=True) * inverse(norms)
