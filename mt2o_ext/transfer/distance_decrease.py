"""Transfer along falling distances."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import TransferContext, TransferRule
from .registry import register


@register("distance-decrease")
class DistanceDecrease(TransferRule):
    """Subproblems that come closer attract each other (read in an implementation of the predecessor's follow-up).

    h_kj = max(0, D_kj at the last transfer - D_kj), m_kj = h_kj / (sum_l h_kl + D0_k) for j != k, with D the distances
    over the whole model and D0_k the largest mean distance of subproblem k so far. The first call gives M = I. From a
    common start the subproblems only drift apart: then it never transfers anything.

    State:
        ``distance`` [K, K] and ``largest_mean`` [K], float64.

    Example:
        >>> preferences = mt2o_ext.preferences.even(3)
        >>> rule = DistanceDecrease()
        >>> rule.bind(preferences)
        >>> gram = torch.tensor([[[1.0, 0.0, -1.0], [0.0, 0.0, 0.0], [-1.0, 0.0, 1.0]]]).double()
        >>> context = TransferContext(preferences, gram, losses=None, step=0, lr=torch.tensor(0.1), initial_lr=0.1)
        >>> rule.matrix(context)
        tensor([[1., 0., 0.],
                [0., 1., 0.],
                [0., 0., 1.]], dtype=torch.float64)
    """

    needs_gram = True
    nonnegative = True

    def __init__(self, *, every: int = 1) -> None:
        super().__init__(every=every)
        self._distance = torch.empty(0, dtype=torch.float64)
        self._largest_mean = torch.empty(0, dtype=torch.float64)

    def bind(self, preferences: Tensor) -> None:
        super().bind(preferences)
        num_subproblems = len(preferences)
        # Zero distances have nothing to fall from.
        self._distance = preferences.new_zeros(num_subproblems, num_subproblems)
        self._largest_mean = preferences.new_zeros(num_subproblems)

    def matrix(self, context: TransferContext) -> Tensor:
        self._check_bound()
        distance = distances(self._gram(context).sum(0))
        mean = distance.sum(1) / max(len(distance) - 1, 1)
        self._largest_mean = torch.maximum(self._largest_mean, mean)
        fallen = (self._distance - distance).clamp(min=0)
        self._distance = distance
        total = (fallen.sum(1) + self._largest_mean)[:, None]
        pull = torch.where(total > 0, fallen / total, 0.0)
        return pull + (1 - pull.sum(1)).diag()

    def state_dict(self) -> dict[str, Tensor]:
        return {"distance": self._distance, "largest_mean": self._largest_mean}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._check_bound()
        self._check_state(state, {name: tensor.shape for name, tensor in self.state_dict().items()})
        self._distance = state["distance"].to(self._distance)
        self._largest_mean = state["largest_mean"].to(self._largest_mean)


def distances(gram: Tensor) -> Tensor:
    """D [..., K, K] from a Gram [..., K, K]: D_kj^2 = G_kk + G_jj - 2 G_kj."""
    square = gram.diagonal(dim1=-2, dim2=-1)
    return (square[..., :, None] + square[..., None, :] - 2 * gram).clamp(min=0).sqrt()
