"""Preferences: K weight vectors on the simplex of T tasks, one for each subproblem.

Every function returns a fresh float64 tensor [K, T] on the CPU; its rows are non-negative and sum to 1, and row 0
favours task 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations, pairwise
from typing import Any

import torch
from torch import Tensor

from .checks import check_count, check_simplex


def even(num_subproblems: int, eps: float = 0.0) -> Tensor:
    """Two tasks: K rows evenly spaced from task 0 to task 1, clipped to [eps, 1 - eps]; for K = 1 the middle.

    Both ends are included. `eps` must lie below the spacing 1 / (K - 1), else the clipping would make rows equal.
    """
    check_count("num_subproblems", num_subproblems)
    if num_subproblems == 1:
        return torch.full((1, 2), 0.5, dtype=torch.float64)
    if not 0.0 <= eps < min(1.0 / (num_subproblems - 1), 0.5):
        raise ValueError(
            f"expected eps >= 0 and below {min(1.0 / (num_subproblems - 1), 0.5):g}, the spacing of the rows, got "
            f"{eps}: lower it, since with more clipping rows would be equal"
        )
    # Not linspace: these are the exact quotients, so that row k is the mirror image of row K - 1 - k.
    steps = torch.arange(num_subproblems, dtype=torch.float64)
    return (torch.stack([steps.flip(0), steps], 1) / (num_subproblems - 1)).clamp(eps, 1.0 - eps)


def das_dennis(num_tasks: int, partitions: int) -> Tensor:
    """The simplex lattice: all rows whose entries are multiples of 1 / partitions.

    K = binomial(partitions + T - 1, T - 1), in descending lexicographic order. With partitions < T no row is in the
    interior of the simplex: prefer `riesz_energy` then. Source: Das and Dennis, "Normal-boundary intersection", SIAM J.
    Optim. 1998.
    """
    check_count("num_tasks", num_tasks)
    check_count("partitions", partitions)
    slots = partitions + num_tasks - 1
    rows = []  # T - 1 bars among the slots cut the partitions into T parts
    for bars in combinations(range(slots), num_tasks - 1):
        edges = (-1, *bars, slots)
        rows.append([right - left - 1 for left, right in pairwise(edges)])
    return torch.tensor(sorted(rows, reverse=True), dtype=torch.float64) / partitions


def riesz_energy(num_subproblems: int, num_tasks: int, seed: int = 1) -> Tensor:
    """K well-spread rows for any K >= T >= 2, the corners of the simplex included, in descending lexicographic order.

    Minimises the Riesz s-energy with pymoo (the `pareto` extra); takes about a second, and repeated calls are free.
    Source: Blank et al., "Generating well-spaced points on a unit simplex", IEEE Trans. Evol. Comput. 2021.
    """
    check_count("num_subproblems", num_subproblems)
    check_count("num_tasks", num_tasks)
    if not num_subproblems >= num_tasks >= 2:
        raise ValueError(
            f"expected at least 2 tasks and a subproblem for each, got {num_subproblems} subproblems and {num_tasks} "
            "tasks: take more subproblems or write the preferences [K, T] yourself"
        )
    return torch.tensor(_riesz_rows(num_subproblems, num_tasks, seed), dtype=torch.float64)


@lru_cache(maxsize=64)
def _riesz_rows(num_subproblems: int, num_tasks: int, seed: int) -> tuple[tuple[float, ...], ...]:
    try:
        from pymoo.util.ref_dirs import get_reference_directions
    except ImportError as error:
        raise ImportError(
            'riesz_energy needs pymoo: pip install "mt2o_ext[pareto]", or take das_dennis(num_tasks, partitions)'
        ) from error
    rows = get_reference_directions("energy", num_tasks, num_subproblems, seed=seed)
    return tuple(sorted((tuple(row) for row in rows.tolist()), reverse=True))


def default_preferences(num_subproblems: int, num_tasks: int) -> Tensor:
    """The rows an optimizer takes when the user gives none [K, T]: `even` for two tasks, `riesz_energy` for more.

    No weight is zero, because a task without weight gets no gradient: its head would keep its initial values, and a
    Tchebycheff row would never see its loss. The least weight is 0.01, or a quarter of the spacing where rows are
    closer than that: small enough to leave the ends of the front in place, large enough to train the neglected head.
    """
    check_count("num_subproblems", num_subproblems)
    check_count("num_tasks", num_tasks)
    if num_tasks == 1 or num_subproblems == 1:
        return torch.full((num_subproblems, num_tasks), 1.0 / num_tasks, dtype=torch.float64)
    eps = min(0.01, 0.25 / (num_subproblems - 1))
    if num_tasks == 2:
        return even(num_subproblems, eps)
    return eps + (1.0 - num_tasks * eps) * riesz_energy(num_subproblems, num_tasks)


def check_preferences(preferences: Tensor | Sequence[Sequence[float]], num_subproblems: int, num_tasks: int) -> Tensor:
    """A validated copy, [K, T] float64 on the CPU, with sums that were within 1e-6 of 1 made exact.

    Checking the result again changes nothing.

    Raises:
        TypeError: for something that is no matrix of numbers.
        ValueError: for a wrong shape or rows that are off the simplex.
    """
    try:
        checked = torch.as_tensor(preferences, dtype=torch.float64).detach().cpu().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"expected preferences as a tensor or nested list [K, T] of numbers, got {type(preferences).__name__}: "
            f"give one row of task weights for each subproblem ({error})"
        ) from error
    if checked.shape != (num_subproblems, num_tasks):
        raise ValueError(
            f"expected preferences of shape ({num_subproblems}, {num_tasks}), got {tuple(checked.shape)}: give one row "
            "for each subproblem and one column for each task"
        )
    check_simplex(checked)
    sums = checked.sum(1)
    rounding = num_tasks * torch.finfo(torch.float64).eps
    return torch.where(((sums - 1.0).abs() > rounding)[:, None], checked / sums[:, None], checked)


def check_point(preference: Any, num_tasks: int) -> Tensor:
    """The weights of the tasks at one point of the simplex, validated, [1, T] float64 on the CPU.

    Raises:
        ValueError: for anything but T weights on the simplex.
    """
    try:
        weights = torch.as_tensor(preference, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        weights = torch.zeros((), dtype=torch.float64)
    if weights.shape != (num_tasks,):
        raise ValueError(
            f"expected a preference for at() as {num_tasks} weights of the tasks, got {preference!r:.80}: give one "
            "number for each task, which sum to 1"
        )
    return check_preferences(weights.unsqueeze(0), 1, num_tasks)
