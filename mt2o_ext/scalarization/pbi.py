"""Penalty boundary intersection."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import check_real
from .base import FromIdeal
from .registry import register


@register("pbi")
@dataclass(frozen=True, repr=False)
class PBI(FromIdeal):
    """Penalty boundary intersection, d1 + theta d2: the distance along the ray of w and the distance from it.

    With f = l - ideal and h = w / |w|: d1 = f . h and d2 = |f - d1 h|. Coefficients h + theta (f - d1 h) / d2, and h on
    the ray itself. They may be negative: a task that is ahead of the preference is held back. Unlike the other
    scalarizations, a *larger* entry of w asks for a *larger* share of the loss. Source: Zhang and Li, "MOEA/D", IEEE
    Trans. Evol. Comput. 2007.

    Args:
        theta: the weight of the distance from the ray, not negative.

    Example:
        >>> scalarization = PBI(theta=5.0)
        >>> losses, preference = torch.tensor([2.0, 0.5]), torch.tensor([0.3, 0.7])
        >>> scalarization(losses, preference)
        tensor(9.4541)
        >>> scalarization.coefficients(losses, preference)
        tensor([ 4.9896, -1.0505], dtype=torch.float64)
    """

    theta: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_real("theta", self.theta)

    def _value(self, losses: Tensor, preferences: Tensor) -> Tensor:
        _, along, across, off_ray = self._split(losses, preferences)
        distance: Tensor = torch.linalg.vector_norm(
            across.where(off_ray, 1.0), dim=-1
        )  # 1: the norm has no derivative at zero
        return along.squeeze(-1) + self.theta * distance.where(off_ray.squeeze(-1), 0.0)

    def _gradient(self, losses: Tensor, preferences: Tensor) -> Tensor:
        direction, _, across, off_ray = self._split(losses, preferences)
        distance: Tensor = torch.linalg.vector_norm(across, dim=-1, keepdim=True)
        return direction + self.theta * (across / distance).where(off_ray, 0.0)

    @staticmethod
    def _split(losses: Tensor, preferences: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The direction h [..., T], d1 [..., 1], f - d1 h [..., T] and whether that is more than rounding [..., 1]."""
        direction = preferences / torch.linalg.vector_norm(preferences, dim=-1, keepdim=True)
        along = (losses * direction).sum(-1, keepdim=True)
        across = losses - along * direction
        rounding = losses.shape[-1] * torch.finfo(losses.dtype).eps * losses.abs().amax(-1, keepdim=True)
        return direction, along, across, across.abs().amax(-1, keepdim=True) > rounding
