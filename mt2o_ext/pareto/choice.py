"""Dominance, and the choice of one subproblem for a preference."""

from __future__ import annotations

from torch import Tensor

from .values import Numbers, float64

__all__ = ["chosen", "non_dominated"]


def non_dominated(losses: Tensor) -> Tensor:
    """bool [K] of losses [K, T]: finite, and no other finite row is as good in every task and better in one."""
    finite = losses.isfinite().all(1)
    mine, others = losses[:, None], losses[None]
    dominates = (others <= mine).all(2) & (others < mine).any(2) & finite
    return finite & ~dominates.any(1)


def chosen(losses: Tensor, preference: Numbers, ideal: Tensor, nadir: Tensor) -> int:
    """Index of the row of losses [K, T] that `ParetoFront.choose` takes for `preference` [T]."""
    num_tasks = losses.shape[1]
    weights = float64("preference", preference)
    if weights.shape != (num_tasks,):
        raise ValueError(
            f"expected a preference of shape ({num_tasks},), got {tuple(weights.shape)}: give one weight for each task"
        )
    if not (weights.isfinite().all() and (weights >= 0.0).all() and (weights > 0.0).any()):
        raise ValueError(
            f"expected a preference that is finite, not negative and not all zero, got {weights.tolist()}: give "
            "each task a weight of at least 0"
        )
    span = nadir - ideal
    scaled = (losses - ideal) / span.where(span > 0.0, 1.0)
    candidates = non_dominated(losses).nonzero().flatten().tolist()
    return min(candidates, key=lambda k: ((weights * scaled[k]).max().item(), scaled[k].sum().item()))
