"""CDTT: central direction with task tensions."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_choice, check_real
from ..loss_domain import LossDomain
from .base import Weighting
from .context import Needs, WeightingContext
from .edm import equiangular
from .registry import register
from .solvers import are_rounding, inverse, row_norms, squared_norm, times
from .state import State

WINDOW = 10


@register("cdtt")
class TaskTensioner(Weighting):
    """CDTT, the task tensioner (Nakamura, Grassi and Wolf, arXiv 2204.06698).

    c = EDM. S_t = sum of the last 10 norms; from the 11th step x_t = S_t / S_t(one step before) + log10 l_t,
    tau_t = max(0, a / (1 + exp(2.718 (1 - x_t))) + 1 - a): v = c + m sum_t tau_t (e_t - c) / |e_t - c|_Q. Then for each
    t in order, where (Qv)_t < 0: lam = -(Qv)_t / Q_tt, v <- (v + lam e_t) / (1 + lam); equal to the published rule of
    tangents without its singularities. Terms of length zero are left out.

    Args:
        a: share of the tension that follows the losses.
        tension: "unit": m = 1 (the published code; not homogeneous); "relative": m = |c|_Q and losses in units of their
            mean over the first 10 steps (ours; homogeneous).

    State:
        ``norms`` [K, T, 10], ``norm_sum``, ``loss_sum`` and ``steps`` [K, T].

    Example:
        >>> gram = torch.tensor([[4.0, -1.0], [-1.0, 1.0]])
        >>> TaskTensioner()(gram, losses=torch.tensor([2.0, 0.5]))
        tensor([0.3333, 0.6667], dtype=torch.float64)
    """

    reads_preferences = False
    undoes_factors = True
    needs = Needs.GRAM | Needs.LOSSES
    loss_domain = LossDomain.POSITIVE

    def __init__(self, *, a: float = 0.3, tension: str = "relative") -> None:
        super().__init__()
        self.a = check_real("a", a)
        self.tension = check_choice("tension", tension, ("relative", "unit"))
        if tension == "unit":
            self.degree = None

    def _initial_state(self, ones: Tensor) -> State:
        zeros = torch.zeros_like(ones)
        norms = zeros[..., None].repeat(1, 1, WINDOW)
        return {"norms": norms, "norm_sum": zeros, "loss_sum": zeros.clone(), "steps": zeros.clone()}

    def _weights(self, context: WeightingContext) -> Tensor:
        assert context.gram is not None and context.losses is not None
        tension = self._tension(row_norms(context.gram), context.losses)
        centre = equiangular(context.gram)
        return self._repaired(context.gram, self._pulled(context.gram, centre, tension, context.rtol()))

    def _tension(self, norms: Tensor, losses: Tensor) -> Tensor:
        """tau [K, T], 0 in the first ten steps; moves the window on."""
        state = self._state
        warm = state["steps"] >= WINDOW
        before = state["norm_sum"]
        window = torch.cat([state["norms"][..., 1:], norms[..., None]], -1)
        now = window.sum(-1)
        state["loss_sum"] = torch.where(warm, state["loss_sum"], state["loss_sum"] + losses)
        unit = state["loss_sum"] / WINDOW if self.tension == "relative" else torch.ones_like(losses)
        growth = torch.where(before > 0, now / torch.where(before > 0, before, 1.0), 1.0)
        x = growth + (losses / unit).log10()
        tension = (self.a * torch.sigmoid(2.718 * (x - 1)) + 1 - self.a).clamp(min=0)
        state.update({"norms": window, "norm_sum": now, "steps": state["steps"] + 1})
        return torch.where(warm, tension, 0.0)

    def _pulled(self, gram: Tensor, centre: Tensor, tension: Tensor, rtol: float) -> Tensor:
        towards = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device) - centre[:, None]
        lengths = (towards * (towards @ gram)).sum(-1).clamp(min=0).sqrt()
        lengths = torch.where(are_rounding(gram, towards, rtol), 0.0, lengths)
        size = squared_norm(gram, centre).sqrt() if self.tension == "relative" else 1.0
        present = gram.diagonal(dim1=-2, dim2=-1) > 0
        pull = torch.where(present, tension * inverse(lengths), 0.0) * size
        return centre + (pull[..., None] * towards).sum(1)

    def _repaired(self, gram: Tensor, direction: Tensor) -> Tensor:
        squared = gram.diagonal(dim1=-2, dim2=-1)
        for task in range(gram.shape[-1]):
            product, own = times(gram, direction)[:, task], squared[:, task]
            lam = torch.where((product < 0) & (own > 0), -product / torch.where(own > 0, own, 1.0), 0.0)
            added = direction[:, task] + lam
            direction = torch.cat([direction[:, :task], added[:, None], direction[:, task + 1 :]], 1)
            direction = direction / (1 + lam)[:, None]
        return direction
