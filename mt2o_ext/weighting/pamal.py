"""PaMaL: weights of losses at points of a manifold of models."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import check_choice, check_flag, check_positive, check_real
from .base import Weighting
from .context import Needs, WeightingContext
from .registry import register
from .solvers import inverse, row_norms
from .state import State

__all__ = ["Order", "PaMaL", "order_of"]

WINDOW = 25
BALANCING = {
    "none": Needs.NOTHING,
    "losses": Needs.LOSSES,
    "norms": Needs.DIAGONAL,
    "both": Needs.LOSSES | Needs.DIAGONAL,
}


@register("pamal")
class PaMaL(Weighting):
    """Pareto Manifold Learning, PaMaL (Dimitriadis, Frossard and Fleuret, ICML 2023, arXiv 2210.09759).

    The preferences of subproblem k are the point u_k of the simplex that its losses l_k were computed at; give
    ``scalarization=None`` to `MT2OFused`, with ``front="vertices"`` for the method of the paper.  (Of one model the
    point is its preferences; alone, it is ``preferences=`` of the call.)

    w_kt = u_kt b_kt + lam dR / dl_kt.  b = 1; by losses, b_kt = 1 - |m_kt| / sum_s |m_ks| with the mean m of the losses
    of the last 25 steps; by norms, b_kt = 1 / (n_kt + xi_k) with n_kt = |u_k| |g_kt|, the length of the gradient by all
    vertices, and xi_k a share of the mean of n_k, where the published code adds 0.001; by both, their product.

    The regulariser wants the loss of a task to fall as its share grows: R = sum_t log mean_k exp(tau d_kt), over pairs
    of points whose shares of task t are neighbours, with d = max(0, loss at the larger share - loss at the smaller
    one).  The published code has the opposite sign, which punishes the order that the paper asks for.  As there, R
    counts only where lam R is less than sum_kt u_kt l_kt.  Equal shares (all, while `MT2OFused` warms up) have no
    order.  Homogeneous without R (degree 0 by norms); R is in units of the losses, which `Relative` measures.

    Built from an account of the published code, not from the paper's text.  Inferred: each of the K subproblems has a
    window of its own; R is compared with the losses before they are balanced.  Heads have to be weighed as well:
    groups with ``task`` need ``heads="weighted"``.

    Args:
        balancing: "none", "losses", "norms" or "both": "ls", "rwa", "gradnorm" and "full" of the published code.
        regularization: lam, 0 to 5 in the published settings.  It needs at least 2 subproblems or points.
        sharpness: tau.
        norm_floor: xi as a share of the mean norm.
        code_parity: the sign of the published code.

    State:
        ``window`` [K, T, 25] and ``window_steps`` [K], by losses.

    Raises:
        ValueError: for one task, for one point with a regulariser, and for settings that would have no effect.

    Example:
        >>> points = torch.tensor([[0.2, 0.8], [0.6, 0.4]])
        >>> losses = torch.tensor([[1.0, 2.0], [1.5, 2.5]])  # of task 0 the larger share has the larger loss
        >>> PaMaL()(losses=losses, preferences=points)
        tensor([[0.2000, 0.8000],
                [0.6000, 0.4000]], dtype=torch.float64)
        >>> PaMaL(regularization=0.1)(losses=losses, preferences=points)
        tensor([[0.1000, 0.8000],
                [0.7000, 0.4000]], dtype=torch.float64)
    """

    reads_preferences = True

    def __init__(
        self,
        *,
        balancing: str = "none",
        regularization: float = 0.0,
        sharpness: float = 1.0,
        norm_floor: float = 1e-3,
        code_parity: bool = False,
    ) -> None:
        super().__init__()
        self.balancing = check_choice("balancing", balancing, tuple(BALANCING))
        self.regularization = check_real("regularization", regularization)
        self.sharpness = check_positive("sharpness", sharpness)
        self.norm_floor = check_real("norm_floor", norm_floor)
        self.code_parity = check_flag("code_parity", code_parity)
        self.needs = Needs.POINTS | BALANCING[balancing]
        by_norms = Needs.DIAGONAL in self.needs
        idle = {
            "sharpness=": not regularization and sharpness != 1.0,
            "code_parity=": not regularization and code_parity,
            "norm_floor=": not by_norms and norm_floor != 1e-3,
        }
        if given := [name for name, unused in idle.items() if unused]:
            raise ValueError(
                f"{', '.join(given)} would have no effect: leave it out, or give "
                f"{'balancing=' if given == ['norm_floor='] else 'regularization='}"
            )
        self.degree = 0.0 if by_norms else 1.0
        if regularization:
            self.needs |= Needs.LOSSES
            self.degree = None

    def bind(self, num_rows: int, num_tasks: int, num_segments: int, device: torch.device | str) -> None:
        if num_tasks < 2:
            raise ValueError(f"expected at least 2 tasks with PaMaL, got {num_tasks}: one task has no front")
        if self.regularization and num_rows < 2:
            raise ValueError(
                f"expected at least 2 points with regularization={self.regularization}, which compares their losses, "
                f"got {num_rows}: take more points, or regularization=0"
            )
        super().bind(num_rows, num_tasks, num_segments, device)

    def _initial_state(self, ones: Tensor) -> State:
        if Needs.LOSSES not in BALANCING[self.balancing]:
            return {}
        zeros = torch.zeros_like(ones)
        return {"window": zeros[..., None].repeat(1, 1, WINDOW), "window_steps": zeros[:, 0].clone()}

    def _weights(self, context: WeightingContext) -> Tensor:
        weights = context.preferences
        if Needs.LOSSES in BALANCING[self.balancing]:
            assert context.losses is not None
            weights = weights * self._by_losses(context.losses)
        if Needs.DIAGONAL in self.needs:
            assert context.gram is not None
            weights = weights * self._by_norms(context.gram, context.preferences)
        if self.regularization:
            weights = weights + self._by_order(context)
        return weights

    def _by_losses(self, losses: Tensor) -> Tensor:
        """One less the share of each loss in the means over the last steps; moves the window on."""
        window = torch.cat([self._state["window"][..., 1:], losses[..., None]], -1)
        steps = (self._state["window_steps"] + 1).clamp(max=WINDOW)
        self._state.update({"window": window, "window_steps": steps})
        means = (window.sum(-1) / steps[:, None]).abs()
        total = means.sum(-1, keepdim=True)
        return 1 - torch.where(total > 0, means / torch.where(total > 0, total, 1.0), 1 / losses.shape[-1])

    def _by_norms(self, gram: Tensor, points: Tensor) -> Tensor:
        norms = points.norm(dim=-1, keepdim=True) * row_norms(gram)
        floor = self.norm_floor * norms.mean(-1, keepdim=True)
        return torch.where(norms > 0, inverse(norms + floor), 0.0)

    def _by_order(self, context: WeightingContext) -> Tensor:
        """Lam dR / dl, 0 where lam R is not less than the losses."""
        assert context.losses is not None and context.finite is not None
        points, losses, there = context.preferences, context.losses, context.finite
        found = order_of(points, losses, there, self.sharpness, -1.0 if self.code_parity else 1.0)
        total = torch.where(there[:, None], points * losses, 0.0).sum()
        counts = self.regularization * found.value < total
        return torch.where(counts, self.regularization * found.slopes, 0.0)


class Order(NamedTuple):
    """The regulariser.

    value: float64 [], R.
    slopes: float64 [K, T], dR / dl.
    """

    value: Tensor
    slopes: Tensor


def order_of(points: Tensor, losses: Tensor, there: Tensor, sharpness: float, sign: float) -> Order:
    """Return R = sum_t log mean exp(tau max(0, sign (l at the larger share - l at the smaller one))) and its slopes.

    Args:
        points: float64 [K, T], the shares.
        losses: float64 [K, T].
        there: bool [K], the points that take part.
        sharpness: tau.
        sign: 1, or -1 for the opposite order.
    """
    shares, at = torch.where(there[:, None], points, torch.inf).sort(dim=0, stable=True)  # points left out come last
    ordered = losses.gather(0, at)
    both = shares[1:] < torch.inf  # [K - 1, T]: both points of the pair are there
    growth = torch.where(both & (shares[1:] > shares[:-1]), sign * (ordered[1:] - ordered[:-1]), 0.0)
    exponents = sharpness * growth.clamp(min=0)
    count = both.sum(0)
    exponents = torch.where(both | (count == 0), exponents, -torch.inf)
    value = exponents.logsumexp(0) - count.clamp(min=1).log()
    by_growth = torch.where(growth > 0, sign * sharpness * exponents.softmax(0), 0.0)
    none = torch.zeros_like(losses[:1])
    slopes = torch.cat([none, by_growth]) - torch.cat([by_growth, none])
    value = torch.where(count > 0, value, 0.0).sum()
    return Order(value, torch.zeros_like(losses).scatter(0, at, slopes))
