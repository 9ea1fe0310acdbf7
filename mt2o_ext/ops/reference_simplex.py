"""The least point of a quadratic over a simplex in plain torch, by a primal active set."""

from __future__ import annotations

import torch
from torch import Tensor

from .reference_rows import EPSILON, Rows

__all__ = ["on_simplex", "towards"]


def on_simplex(rows: Rows, q: Tensor, size: float) -> Tensor:
    """argmin v'Qv/2 + q'v over v >= 0 with sum v = size."""
    gram = rows.gram
    v = torch.zeros_like(q)
    start = int((size * gram.diagonal() / 2 + q).argmin())
    v[start] = size
    support = [start]
    for _ in range(4 * len(rows) + 16):
        gradient = gram @ v + q
        level = v @ gradient / size
        rounding = 8 * EPSILON * (gram.abs() @ v + q.abs())
        entering = int(gradient.argmin())
        if entering in support or gradient[entering] >= level - 1e-13 * level.abs() - rounding[entering]:
            break
        support.append(entering)
        v = _on_support(rows, q, size, v, support)
        if entering not in support:
            break
    return v


def _on_support(rows: Rows, q: Tensor, size: float, v: Tensor, support: list[int]) -> Tensor:
    """The least point with v > 0 on a support, which loses the entries that reach zero on the way there."""
    while True:
        there, falls_for_ever = _stationary(rows, q, size, support)
        target = torch.zeros_like(v)
        target[support] = there
        if falls_for_ever:  # the way ends where an entry reaches zero: some do, their sum stays
            v = towards(v, v + target, support, most=torch.inf)
        elif bool((there > 0).all()):
            return target
        else:
            v = towards(v, target, support)
        v *= size / v.sum()


def _stationary(rows: Rows, q: Tensor, size: float, support: list[int]) -> tuple[Tensor, bool]:
    """The stationary point of v'Qv/2 + q'v with sum v = size on a support, of whatever signs.

    In y = s v, with the constraint a'y = size min s: [C a; a' 0] [y; -level] = [-q / s; size min s].  Without a
    solution there is no such point: what is left of the right side is a direction of no curvature, along which the
    quadratic falls.  That direction is given then, and True.
    """
    lengths, count = rows.lengths[support], len(support)
    shortest = lengths.min()
    system = torch.zeros(count + 1, count + 1, dtype=torch.float64)
    system[:count, :count] = rows.cosines[support][:, support]
    system[count, :count] = system[:count, count] = shortest / lengths
    right = torch.cat([-q[support] / lengths, (size * shortest)[None]])
    solution = torch.zeros_like(right)
    for _ in range(3):  # the first for the solution, the others for its last digits
        residual = right - system @ solution
        solution = solution + torch.linalg.lstsq(system, residual[:, None], driver="gelsd").solution[:, 0]
    residual = right - system @ solution
    rounding = 64 * EPSILON * (system.abs() @ solution.abs()).max()
    direction = residual[:count] / lengths  # its sum is zero
    if residual.abs().max() > 1e-10 * right.abs().max() + rounding and bool((direction < 0).any()):
        return direction, True
    return solution[:count] / lengths, False


def towards(v: Tensor, target: Tensor, support: list[int], *, most: float = 1.0) -> Tensor:
    """The point as far from v >= 0 towards a target, or ``most`` times as far, as no entry turns negative.

    The entries that reach zero leave the support.
    """
    falling = target < v
    steps = torch.where(falling & (v + most * (target - v) <= 0), v / (v - target), torch.inf)[support]
    step = min(float(steps.min()), most)
    v = v + step * (target - v)
    leaving = [i for i, own in zip(list(support), steps.tolist(), strict=True) if own == step or v[i] <= 0]
    v[leaving] = 0.0
    support[:] = [i for i in support if i not in leaving]
    return v
