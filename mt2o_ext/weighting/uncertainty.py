"""UW and IMTL-L: learned logarithms of the loss weights."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_real
from .base import Weighting
from .context import Needs, WeightingContext
from .learning import TableAdam
from .registry import register
from .state import State


@register("uw")
class UncertaintyWeighting(Weighting):
    """UW, uncertainty weighting (Kendall, Gal and Cipolla, CVPR 2018, arXiv 1705.07115).

    With one log variance a for each task: w = exp(-a) / 2; a descends exp(-a) l / 2 + a / 2, da = (1 - exp(-a) l) / 2,
    by Adam. Fixed point: exp(a) = l.

    A loss that stays at 0 or below has no such point: its weight grows without bound, by about the same factor in each
    step, until the other tasks no longer count and steps are refused because the weight is out of range. Add a constant
    to such a loss.

    Not homogeneous: a has to find the unit of the losses first; `Relative` around it makes the update free of it.

    Args:
        initial: the first a; 0 as in TorchJD, -0.5 in LibMTL.
        lr, weight_decay: of the Adam that learns a. Published codes put a into the model's optimizer instead.

    State:
        ``log_variance`` [K, T] and Adam's moments.

    Example:
        >>> UncertaintyWeighting(initial=-0.5)(losses=torch.tensor([2.0, 0.5]))
        tensor([0.8244, 0.8244], dtype=torch.float64)
    """

    reads_preferences = False
    needs = Needs.LOSSES
    degree = None

    def __init__(self, *, initial: float = 0.0, lr: float = 1e-3, weight_decay: float = 0.0) -> None:
        super().__init__()
        self.initial = check_real("initial", initial, -100.0, 100.0)
        self.adam = TableAdam(lr, weight_decay)

    def _initial_state(self, ones: Tensor) -> State:
        return {"log_variance": self.initial * ones, **self.adam.start(ones)}

    def _weights(self, context: WeightingContext) -> Tensor:
        assert context.losses is not None
        precision = torch.exp(-self._state["log_variance"])
        self.adam.step(self._state, "log_variance", (1 - precision * context.losses) / 2)
        return self.adam.in_range(self._state, precision / 2)


@register("imtl-l")
class IMTLL(Weighting):
    """IMTL-L, the loss half of impartial multi-task learning (Liu et al., ICLR 2021).

    w = exp(a); a descends exp(a) l - a, da = exp(a) l - 1, by Adam from a = 0. Fixed point: w = 1 / l. The same as
    twice `UncertaintyWeighting` with -a.

    Not homogeneous, and with a loss that stays at 0 or below the weight grows without bound, see
    `UncertaintyWeighting`.

    Args:
        lr, weight_decay: of the Adam that learns a.

    State:
        ``log_weight`` [K, T] and Adam's moments.

    Example:
        >>> IMTLL()(losses=torch.tensor([2.0, 0.5]))
        tensor([1., 1.], dtype=torch.float64)
    """

    reads_preferences = False
    needs = Needs.LOSSES
    degree = None

    def __init__(self, *, lr: float = 1e-3, weight_decay: float = 0.0) -> None:
        super().__init__()
        self.adam = TableAdam(lr, weight_decay)

    def _initial_state(self, ones: Tensor) -> State:
        return {"log_weight": torch.zeros_like(ones), **self.adam.start(ones)}

    def _weights(self, context: WeightingContext) -> Tensor:
        assert context.losses is not None
        weights = self._state["log_weight"].exp()
        self.adam.step(self._state, "log_weight", weights * context.losses - 1)
        return self.adam.in_range(self._state, weights)
