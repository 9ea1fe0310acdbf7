"""LS: linear scalarization, the baseline of every comparison."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..checks import PerTask, check_per_task
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

    reads_preferences = True

    def __init__(self, values: float | Sequence[float] | None = None) -> None:
        super().__init__()
        self.values = None if values is None else check_per_task("values", values)

    def _settings_of_tasks(self) -> dict[str, PerTask | None]:
        return {"values": self.values}

    def _weights(self, context: WeightingContext) -> Tensor:
        values = self._numbers.get("values")
        return context.preferences if values is None else values.expand_as(context.preferences)
