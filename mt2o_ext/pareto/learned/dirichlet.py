"""Random preferences from a Dirichlet distribution, by a generator of the caller's."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["dirichlet"]


def dirichlet(concentration: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One draw from Dirichlet(concentration), float64 [T] on the CPU; its sum is 1.

    torch.distributions takes no generator. Gamma numbers by Marsaglia and Tsang ("A simple method for generating gamma
    variables", ACM TOMS 2000), normalised as logarithms: for small concentrations all of them may be below the least
    float, and their shares are numbers all the same.

    Args:
        concentration: float64 [T] on the CPU, positive.
        generator: one of the CPU; torch's default one where None.
    """
    d = concentration + 2.0 / 3.0  # of Gamma(concentration + 1), which the method needs to be at least 1
    c = (9.0 * d).rsqrt()
    accepted, volume = torch.zeros_like(d, dtype=torch.bool), torch.ones_like(d)
    while not accepted.all():
        normal = torch.randn(d.shape, dtype=torch.float64, generator=generator)
        uniform = torch.rand(d.shape, dtype=torch.float64, generator=generator)
        v = (1.0 + c * normal) ** 3
        below = uniform.log() < normal**2 / 2.0 + d - d * v + d * v.clamp(min=1e-300).log()
        found = (v > 0.0) & below & ~accepted
        volume = torch.where(found, v, volume)
        accepted = accepted | found
    # Gamma(a) = Gamma(a + 1) U^(1 / a).
    uniform = torch.rand(d.shape, dtype=torch.float64, generator=generator).clamp(min=math.ulp(0.0))
    return torch.softmax((d * volume).log() + uniform.log() / concentration, 0)
