"""PIVRG: fairness steered by the performance on validation data."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..checks import check_positive
from .base import Weighting
from .context import Needs, WeightingContext
from .registry import register
from .solvers import power_barrier
from .state import State


@register("pivrg")
class PIVRG(Weighting):
    """PIVRG, performance-informed variance reduction (Qin, Wang and Yan, CVPR 2025).

    w > 0 with (Qw)_t = (b_t / w_t)^(1/2), b = T softmax(D / tau), tau = max((max D - min D) / log(bound),
    min_temperature), where D [T] is how much worse each task is on validation data than when trained alone, in percent
    (`set_degradation`; 0 at first, with which it is `FairGrad(2)`). max b / min b <= bound. Degree -1/3.

    The authors' code multiplies w by T and shortens the direction to length 1: `Rescale(PIVRG(), "T", max_norm=1)`.

    Args:
        bound, min_temperature: 2 and 10 for NYUv2 and CelebA, 1.8 and 20 for Cityscapes, 1.8 and 100 for QM9.

    State:
        ``degradation`` [K, T].

    Example:
        >>> gram = torch.tensor([[4.0, -1.0], [-1.0, 1.0]])
        >>> PIVRG()(gram)
        tensor([0.6775, 1.4953], dtype=torch.float64)
    """

    reads_preferences = False
    needs = Needs.GRAM
    degree = -1 / 3

    def __init__(self, *, bound: float = 2.0, min_temperature: float = 10.0) -> None:
        super().__init__()
        if check_positive("bound", bound) <= 1:
            raise ValueError(f"expected bound > 1, got {bound}: it is the largest ratio of two weights b")
        self.bound = float(bound)
        self.min_temperature = check_positive("min_temperature", min_temperature)

    def set_degradation(self, degradation: Tensor) -> None:
        """Gives D, [T] or [K, T], in percent, after an evaluation; a positive number is worse."""
        self._check_bound()
        old = self._state["degradation"]
        new = torch.as_tensor(degradation, dtype=torch.float64).detach().to(old)
        if new.shape not in (old.shape, old.shape[1:]):
            raise ValueError(f"expected degradation [T] or [K, T] of {tuple(old.shape)}, got {tuple(new.shape)}")
        self._state["degradation"] = new.expand_as(old).clone()

    def _initial_state(self, ones: Tensor) -> State:
        return {"degradation": torch.zeros_like(ones)}

    def _weights(self, context: WeightingContext) -> Tensor:
        assert context.gram is not None
        return power_barrier(context.gram, self.targets(), 0.5, context.rtol())

    def targets(self) -> Tensor:
        """b [K, T]."""
        degradation = self._state["degradation"]
        spread = degradation.amax(-1, keepdim=True) - degradation.amin(-1, keepdim=True)
        tau = (spread / math.log(self.bound)).clamp(min=self.min_temperature)
        return degradation.shape[1] * torch.softmax(degradation / tau, -1)
