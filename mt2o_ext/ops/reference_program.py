"""A small linear program by the textbook's simplex method: two phases, full tableau, Bland's rule."""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = 1e-11


def program(objective: Tensor, matrix: Tensor, bound: Tensor) -> Tensor | None:
    """argmax objective'w over w >= 0 with sum w = 1 and matrix w >= bound; None where no w is feasible."""
    rows, columns = matrix.shape
    # Equations [matrix, -surplus, artificial] = bound and [1, 0, artificial] = 1, signs such that the right is >= 0.
    equations = torch.zeros(rows + 1, columns + rows, dtype=torch.float64)
    equations[:rows, :columns], equations[:rows, columns:] = matrix, -torch.eye(rows, dtype=torch.float64)
    equations[rows, :columns] = 1.0
    right = torch.cat([bound, torch.ones(1, dtype=torch.float64)])
    sign = torch.where(right < 0, -1.0, 1.0)
    tableau = torch.cat(
        [equations * sign[:, None], torch.eye(rows + 1, dtype=torch.float64), (right * sign)[:, None]], dim=1
    )
    variables = columns + rows
    basis = list(range(variables, variables + rows + 1))
    cost = torch.zeros(tableau.shape[1] - 1, dtype=torch.float64)
    cost[variables:] = -1.0
    _maximise(tableau, basis, cost, variables + rows + 1)
    if float(sum(tableau[i, -1] for i, b in enumerate(basis) if b >= variables)) > TOLERANCE:
        return None
    for i, b in enumerate(basis):  # artificial variables that are zero leave, where another can take their place
        if b >= variables:
            column = int(tableau[i, :variables].abs().argmax())
            if abs(float(tableau[i, column])) > TOLERANCE:
                _pivot(tableau, basis, i, column)
    cost = torch.zeros_like(cost)
    cost[:columns] = objective / objective.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    _maximise(tableau, basis, cost, variables)
    w = torch.zeros(columns, dtype=torch.float64)
    for i, b in enumerate(basis):
        if b < columns:
            w[b] = tableau[i, -1].clamp_min(0)
    return w / w.sum()


def _maximise(tableau: Tensor, basis: list[int], cost: Tensor, allowed: int) -> None:
    for _ in range(100 * len(basis)):
        reduced = cost - cost[basis] @ tableau[:, :-1]
        improving = (reduced[:allowed] > TOLERANCE).nonzero()
        if len(improving) == 0:
            return
        column = int(improving[0])
        entries = tableau[:, column]
        ratios = torch.where(entries > TOLERANCE, tableau[:, -1].clamp_min(0) / entries, torch.inf)
        if not bool((ratios < torch.inf).any()):
            return
        ties = (ratios <= ratios.min() * (1 + TOLERANCE)).nonzero().flatten().tolist()
        _pivot(tableau, basis, min(ties, key=lambda i: basis[i]), column)


def _pivot(tableau: Tensor, basis: list[int], row: int, column: int) -> None:
    tableau[row] /= float(tableau[row, column])
    factors = tableau[:, column].clone()
    factors[row] = 0.0
    tableau -= factors[:, None] * tableau[row]
    basis[row] = column
