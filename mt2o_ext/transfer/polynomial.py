"""Orthonormal polynomials of the preferences: the modes of a front."""

from __future__ import annotations

import torch
from torch import Tensor

# A polynomial is new on the given points when this share of it is outside the span of the earlier ones.
_RANK_TOLERANCE = 1e-8


def orthonormal_polynomials(preferences: Tensor, max_degree: int | None = None) -> tuple[Tensor, list[int]]:
    """An orthonormal basis of the polynomials in the preferences, restricted to the K given points.

    Multivariate Arnoldi: the columns of one degree times the variables, made orthogonal to everything before, are the
    next degree (Brubeck, Nakatsukasa, Trefethen, "Vandermonde with Arnoldi", 2021), so no power is ever formed and
    high degrees stay well conditioned.

    Returns:
        Phi [K, R] float64 on the preferences' device and the R degrees, ascending; column 0 is constant, the first
        columns up to a degree span all polynomials of that degree. R <= K, and R = K where all points differ and
        ``max_degree`` is None.
    """
    num_points = len(preferences)
    # The rows sum to 1: the last task's weight is a linear function of the others and the constant.
    points = preferences.detach().cpu()[:, :-1]
    low, high = points.aminmax(dim=0)
    points = (2 * points - low - high)[:, high > low] / (high - low)[high > low]
    phi = torch.full((num_points, 1), num_points**-0.5, dtype=torch.float64)
    degrees = [0]
    newest = phi
    while newest.shape[1] > 0 and phi.shape[1] < num_points and degrees[-1] != max_degree:
        before = phi.shape[1]
        for candidate in (newest[:, :, None] * points[:, None, :]).flatten(1).T:
            residual = candidate
            for _ in range(2):  # twice is enough for orthogonality to rounding
                residual = residual - phi @ (phi.T @ residual)
            if residual.norm() > _RANK_TOLERANCE * candidate.norm():
                phi = torch.cat([phi, (residual / residual.norm())[:, None]], dim=1)
        newest = phi[:, before:]
        degrees += [degrees[-1] + 1] * newest.shape[1]
    return phi.to(preferences.device), degrees


def symmetrized(matrix: Tensor) -> Tensor:
    """The symmetric part: products of floats are symmetric only to rounding."""
    return (matrix + matrix.mT) / 2
