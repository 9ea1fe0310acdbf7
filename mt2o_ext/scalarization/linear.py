"""The weighted sum of the losses."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import Scalarization
from .registry import register


@register("linear")
@dataclass(frozen=True, repr=False)
class Linear(Scalarization):
    """sum_t w_t l_t; coefficients w.

    Example:
        >>> scalarization = Linear()
        >>> losses, preference = torch.tensor([2.0, 0.5]), torch.tensor([0.3, 0.7])
        >>> scalarization(losses, preference)
        tensor(0.9500)
        >>> scalarization.coefficients(losses, preference)
        tensor([0.3000, 0.7000], dtype=torch.float64)
    """

    def _value(self, losses: Tensor, preferences: Tensor) -> Tensor:
        return (preferences * losses).sum(-1)

    def _gradient(self, losses: Tensor, preferences: Tensor) -> Tensor:
        return preferences

    def weights(self, preferences: Tensor) -> Tensor:
        """The coefficients of all losses that are finite, whatever they are; like ``preferences``, float64 [..., T]."""
        scale = self._per_task("loss_scale", preferences)
        return preferences if isinstance(scale, float) and scale == 1.0 else preferences / scale
