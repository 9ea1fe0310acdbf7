"""Hard Gram matrices as parameters of tests, and what is measured on them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from support.gram_samplers import KINDS, GramProblem, gram_problem
from support.weighting.problems import normal

SIZES = (2, 3, 8, 40)


def every_problem(kinds=tuple(KINDS), sizes=(1, *SIZES, 64)) -> pytest.MarkDecorator:
    problems = [gram_problem(kind, tasks, seed=1) for kind in kinds for tasks in sizes]
    return pytest.mark.parametrize("problem", problems, ids=repr)


def preferences_of(tasks: int, seed: int = 3) -> Tensor:
    parts = 0.1 + normal(tasks, seed=seed).abs()
    return parts / parts.sum()


def products(problem: GramProblem, weights: Tensor) -> Tensor:
    """<g_t, d> / |g_t|, 0 for rows that are zero."""
    lengths = problem.lengths
    along = problem.rows @ (problem.rows.T @ weights)
    return torch.where(lengths > 0, along / torch.where(lengths > 0, lengths, 1.0), 0.0)
