"""Gram matrices of task gradients that are hard in every way we know of: for the solvers and for the weightings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

TASKS = (1, 2, 3, 5, 8, 16, 40, 64)
SCALES = (1e-8, 1e-3, 1.0, 1e3, 1e8)


@dataclass(frozen=True)
class GramProblem:
    """Task gradients J and their Gram matrix."""

    kind: str
    rows: Tensor  # float64 [T, P]: J

    @property
    def gram(self) -> Tensor:
        """float64 [T, T], exactly symmetric."""
        products = self.rows @ self.rows.T
        return products.tril() + products.tril(-1).T

    @property
    def tasks(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> Tensor:
        return self.rows.norm(dim=1)

    def __repr__(self) -> str:
        return f"GramProblem({self.kind}, T={self.tasks})"

    def scaled(self, factor: float) -> GramProblem:
        return GramProblem(self.kind, factor * self.rows)

    def permuted(self, permutation: Tensor) -> GramProblem:
        return GramProblem(self.kind, self.rows[permutation])


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def _powers_of_ten(generator: torch.Generator, count: int, low: float, high: float) -> Tensor:
    return 10.0 ** (low + (high - low) * torch.rand(count, 1, dtype=torch.float64, generator=generator))


def _random(tasks: int, generator: torch.Generator) -> Tensor:
    return _normal(generator, tasks, 2 * tasks + 3)


def _conflicting(tasks: int, generator: torch.Generator) -> Tensor:
    """Nearly every pair of rows has a negative inner product; their mean is short."""
    rows = _random(tasks, generator)
    return rows - 0.9 * rows.mean(0)


def _scaled(tasks: int, generator: torch.Generator) -> Tensor:
    return _random(tasks, generator) * _powers_of_ten(generator, tasks, -3, 0)


def _widely_scaled(tasks: int, generator: torch.Generator) -> Tensor:
    return _conflicting(tasks, generator) * _powers_of_ten(generator, tasks, -4, 4)


def _correlated(tasks: int, generator: torch.Generator) -> Tensor:
    """Cosines of about 0.9999."""
    return _normal(generator, 1, 2 * tasks + 3) + 0.01 * _random(tasks, generator)


def _duplicate(tasks: int, generator: torch.Generator) -> Tensor:
    """Every row but one occurs twice (T odd), some at other lengths."""
    rows = _random(tasks, generator)
    pairs = tasks // 2
    rows[:pairs] = rows[pairs : 2 * pairs]
    rows[: pairs // 2] *= 3.0
    return rows


def _opposite(tasks: int, generator: torch.Generator) -> Tensor:
    """Rows that are others' negatives, some at other lengths: the origin is in their convex hull (T > 1)."""
    rows = _random(tasks, generator)
    pairs = tasks // 2
    rows[:pairs] = -rows[pairs : 2 * pairs]
    rows[: pairs // 2] *= 3.0
    return rows


def _low_rank(tasks: int, generator: torch.Generator) -> Tensor:
    return _normal(generator, tasks, max(tasks // 3, 1))


def _zero(tasks: int, generator: torch.Generator) -> Tensor:
    """Every third row, and the first, is zero."""
    rows = _conflicting(tasks, generator)
    rows[::3] = 0.0
    return rows


def _all_zero(tasks: int, generator: torch.Generator) -> Tensor:
    return torch.zeros(tasks, 3, dtype=torch.float64)


KINDS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "random": _random,
    "conflicting": _conflicting,
    "scaled": _scaled,
    "widely scaled": _widely_scaled,
    "correlated": _correlated,
    "duplicate": _duplicate,
    "opposite": _opposite,
    "low rank": _low_rank,
    "zero": _zero,
    "all zero": _all_zero,
}
REGULAR = ("random", "conflicting", "scaled", "widely scaled", "correlated")  # rows are linearly independent
NOT_FINITE = (torch.nan, torch.inf, -torch.inf)


def gram_problem(kind: str, tasks: int, seed: int = 0, scale: float = 1.0) -> GramProblem:
    """Always the same for the same arguments."""
    generator = torch.Generator().manual_seed(1000 * seed + tasks)
    return GramProblem(kind, scale * KINDS[kind](tasks, generator))


def gram_problems(
    kinds: Sequence[str] = tuple(KINDS),
    tasks: Sequence[int] = tuple(range(1, 65)),
    scales: Sequence[float] = SCALES,
) -> st.SearchStrategy[GramProblem]:
    """Hypothesis' problems of these kinds, numbers of tasks and lengths of all rows."""
    return st.builds(
        gram_problem,
        st.sampled_from(kinds),
        st.sampled_from(tasks),
        st.integers(0, 2**20),
        st.sampled_from(scales),
    )


def spoiled(gram: Tensor, value: float, row: int, column: int) -> Tensor:
    """A copy with one entry (and its mirror) that is not finite."""
    copy = gram.clone()
    copy[..., row, column] = copy[..., column, row] = value
    return copy
