"""DWA: dynamic weight average."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_positive
from .base import Weighting
from .context import Needs, WeightingContext
from .learning import EpochMeans
from .registry import register
from .state import State


@register("dwa")
class DWA(Weighting):
    """Dynamic weight average (Liu, Johns and Davison, CVPR 2019, arXiv 1803.10704).

    w = T softmax(r / tau), r_t = mean loss of the last epoch / mean loss of the epoch before; w = 1 in the first two
    epochs, and r = 1 where an epoch's mean was 0. The sum is T. Homogeneous.

    Needs the user's count of epochs: without it w stays 1.

    Args:
        tau: temperature.

    State:
        See `EpochMeans`.

    Example:
        >>> weighting = DWA()
        >>> for epoch, losses in enumerate(torch.tensor([[2.0, 2.0], [1.0, 2.0], [1.0, 1.0]])):
        ...     weights = weighting(losses=losses, epoch=epoch)
        >>> weights
        tensor([0.8756, 1.1244], dtype=torch.float64)
    """

    reads_preferences = False
    needs = Needs.LOSSES | Needs.EPOCHS

    def __init__(self, *, tau: float = 2.0) -> None:
        super().__init__()
        self.tau = check_positive("tau", tau)
        self.means = EpochMeans()

    def _initial_state(self, ones: Tensor) -> State:
        return self.means.start(ones)

    def _weights(self, context: WeightingContext) -> Tensor:
        assert context.losses is not None
        self.means.see(self._state, context.epoch, context.losses)
        earlier = self._state["epoch_earlier"]
        ratio = torch.where(earlier == 0, 1.0, self._state["epoch_last"] / earlier)
        ratio = torch.where(self._state["epochs_finished"] < 2, 1.0, ratio)
        return ratio.shape[1] * torch.softmax(ratio / self.tau, -1)
