"""Mixtures of all others with weights drawn by a Gumbel-softmax: of the rows of a front, or of the tasks of a model."""

from __future__ import annotations

import torch
from torch import Tensor

from .gradients.options import own_generator
from .weighting.draw import Draw

__all__ = ["by_logits", "gumbel_noise", "mixing_weights", "new_key"]

KEYS = 2**53  # a key is a whole number that float64, in which states travel, holds exactly


def new_key(generator: torch.Generator | None) -> int:
    """Return the key of a stream of random numbers, drawn from `generator`, or from torch's default one if None.

    Raises:
        TypeError: for anything but a generator or None.
    """
    source = own_generator(generator)
    return int(torch.randint(KEYS, (), dtype=torch.int64, device=source.device, generator=source))


def gumbel_noise(key: Tensor, draws: Tensor, num_rows: int) -> Tensor:
    """Return independent numbers of the standard Gumbel distribution, float64 [K, K].

    They depend on the key and the count of draws only, so that a state of these two numbers resumes a run.

    Args:
        key: int64 [].
        draws: int64 [], the number of draws before this one.
        num_rows: K.
    """
    rows = torch.arange(num_rows, dtype=torch.int64, device=key.device)
    return -Draw(key).exponential(0, draws, rows[:, None], rows).log()


def mixing_weights(logits: Tensor, temperature: float | Tensor, noise: Tensor | None = None) -> Tensor:
    """Return alpha [K, K]: row k is softmax((logits_k + noise_k) / temperature) over all j != k, and 0 at j = k.

    Args:
        logits: [K, K], K >= 2; the diagonal does not count.
        temperature: > 0.
        noise: [K, K] from `gumbel_noise`; None gives the plain softmax.
    """
    scores = (logits if noise is None else logits + noise) / temperature
    own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    return scores.masked_fill(own, -torch.inf).softmax(-1)


def by_logits(weights: Tensor, by_weights: Tensor, temperature: float | Tensor) -> Tensor:
    """Return the gradient by the logits [K, K] of a function whose gradient by `mixing_weights` is `by_weights`."""
    return weights * (by_weights - (weights * by_weights).sum(-1, keepdim=True)) / temperature
