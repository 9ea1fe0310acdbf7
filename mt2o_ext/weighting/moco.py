"""MoCo: multi-objective descent with tracked gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import check_choice, check_flag, check_real
from ..loss_domain import LossDomain
from .context import Needs, WeightingContext
from .elements import gram_of
from .memory import MemoryWeighting
from .registry import register
from .solvers import inverse, mean_diagonal, onto_simplex, times
from .state import State


@register("moco")
class MoCo(MemoryWeighting):
    """MoCo (Fernando, Shen, Liu, Chaudhury, Murugesan and Chen, ICLR 2023, arXiv 2210.12624).

    Y <- Y - b_k (Y - l g / |g|) tracks the gradients, from Y = 0; w <- Proj(w - g_k (Y Y' w + rho w)) from 1 / T; the
    update is Y'w. b_k = beta k^-beta_decay, g_k = gamma k^-gamma_decay in the k-th step. Homogeneous.

    The analysis tracks the gradients themselves; the factor l / |g|, from published code, gives each the length of
    its loss, as what the task has still to go to 0. A loss below 0 has no such length: with l the row would turn round
    and the task ascend, with |l| it would be pulled the harder the better it is. So such a step is refused.

    Args:
        projection: "simplex": the nearest point of it (inferred from the paper); "softmax", as in the authors' code.
        scale_free: Y Y' in units of its mean diagonal (ours); False: as published, gamma and rho in units of gradients.

    State:
        ``simplex`` [K, T], w; ``steps`` [K, T], k of each task; ``memory.tracked`` [K, T, P], Y.

    Example:
        >>> p = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> optimizer = mt2o_ext.WeightedFused([p], num_tasks=2, weighting=MoCo(), base="sgd", lr=0.1)
        >>> losses = optimizer.step(lambda: [p.square().sum(), (p - 1).square().sum()])
        >>> p.detach()
        tensor([0.9493, 1.8712])
    """

    reads_preferences = False
    undoes_factors = True
    needs = Needs.ROWS | Needs.GRAM | Needs.LOSSES
    loss_domain = LossDomain.NON_NEGATIVE
    shares = ("simplex",)

    def __init__(
        self,
        *,
        beta: float = 0.5,
        beta_decay: float = 0.5,
        gamma: float = 0.1,
        gamma_decay: float = 0.5,
        rho: float = 0.0,
        projection: str = "simplex",
        scale_free: bool = True,
    ) -> None:
        super().__init__()
        self.beta = check_real("beta", beta, 0.0, 1.0)
        self.beta_decay = check_real("beta_decay", beta_decay)
        self.gamma = check_real("gamma", gamma)
        self.gamma_decay = check_real("gamma_decay", gamma_decay)
        self.rho = check_real("rho", rho)
        self.projection = check_choice("projection", projection, ("simplex", "softmax"))
        self.scale_free = check_flag("scale_free", scale_free)
        if not scale_free:
            self.degree = None

    def _initial_state(self, ones: Tensor) -> State:
        return {"simplex": ones / ones.shape[1], "steps": torch.zeros_like(ones)}

    def _transform_(self, rows: Sequence[Tensor], context: WeightingContext) -> None:
        assert context.losses is not None and context.finite is not None
        self._state["steps"] = self._state["steps"] + 1
        rate = self.beta * self._state["steps"] ** -self.beta_decay
        length = context.losses * inverse(gram_of(rows, context, diagonal=True).sqrt())
        self._track_(rows, "tracked", 1 - rate, rate * length, context)

    def _weights(self, context: WeightingContext) -> Tensor:
        assert context.gram is not None
        gram = context.gram / mean_diagonal(context.gram) if self.scale_free else context.gram
        w = self._state["simplex"]
        rate = self.gamma * self._state["steps"].clamp(min=1) ** -self.gamma_decay
        moved = w - rate * (times(gram, w) + self.rho * w)
        self._state["simplex"] = onto_simplex(moved) if self.projection == "simplex" else torch.softmax(moved, -1)
        return self._state["simplex"]
