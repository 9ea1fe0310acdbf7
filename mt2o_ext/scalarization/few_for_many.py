"""Few models for many tasks: each task counts at the model that suits it best."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..checks import check_positive
from .base import FromIdeal
from .registry import register


@register("few-for-many")
@dataclass(frozen=True, repr=False)
class FewForMany(FromIdeal):
    """Smooth Tchebycheff set scalarization, STCH-Set: one number for all K models together, for T tasks, T > K say.

    Task t counts at its best model, q_t = -mu log sum_k exp(-f_kt / mu) with f = l - ideal, and the worst task counts:
    mu log sum_t exp(lam_t q_t / mu). The coefficient of loss t of model k is lam_t softmax_t(lam q / mu)
    softmin_k(f_kt / mu). So each model trains for the tasks that it is best at, and most for those that are worst off.
    K = 1 is `SmoothTchebycheff`.

    Source: Lin et al., "Few for many: Tchebycheff set scalarization for many-objective optimization" (arXiv
    2405.19650), known from its abstract; the coefficients are derived from the formula. Inferred: one `mu` for both
    smoothings. Ours: lam is the mean of the K rows of preferences, since these models have no preferences of their
    own; models whose losses are not finite (diverged, or not known yet) are left out for the others.

    Models that are equal get equal coefficients and stay equal: let them start apart. Blending the parameters of models
    that serve different tasks is of no use. So: `MT2OFused(..., transfer=None)`. The models of a bank run at once;
    where they run one by one, each goes by the last losses of the others (`coefficients_of_row`).

    Args:
        mu: positive, in the units of the losses: far below the differences between models only the best model of each
            task trains for it, far above them all models are alike.

    Example:
        >>> scalarization = FewForMany(mu=0.1)
        >>> losses = torch.tensor([[0.1, 0.2, 0.9], [0.8, 0.9, 0.3]])  # K = 2 models, T = 3 tasks
        >>> preferences = torch.full((3,), 1 / 3)
        >>> scalarization(losses, preferences)
        tensor(0.1801)
        >>> scalarization.coefficients(losses, preferences)  # the first model is for the tasks 0 and 1
        tensor([[7.6694e-02, 1.0703e-01, 3.6950e-04],
                [6.9936e-05, 9.7603e-05, 1.4907e-01]], dtype=torch.float64)
    """

    mu: float = 0.1

    whole_table: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("mu", self.mu, "it is how far models may differ and still count as equally good")

    def _value(self, losses: Tensor, preferences: Tensor) -> Tensor:
        weighted, _ = self._weighted(losses, preferences)
        worst = weighted.detach().amax(-1, keepdim=True)
        return worst.squeeze(-1) + self.mu * torch.logsumexp((weighted - worst) / self.mu, -1)

    def _gradient(self, losses: Tensor, preferences: Tensor) -> Tensor:
        weighted, behind = self._weighted(losses, preferences)
        worst = weighted.amax(-1, keepdim=True)
        of_task = preferences.mean(-2) * torch.softmax((weighted - worst) / self.mu, -1)
        return of_task.unsqueeze(-2) * torch.softmax(-behind / self.mu, -2)

    def _weighted(self, losses: Tensor, preferences: Tensor) -> tuple[Tensor, Tensor]:
        """lam_t q_t [..., T], and how far each model is behind the best one of each task [..., K, T]."""
        usable = losses.isfinite().all(-1, keepdim=True)
        known = losses.where(usable, math.inf)
        best = known.detach().amin(-2, keepdim=True)  # subtracted first, so that no quotient overflows for a small mu
        behind = known - best
        smallest = best.squeeze(-2) - self.mu * torch.logsumexp(-behind / self.mu, -2)
        return preferences.mean(-2) * smallest, behind
