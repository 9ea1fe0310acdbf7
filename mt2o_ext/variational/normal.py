"""Formulas of independent normal distributions, those of K tasks as rows: means and variances [K, P]."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["divergence", "mixed_moments", "mixing_slopes", "pulled_mean", "pulled_variance"]


def mixed_moments(weights: Tensor, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance [K, P] of sum_j alpha_kj x_j with independent x_j ~ N(m_j, v_j).

    m_k = sum_j alpha_kj m_j and v_k = sum_j alpha_kj^2 v_j: the weighted sum of the variables, not the mixture of their
    densities.

    Args:
        weights: alpha [K, K].
        means: [K, P].
        variances: [K, P].
    """
    return weights @ means, weights.square() @ variances


def divergence(mean: Tensor, variance: Tensor, prior_mean: Tensor, prior_variance: Tensor) -> Tensor:
    """Return KL(N(mean, variance) | N(prior_mean, prior_variance)) [K], the sum over the columns of [K, P]."""
    ratio = variance / prior_variance
    return ((mean - prior_mean).square() / prior_variance + ratio - ratio.log() - 1).sum(-1) / 2


def mixing_slopes(weights: Tensor, means: Tensor, variances: Tensor, floor: float = 0.0) -> Tensor:
    """Return the gradient [K, K] of the divergence of each row from `mixed_moments` of all, by the weights alpha.

    dKL_k / dalpha_kj = sum_i m_j (m_p - m_k) / v_p + alpha_kj v_j (1 / v_p - v_k / v_p^2 - (m_p - m_k)^2 / v_p^2), over
    the columns i, with the moments m_p, v_p of the mixture k: two products [K, P] by [P, K].

    Args:
        weights: alpha [K, K].
        means: [K, P].
        variances: [K, P].
        floor: added to v_k and v_p in the divergence.
    """
    mixed_mean, mixed_variance = mixed_moments(weights, means, variances)
    mixed_variance = mixed_variance + floor
    apart = (mixed_mean - means) / mixed_variance
    spread = 1 / mixed_variance - (variances + floor) / mixed_variance.square() - apart.square()
    return apart @ means.mT + weights * (spread @ variances.mT)


def pulled_mean(mean: Tensor, prior_mean: Tensor, prior_variance: Tensor, amount: float) -> Tensor:
    """Return the proximal step of the divergence in the mean: the least (x - mean)^2 / 2 + amount KL(x)."""
    share = amount / prior_variance
    return (mean + share * prior_mean) / (1 + share)


def pulled_variance(variance: Tensor, prior_variance: Tensor, amount: float) -> Tensor:
    """Return the proximal step of the divergence in the variance: the least (x - variance)^2 / 2 + amount KL(x), x > 0.

    It is the positive root of x^2 - (variance - amount / (2 prior_variance)) x - amount / 2.
    """
    half = (variance - amount / (2 * prior_variance)) / 2
    root = torch.sqrt(half.square() + amount / 2)
    # The root that does not cancel: half + root loses all digits where half is a large negative number.
    return torch.where(half > 0, half + root, (amount / 2) / (root - half))
