"""The weighted sum of the losses less their cosine with the preference."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import check_real
from .base import Scalarization
from .registry import register


@register("cosmos")
@dataclass(frozen=True, repr=False)
class COSMOS(Scalarization):
    """sum_t w_t l_t - lam cos(w, l); coefficients w - lam (w / (|w| |l|) - cos(w, l) l / |l|^2).

    The cosine keeps the losses of different preferences apart where the sum alone would give all of them the same.
    Source: Ruchte and Grabocka, "Scalable Pareto front approximation for deep multi-objective learning", ICDM 2021
    (arXiv 2103.13392). The two terms pull in opposite directions: a larger w_t asks the sum for a *smaller* loss and
    the cosine for a *larger* share of the loss. Which one wins depends on `lam` and on the shape of the front, so look
    at the front that comes out before you rely on the order of its preferences.

    Losses that are all 0 have no direction: their cosine counts as 0 (the published code adds an absolute 1e-8).

    Args:
        lam: the weight of the cosine, in the units of the losses; not negative. The paper takes 0.01 to 8 by data set,
            2 for Multi-MNIST.

    Example:
        >>> scalarization = COSMOS(lam=2.0)
        >>> losses, preference = torch.tensor([2.0, 0.5]), torch.tensor([0.3, 0.7])
        >>> scalarization(losses, preference)
        tensor(-0.2602)
        >>> scalarization.coefficients(losses, preference)
        tensor([ 0.4873, -0.0493], dtype=torch.float64)
    """

    lam: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_real("lam", self.lam)

    def _value(self, losses: Tensor, preferences: Tensor) -> Tensor:
        unit, length, known = self._units(losses, preferences)
        cosine = ((unit * losses).sum(-1, keepdim=True) / length).where(known, 0.0)
        return (preferences * losses).sum(-1) - self.lam * cosine.squeeze(-1)

    def _gradient(self, losses: Tensor, preferences: Tensor) -> Tensor:
        unit, length, known = self._units(losses, preferences)
        along = (unit * losses).sum(-1, keepdim=True) / length
        return preferences - self.lam * ((unit - along * losses / length) / length).where(known, 0.0)

    @staticmethod
    def _units(losses: Tensor, preferences: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The preference of length 1 [..., T], the length of the losses [..., 1] and whether it is not 0."""
        known = (losses != 0.0).any(-1, keepdim=True)
        length: Tensor = torch.linalg.vector_norm(losses.where(known, 1.0), dim=-1, keepdim=True)
        return preferences / torch.linalg.vector_norm(preferences, dim=-1, keepdim=True), length, known
