"""The worst weighted loss, and its smooth form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import check_positive
from .base import FromIdeal
from .registry import register


@register("tchebycheff")
@dataclass(frozen=True, repr=False)
class Tchebycheff(FromIdeal):
    """max_t w_t f_t with f = l - ideal.

    The coefficient is w_t at the maximum (the lowest task on ties) and 0 elsewhere.

    Example:
        >>> scalarization = Tchebycheff()
        >>> losses, preference = torch.tensor([2.0, 0.5]), torch.tensor([0.3, 0.7])
        >>> scalarization(losses, preference)
        tensor(0.6000)
        >>> scalarization.coefficients(losses, preference)
        tensor([0.3000, 0.0000], dtype=torch.float64)
    """

    def _value(self, losses: Tensor, preferences: Tensor) -> Tensor:
        weighted = preferences * losses
        return weighted.gather(-1, weighted.argmax(-1, keepdim=True)).squeeze(-1)

    def _gradient(self, losses: Tensor, preferences: Tensor) -> Tensor:
        worst = (preferences * losses).argmax(-1, keepdim=True)
        return torch.zeros_like(losses).scatter(-1, worst, preferences.gather(-1, worst))


@register("smooth-tchebycheff")
@dataclass(frozen=True, repr=False)
class SmoothTchebycheff(FromIdeal):
    """mu log sum_t exp(w_t f_t / mu) with f = l - ideal; coefficients w softmax(w f / mu).

    Between `Tchebycheff` and `Tchebycheff` + mu log T. Source: Lin et al., "Smooth Tchebycheff scalarization for
    multi-objective optimization", ICML 2024.

    Args:
        mu: positive, in the units of the losses: far below the differences between the weighted losses it is
            `Tchebycheff`, far above them it is `Linear` divided by T.

    Example:
        >>> scalarization = SmoothTchebycheff(mu=0.1)
        >>> losses, preference = torch.tensor([2.0, 0.5]), torch.tensor([0.3, 0.7])
        >>> scalarization(losses, preference)
        tensor(0.6079)
        >>> scalarization.coefficients(losses, preference)
        tensor([0.2772, 0.0531], dtype=torch.float64)
    """

    mu: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("mu", self.mu, "for the limit mu -> 0 take Tchebycheff()")

    def _value(self, losses: Tensor, preferences: Tensor) -> Tensor:
        weighted = preferences * losses
        worst = weighted.detach().amax(-1, keepdim=True)
        return worst.squeeze(-1) + self.mu * torch.logsumexp((weighted - worst) / self.mu, -1)

    def _gradient(self, losses: Tensor, preferences: Tensor) -> Tensor:
        weighted = preferences * losses
        worst = weighted.amax(-1, keepdim=True)  # subtracted first, so that no quotient overflows for a small mu
        return preferences * torch.softmax((weighted - worst) / self.mu, -1)
