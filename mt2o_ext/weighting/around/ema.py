"""CR-MOGM: a moving average of the weights."""

from __future__ import annotations

import torch
from torch import Tensor

from ...checks import check_real
from ..base import Weighting
from ..context import WeightingContext
from ..registry import register_around
from ..state import State
from .base import Combinator


@register_around("ema")
class Ema(Combinator):
    """CR-MOGM (Zhou, Zhang, Jiang, Zhong, Gu and Zhu, NeurIPS 2022) around any weighting.

    w_k = decay w_(k-1) + (1 - decay) w^_k, with w^ the inner weights; the first is w^_1.

    Args:
        decay: 0.9 in TorchJD; the paper lets it approach 1 as the learning rate decays.

    State:
        ``average`` [K, T] (or [K, S, T]), ``started`` [K, T].

    Raises:
        ValueError: for a weighting that goes by points, as `PaMaL` does.

    Example:
        >>> weighting = Ema("upgrad", decay=0.9)
        >>> gram = torch.tensor([[4.0, -1.0], [-1.0, 1.0]])
        >>> weighting(gram)
        tensor([0.6250, 1.0000], dtype=torch.float64)
        >>> weighting(torch.eye(2))  # nine tenths of the old weights
        tensor([0.6125, 0.9500], dtype=torch.float64)
    """

    def __init__(self, inner: Weighting | str, decay: float = 0.9) -> None:
        super().__init__(inner)
        self._refuse_points()
        self.decay = check_real("decay", decay, 0.0, 1.0)

    def _initial_state(self, ones: Tensor) -> State:
        return {"average": self._empty_weights(ones), "started": torch.zeros_like(ones)}

    def _axes_of_tasks(self, name: str) -> tuple[int, ...]:
        return (-1,)

    def _weights(self, context: WeightingContext) -> Tensor:
        fresh = self.inner.weights(context)
        started = (self._state["started"] if fresh.ndim == 2 else self._state["started"][:, None]) > 0
        mixed = self.decay * self._state["average"] + (1 - self.decay) * fresh
        self._state["average"] = torch.where(started, mixed, fresh)
        self._state["started"] = torch.ones_like(self._state["started"])
        return self._state["average"]
