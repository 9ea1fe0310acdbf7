"""STCH: smooth Tchebycheff scalarization."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import PerTask, check_count, check_per_task, check_positive
from ..loss_domain import LossDomain
from .base import Weighting
from .context import Needs, WeightingContext
from .learning import EpochMeans
from .registry import register
from .state import State


@register("stch")
class STCH(Weighting):
    """Smooth Tchebycheff (Lin et al., ICML 2024, arXiv 2402.19078), in logarithms of the losses or in their units.

    Logarithmic (the default, as in LibMTL): w = T softmax(log(l / nad) / mu) / l, with nad the mean losses of epoch
    ``warmup_epochs``, counted from 0; until it is over, w = 1 / l (the gradient of sum log l). Losses times a: the same
    update. Needs the user's count of epochs.

    With ``ideal``, and then for any losses: w = u softmax(u (l - ideal) / mu), homogeneous where mu and the ideal point
    scale with the losses; mu -> 0 is the Tchebycheff scalarization. The same as `SmoothTchebycheff` up to its units.

    Args:
        mu: temperature.
        ideal: lower bound of the losses, one number or one for each task.

    State:
        Of the logarithmic form: ``nadir`` [K, T] and `EpochMeans`.

    Example:
        >>> STCH(mu=1.0, ideal=0.0)(losses=torch.tensor([2.0, 0.5]))
        tensor([0.3396, 0.1604], dtype=torch.float64)
    """

    reads_preferences = False

    def __init__(
        self, mu: float = 1.0, *, ideal: float | Sequence[float] | None = None, warmup_epochs: int = 4
    ) -> None:
        super().__init__()
        self.mu = check_positive("mu", mu)
        self.ideal = None if ideal is None else check_per_task("ideal", ideal)
        self.warmup_epochs = check_count("warmup_epochs", warmup_epochs, 0)
        self.needs = Needs.LOSSES | (Needs.EPOCHS if ideal is None else Needs.NOTHING)
        self.loss_domain = LossDomain.POSITIVE if ideal is None else LossDomain.ANY
        self.degree = 0.0 if ideal is None else None
        self.means = EpochMeans()

    def _settings_of_tasks(self) -> dict[str, PerTask | None]:
        return {"ideal": self.ideal}

    def _initial_state(self, ones: Tensor) -> State:
        if self.ideal is not None:
            return {}
        return {"nadir": torch.zeros_like(ones), **self.means.start(ones)}

    def _weights(self, context: WeightingContext) -> Tensor:
        assert context.losses is not None
        if self.ideal is not None:
            scaled = context.preferences * (context.losses - self._numbers["ideal"]) / self.mu
            return context.preferences * torch.softmax(scaled, -1)
        self._find_nadir(context.epoch, context.losses)
        nadir = self._state["nadir"]
        logs = context.losses.log() - torch.where(nadir > 0, nadir, 1.0).log()
        smooth = logs.shape[1] * torch.softmax(logs / self.mu, -1)
        return torch.where(nadir > 0, smooth, 1.0) / context.losses

    def _find_nadir(self, epoch: int, losses: Tensor) -> None:
        before, finished = self._state["epoch_now"], self._state["epochs_finished"]
        self.means.see(self._state, epoch, losses)
        due = (self._state["epochs_finished"] > finished) & (before >= self.warmup_epochs)
        found = due & (self._state["nadir"] == 0)
        self._state["nadir"] = torch.where(found, self._state["epoch_last"], self._state["nadir"])
