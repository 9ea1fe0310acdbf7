"""LS: linear scalarization, the baseline of every comparison."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import check_per_task, per_task
from .base import Weighting
from .context import WeightingContext
from .registry import register


@register("ls")
class LinearWeighting(Weighting):
    """LS: w = u, the preferences (1 / T for all tasks where nobody has any), or fixed ``values``.

    Homogeneous: losses times a give the update times a.

    Args:
        values: a weight for all tasks or one for each instead of the preferences; ``1.0`` gives the gradient of the sum
            of the losses, which most codes call "equal weighting" (``EW``).

    Example:
        >>> LinearWeighting()(losses=torch.tensor([2.0, 0.5]))
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """

    def __init__(self, values: float | Sequence[float] | None = None) -> None:
        super().__init__()
        self.values = None if values is None else check_per_task("values", values)
        self._values = torch.empty(0, dtype=torch.float64)

    def bind(self, num_rows: int, num_tasks: int, num_segments: int, device: torch.device | str) -> None:
        if self.values is not None:
            self._values = per_task("values", self.values, num_tasks, device)
        super().bind(num_rows, num_tasks, num_segments, device)

    def _weights(self, context: WeightingContext) -> Tensor:
        return context.preferences.clone() if self.values is None else self._values.expand_as(context.preferences)
