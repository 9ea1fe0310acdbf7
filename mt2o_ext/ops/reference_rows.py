"""Rows of one subproblem at length one, with which the solvers' reference begins."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

EPSILON = 2.0**-52


class Rows:
    """The rows of one subproblem that are not zero, brought to length one, from their Gram matrix [T, T].

    ``cosines`` C and ``lengths`` s are those of gram / scale, scale a power of four near the mean of the diagonal.
    """

    def __init__(self, gram: Tensor) -> None:
        diagonal = gram.diagonal()
        self.tasks = len(gram)
        self.present = (diagonal > 0).nonzero().flatten()
        self.scale = power_of_four(float(diagonal.sum()) / self.tasks)
        kept = gram[self.present][:, self.present] / self.scale
        self.lengths = kept.diagonal().sqrt()
        self.cosines = kept / self.lengths / self.lengths[:, None]
        self.cosines.fill_diagonal_(1.0)

    def __len__(self) -> int:
        return len(self.present)

    @property
    def gram(self) -> Tensor:
        """The Gram matrix of these rows, over the scale."""
        return self.cosines * self.lengths * self.lengths[:, None]

    def all_tasks(self, values: Tensor) -> Tensor:
        """The values of the rows that are there, zero for the others."""
        result = torch.zeros(self.tasks, dtype=torch.float64)
        result[self.present] = values
        return result


def least_rtol(count: int) -> float:
    """Relative error of float64 arithmetic in combinations of so many rows, whatever the rows are accurate to."""
    return 8 * EPSILON * count


def power_of_four(value: float) -> float:
    """A power of four near the value; 1 for 0."""
    return math.ldexp(1.0, math.frexp(value)[1] // 2 * 2) if value > 0 else 1.0


def solved(weights: Tensor, solver: Callable[..., Tensor], gram: Tensor, *others: Tensor) -> None:
    """weights[k] = solver(rows of gram[k], others[k]...); NaN where an input is not finite, zero where gram is."""
    for k in range(len(gram)):
        given = [tensor[k].cpu() for tensor in (gram, *others)]
        if not all(bool(torch.isfinite(tensor).all()) for tensor in given):
            weights[k] = math.nan
        elif not bool((given[0].diagonal() > 0).any()):
            weights[k] = 0.0
        else:
            weights[k] = solver(Rows(given[0]), *given[1:])
