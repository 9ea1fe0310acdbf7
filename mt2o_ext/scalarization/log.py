"""The weighted sum of the logarithms of the losses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..loss_domain import LossDomain
from .base import Scalarization
from .registry import register


@register("log")
@dataclass(frozen=True, repr=False)
class Log(Scalarization):
    """sum_t w_t log l_t; coefficients w / l, so that each task counts by its relative progress.

    A loss that is not positive gives NaN, in the value and in all coefficients of its row. `loss_scale` shifts the
    value and changes no coefficient: the logarithm needs no common unit.

    Example:
        >>> scalarization = Log()
        >>> losses, preference = torch.tensor([2.0, 0.5]), torch.tensor([0.3, 0.7])
        >>> scalarization(losses, preference)
        tensor(-0.2773)
        >>> scalarization.coefficients(losses, preference)
        tensor([0.1500, 1.4000], dtype=torch.float64)
    """

    loss_domain: ClassVar[LossDomain] = LossDomain.POSITIVE

    def _value(self, losses: Tensor, preferences: Tensor) -> Tensor:
        return (preferences * torch.log(losses.where(losses > 0.0, math.nan))).sum(-1)

    def _gradient(self, losses: Tensor, preferences: Tensor) -> Tensor:
        return preferences / losses
