"""What the tests of the transfer rules share: rules, Grams with a known answer, comparisons."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from mt2o_ext.transfer import (
    MGD,
    CrossLearning,
    DistanceDecrease,
    GumbelPrior,
    Hat,
    Mean,
    Neighbours,
    Spectral,
    TransferContext,
    TransferRule,
)

RULES = {
    "hat": lambda: Hat(),
    "hat of degree 2": lambda: Hat(degree=2, rate=0.7),
    "spectral": lambda: Spectral(),
    "neighbours": lambda: Neighbours(0.3, width=0.2),
    "two nearest neighbours": lambda: Neighbours(0.3, width=0.2, nearest=2),
    "mean": lambda: Mean(0.1),
    "mgd": lambda: MGD(),
    "distance decrease": lambda: DistanceDecrease(),
    "cross-learning": lambda: CrossLearning(eps=3.0),
    "gumbel prior": lambda: GumbelPrior(0.3, generator=generator(7)),
    "gumbel prior without noise": lambda: GumbelPrior(0.3, noise=False),
}
RANDOM = ("gumbel prior",)
SYMMETRIC = ("hat", "hat of degree 2", "spectral", "mean", "mgd", "cross-learning")


def every_rule(names=tuple(RULES)):
    return pytest.mark.parametrize("make", [RULES[name] for name in names], ids=list(names))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def centred_gram(*segments: Tensor) -> Tensor:
    """[S, K, K] for parameters [K, P_s] per segment."""
    offsets = [segment - segment.mean(0) for segment in segments]
    return torch.stack([offset @ offset.T for offset in offsets])


def context(
    preferences: Tensor, gram: Tensor | None = None, step: int = 0, lr: float = 0.1, initial_lr: float = 0.1
) -> TransferContext:
    return TransferContext(
        preferences, gram, None, step, lr=torch.tensor(lr, dtype=torch.float64), initial_lr=initial_lr
    )


def matrices(rule: TransferRule, preferences: Tensor, grams: list[Tensor]) -> list[Tensor]:
    """The rule's matrix for each Gram in turn, always as [S, K, K]."""
    rule.bind(preferences)
    answers = [rule.matrix(context(preferences, gram, step)) for step, gram in enumerate(grams)]
    return [answer if answer.dim() == 3 else answer[None] for answer in answers]


def noisy_grams(num_subproblems: int = 10) -> list[Tensor]:
    """Two transfers, two segments of very different scale, getting closer."""
    small, large = normal(num_subproblems, 40), 1e3 * normal(num_subproblems, 60, seed=1)
    return [centred_gram(small, large), centred_gram(0.5 * small, 0.9 * large)]


def simplex_lattice(partitions: int, num_tasks: int) -> Tensor:
    corners = itertools.product(range(partitions + 1), repeat=num_tasks)
    return torch.tensor([c for c in corners if sum(c) == partitions], dtype=torch.float64) / partitions


def identity(num_subproblems: int) -> Tensor:
    return torch.eye(num_subproblems, dtype=torch.float64)


def assert_close(actual: Tensor, expected: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)
