"""FAMO: fast adaptive multitask optimization."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import PerTask, check_per_task
from ..loss_domain import LossDomain
from .base import Weighting
from .context import Needs, WeightingContext
from .learning import TableAdam
from .registry import register
from .state import State


@register("famo")
class FAMO(Weighting):
    """Fast adaptive multitask optimization (Liu, Feng, Stone and Liu, NeurIPS 2023, arXiv 2306.03792).

    z = softmax(xi), d = l - lower_bound: w = (z / d) / sum(z / d). After the step, on the same mini-batch:
    Adam on xi with the gradient (diag z - z z^T) (log d_before - log d_after). The sum is 1. Homogeneous. Feedback
    with d <= 0 teaches nothing.

    Args:
        lr, weight_decay: of the Adam that learns xi. weight_decay is 1e-3 in LibMTL; the authors use 1e-2 and 1e-5.
        lower_bound: of the losses, one number or one for each task.

    State:
        ``logits`` [K, T] and Adam's moments.

    Example:
        >>> FAMO()(losses=torch.tensor([2.0, 0.5]))
        tensor([0.2000, 0.8000], dtype=torch.float64)
    """

    reads_preferences = False
    needs = Needs.LOSSES | Needs.FEEDBACK
    loss_domain = LossDomain.ABOVE_LOWER_BOUND

    def __init__(
        self, *, lr: float = 0.025, weight_decay: float = 1e-3, lower_bound: float | Sequence[float] = 0.0
    ) -> None:
        super().__init__()
        self.adam = TableAdam(lr, weight_decay)
        self.lower_bound = check_per_task("lower_bound", lower_bound)

    def _settings_of_tasks(self) -> dict[str, PerTask | None]:
        return {"lower_bound": self.lower_bound}

    @property
    def _bound(self) -> Tensor:
        return self._numbers["lower_bound"]

    def _initial_state(self, ones: Tensor) -> State:
        return {"logits": torch.zeros_like(ones), **self.adam.start(ones)}

    def _judged(self, context: WeightingContext, losses: Tensor) -> Tensor:
        return losses - self._bound

    def _weights(self, context: WeightingContext) -> Tensor:
        assert context.losses is not None
        # The softmax of xi - log d is (z / d) / sum(z / d), without its overflow.
        return torch.softmax(self._state["logits"] - (context.losses - self._bound).log(), -1)

    def _after_step(self, losses_before: Tensor, losses_after: Tensor) -> None:
        before, after = losses_before - self._bound, losses_after - self._bound
        valid = ((before > 0) & (after > 0)).all(-1)
        gain = torch.where(valid[:, None], before, 1.0).log() - torch.where(valid[:, None], after, 1.0).log()
        share = torch.softmax(self._state["logits"], -1)
        old = dict(self._state)
        self.adam.step(self._state, "logits", share * (gain - (share * gain).sum(-1, keepdim=True)))
        self._keep(valid, old)
