"""Random quadratic tasks with known optima, in float64: the oracle of the theory and of the optimizers' tests."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Quadratics:
    """Tasks L_t(theta) = (1/2) (theta - c_t)^T A_t (theta - c_t), every A_t with its spectrum in [mu, smoothness].

    curvatures: A [T, P, P]; centres: c [T, P].
    """

    curvatures: Tensor
    centres: Tensor
    mu: float
    smoothness: float

    def losses(self, theta: Tensor) -> Tensor:
        """[K, T] for parameters [K, P]."""
        offset = theta[:, None] - self.centres
        return torch.einsum("ktp,tpq,ktq->kt", offset, self.curvatures, offset) / 2

    def gradients(self, theta: Tensor) -> Tensor:
        """J [K, T, P] for parameters [K, P]."""
        return torch.einsum("tpq,ktq->ktp", self.curvatures, theta[:, None] - self.centres)

    def gradient(self, theta: Tensor, preferences: Tensor) -> Tensor:
        """The gradients of the subproblems' f_k = sum_t w_kt L_t, [K, P]."""
        return torch.einsum("kt,ktp->kp", preferences, self.gradients(theta))

    def curvature(self, preferences: Tensor) -> Tensor:
        """The Hessians of the subproblems, [K, P, P]."""
        return torch.einsum("kt,tpq->kpq", preferences, self.curvatures)

    def optimum(self, preferences: Tensor) -> Tensor:
        """The subproblems' minimisers theta*_k, [K, P]."""
        pull = torch.einsum("kt,tpq,tq->kp", preferences, self.curvatures, self.centres)
        return torch.linalg.solve(self.curvature(preferences), pull)


def random_quadratics(
    generator: torch.Generator, num_tasks: int, num_parameters: int, mu: float = 0.5, smoothness: float = 4.0
) -> Quadratics:
    """Tasks with random axes; the smallest and the largest curvature of each are mu and smoothness."""
    noise = torch.randn(num_tasks, num_parameters, num_parameters, dtype=torch.float64, generator=generator)
    axes, _ = torch.linalg.qr(noise)
    spectra = torch.rand(num_tasks, num_parameters, dtype=torch.float64, generator=generator)
    spectra[:, 0], spectra[:, -1] = 0.0, 1.0
    spectra = mu + (smoothness - mu) * spectra
    curvatures = axes @ torch.diag_embed(spectra) @ axes.mT
    centres = torch.randn(num_tasks, num_parameters, dtype=torch.float64, generator=generator)
    return Quadratics((curvatures + curvatures.mT) / 2, centres, mu, smoothness)


def line_preferences(num_subproblems: int) -> Tensor:
    """Evenly spaced trade-offs between two tasks, [K, 2]."""
    first = torch.linspace(0, 1, num_subproblems, dtype=torch.float64)
    return torch.stack([first, 1 - first], dim=1)


def random_preferences(generator: torch.Generator, num_subproblems: int, num_tasks: int) -> Tensor:
    """Rows of the simplex, [K, T]."""
    weights = torch.rand(num_subproblems, num_tasks, dtype=torch.float64, generator=generator)
    return weights / weights.sum(1, keepdim=True)
