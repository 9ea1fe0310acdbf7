"""Random points of a simplex from a Dirichlet distribution, by a generator of the caller's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["dirichlet", "uniform_on_simplex"]


def dirichlet(concentration: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draws from Dirichlet(concentration), float64 [..., T] on the generator's device; rows sum to 1.

    torch.distributions takes no generator.  With all parameters 1 these are exponential numbers over their sums.  Else
    they are gamma numbers by Marsaglia and Tsang ("A simple method for generating gamma variables", ACM TOMS 2000),
    normalised as logarithms: for small concentrations all of them may be below the least float, and their shares are
    numbers all the same.

    Args:
        concentration: float64 [..., T] on the CPU, positive.
        generator: torch's default one of the CPU where None.
    """
    if bool((concentration == 1.0).all()):
        return uniform_on_simplex(concentration.shape, generator)
    device = torch.device("cpu") if generator is None else generator.device
    return torch.softmax(_log_gamma(concentration.to(device), generator), -1)


def uniform_on_simplex(shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
    """The same draws where all parameters are 1: float64 [..., T] of this shape, uniform on the simplex."""
    device = torch.device("cpu") if generator is None else generator.device
    parts = torch.empty(shape, dtype=torch.float64, device=device).exponential_(generator=generator)
    return parts / parts.sum(-1, keepdim=True)


def _log_gamma(shape: Tensor, generator: torch.Generator | None) -> Tensor:
    """Logarithms of draws from Gamma(shape), float64 like shape."""
    options: dict[str, Any] = {"device": shape.device, "generator": generator}
    d = shape + 2.0 / 3.0  # of Gamma(shape + 1), which the method needs to be at least 1
    c = (9.0 * d).rsqrt()
    accepted, volume = torch.zeros_like(d, dtype=torch.bool), torch.ones_like(d)
    while not accepted.all():
        normal = torch.randn(d.shape, dtype=torch.float64, **options)
        uniform = torch.rand(d.shape, dtype=torch.float64, **options)
        v = (1.0 + c * normal) ** 3
        below = uniform.log() < normal**2 / 2.0 + d - d * v + d * v.clamp(min=1e-300).log()
        found = (v > 0.0) & below & ~accepted
        volume = torch.where(found, v, volume)
        accepted = accepted | found
    # Gamma(a) = Gamma(a + 1) U^(1 / a).
    uniform = torch.rand(d.shape, dtype=torch.float64, **options).clamp(min=math.ulp(0.0))
    return (d * volume).log() + uniform.log() / shape
