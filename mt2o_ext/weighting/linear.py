"""LS: linear scalarization, the baseline of every comparison."""

from __future__ import annotations

import torch
from torch import Tensor

from mt2o_ext.weighting.base import Weighting
from mt2o_ext.weighting.context import WeightingContext


class LinearWeighting(Weighting):
    """w = u, the preferences (1 / T for all tasks where nobody has any), or fixed ``values``. Homogeneous of degree 1.

    values: one weight for each task instead of the preferences; ``1.0`` for all gives the sum of the losses, which most
        codes call "equal weighting".
    """

    def __init__(self, values: float | list[float] | None = None) -> None:
        super().__init__()
        self.values = values

    def _weights(self, context: WeightingContext) -> Tensor:
        if self.values is None:
            return context.preferences.clone()
        return torch.as_tensor(self.values, dtype=torch.float64).to(self._device).expand_as(context.preferences)
