"""Projection of the subproblems to a ball around a common centre."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import check_count, check_real
from .base import TransferContext, TransferRule
from .registry import register


@register("cross-learning")
class CrossLearning(TransferRule):
    """The nearest parameters with |theta_k - g| <= eps for some centre g (Cross-learning, arXiv 2010.12993).

    With r_k the distance to the centre, v_k = max(0, 1 - eps / r_k) and g = sum_k v_k theta_k / sum_k v_k at the
    solution, M = I - diag(v) + v v^T / sum v: symmetric, doubly stochastic, keeps the mean. The constraint is the
    paper's abstract, the solver ours: g = sum_k c_k theta_k by accelerated gradient steps with restarts on
    (1/2) sum_k max(0, r_k - eps)^2, a fixed number of them, from the last transfer's c.

    Args:
        eps: radius in units of the parameters; one number for the whole model, or one per segment.
        iterations: gradient steps per transfer.

    State:
        ``coefficients`` c, [1, K] or [S, K], float64.

    Example:
        >>> preferences = mt2o_ext.preferences.even(3)
        >>> rule = CrossLearning(eps=0.5)
        >>> rule.bind(preferences)
        >>> gram = torch.tensor([[[1.0, 0.0, -1.0], [0.0, 0.0, 0.0], [-1.0, 0.0, 1.0]]]).double()
        >>> context = TransferContext(preferences, gram, losses=None, step=0, lr=torch.tensor(0.1), initial_lr=0.1)
        >>> rule.matrix(context)
        tensor([[0.7500, 0.0000, 0.2500],
                [0.0000, 1.0000, 0.0000],
                [0.2500, 0.0000, 0.7500]], dtype=torch.float64)
    """

    needs_gram = True
    nonnegative = True
    order = "adapt_then_combine"

    def __init__(self, eps: float | Sequence[float], *, iterations: int = 50, every: int = 1) -> None:
        super().__init__(every=every)
        self.per_segment = isinstance(eps, Sequence)
        self.eps = [check_real("eps", e) for e in (eps if isinstance(eps, Sequence) else [eps])]
        self.iterations = check_count("iterations", iterations)
        self._radius = torch.empty(0, dtype=torch.float64)
        self._coefficients = torch.empty(0, dtype=torch.float64)

    def bind(self, preferences: Tensor) -> None:
        super().bind(preferences)
        num_subproblems = len(preferences)
        self._radius = preferences.new_tensor(self.eps)[:, None]
        self._coefficients = preferences.new_full((len(self.eps), num_subproblems), 1 / num_subproblems)

    def matrix(self, context: TransferContext) -> Tensor:
        self._check_bound()
        gram = self._gram(context)
        if not self.per_segment:
            gram = gram.sum(0, keepdim=True)
        elif len(gram) != len(self.eps):
            raise ValueError(
                f"expected eps for {len(gram)} segments, got {len(self.eps)}: pass one per segment or a single number"
            )
        self._coefficients = centre_coefficients(gram, self._radius, self._coefficients, self.iterations)
        excess = _excess(gram, self._radius, self._coefficients)
        total = excess.sum(-1)[:, None, None]
        pulled = excess[:, :, None] * excess[:, None, :] / torch.where(total > 0, total, 1.0)
        matrix = (1 - excess).diag_embed() + pulled
        return matrix if self.per_segment else matrix[0]

    def state_dict(self) -> dict[str, Tensor]:
        return {"coefficients": self._coefficients}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._check_bound()
        self._check_state(state, {"coefficients": self._coefficients.shape})
        self._coefficients = state["coefficients"].to(self._coefficients)


def centre_coefficients(gram: Tensor, radius: Tensor, start: Tensor, iterations: int) -> Tensor:
    """c [S, K] with sum 1: the centre sum_k c_k theta_k that minimises (1/2) sum_k max(0, r_k - radius)^2.

    Args:
        gram: centred Gram [S, K, K].
        radius: [S, 1].
        start: c of the last transfer, [S, K].
        iterations: gradient steps; the gradient's Lipschitz constant is K, so each is of length 1 / K.

    Returns:
        c [S, K].
    """
    num_subproblems = gram.shape[-1]
    centre, ahead, momentum = start, start, torch.ones_like(radius)
    for _ in range(iterations):
        excess = _excess(gram, radius, ahead)
        new = ahead + (excess - excess.sum(-1, keepdim=True) * ahead) / num_subproblems
        moved = new - centre
        # Restart when the step points against the last move (O'Donoghue and Candes, 2015), in the rows' inner product.
        uphill = _inner(gram, ahead - new, moved) > 0
        next_momentum = torch.where(uphill, 1.0, (1 + torch.sqrt(1 + 4 * momentum**2)) / 2)
        ahead = new + torch.where(uphill, 0.0, (momentum - 1) / next_momentum) * moved
        centre, momentum = new, next_momentum
    return centre


def _excess(gram: Tensor, radius: Tensor, coefficients: Tensor) -> Tensor:
    """max(0, 1 - radius / r_k) [S, K], r_k the distance of row k to the centre sum_j c_j theta_j."""
    product = (gram @ coefficients[:, :, None])[:, :, 0]
    square = gram.diagonal(dim1=-2, dim2=-1) - 2 * product + (coefficients * product).sum(-1, keepdim=True)
    distance = square.clamp(min=0).sqrt()
    return torch.where(distance > radius, 1 - radius / distance, 0.0)


def _inner(gram: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return (left * (gram @ right[:, :, None])[:, :, 0]).sum(-1, keepdim=True)
