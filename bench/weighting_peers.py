"""Other people's ways from task gradients J [T, P] to one gradient, and plain loops as in published codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mt2o_ext import weighting

# Ours, TorchJD's and conflictfree's names of the same method.
METHODS: dict[str, tuple[Callable[[], weighting.Weighting], str | None, str | None]] = {
    "UPGrad": (weighting.UPGrad, "UPGrad", None),
    "MGDA": (weighting.MGDA, "MGDA", None),
    "CAGrad": (weighting.CAGrad, "CAGrad", None),
    "PCGrad": (weighting.PCGrad, "PCGrad", "PCGradOperator"),
    "IMTL-G": (weighting.IMTLG, "IMTLG", "IMTLGOperator"),
    "ConFIG": (weighting.ConFIG, "ConFIG", "ConFIGOperator"),
    "Nash-MTL": (weighting.NashMTL, "NashMTL", None),
    "Aligned-MTL": (weighting.AlignedMTL, "AlignedMTL", None),
}
OPTIONS: dict[str, Callable[[int], dict[str, Any]]] = {
    "CAGrad": lambda tasks: {"c": 0.5},
    "NashMTL": lambda tasks: {"n_tasks": tasks},
}


def of_torchjd(name: str, rows: Tensor) -> Callable[[], Tensor] | None:
    theirs = METHODS[name][1]
    if theirs is None:
        return None
    import torchjd.aggregation as aggregation

    aggregator = getattr(aggregation, theirs)(**OPTIONS.get(theirs, lambda _: {})(len(rows)))
    return lambda: aggregator(rows)


def of_conflictfree(name: str, rows: Tensor) -> Callable[[], Tensor] | None:
    theirs = METHODS[name][2]
    if theirs is None:
        return None
    from conflictfree import grad_operator

    operator = getattr(grad_operator, theirs)()
    return lambda: operator.calculate_gradient(rows)


def pcgrad_loop(rows: Tensor) -> Tensor:
    """Projections of whole gradients, one pair after another."""
    changed = rows.clone()
    for row in changed:
        for j in torch.randperm(len(rows)).tolist():
            product = torch.dot(row, rows[j])
            if product < 0:
                row -= product / (rows[j].norm() ** 2 + 1e-8) * rows[j]
    return changed.sum(0)


def mgda_loop(rows: Tensor, steps: int = 250) -> Tensor:
    """All pairs by torch.dot, then Frank-Wolfe with exact line search."""
    tasks = len(rows)
    gram = torch.tensor([[float(torch.dot(rows[i], rows[j])) for j in range(tasks)] for i in range(tasks)])
    w = torch.full((tasks,), 1 / tasks)
    for _ in range(steps):
        products = gram @ w
        vertex = torch.zeros(tasks)
        vertex[products.argmin()] = 1.0
        change = vertex - w
        curvature = change @ gram @ change
        if curvature <= 0 or (size := float((-change @ products / curvature).clamp(0, 1))) < 1e-5:
            break
        w = w + size * change
    return rows.T @ w


def cagrad_loop(rows: Tensor, c: float = 0.5) -> Tensor:
    """The Gram matrix by torch.mm, then SciPy's SLSQP."""
    from scipy.optimize import minimize

    tasks = len(rows)
    gram = (rows @ rows.T).numpy()
    start = torch.full((tasks,), 1 / tasks).numpy()
    size = c * (start @ gram @ start) ** 0.5

    def value(w: Any) -> float:
        return float(w @ gram @ start + size * (w @ gram @ w + 1e-8) ** 0.5)

    constraint = {"type": "eq", "fun": lambda w: 1 - w.sum()}
    w = torch.from_numpy(minimize(value, start, bounds=[(0, 1)] * tasks, constraints=constraint).x).float()
    mixed = rows.T @ w
    return rows.mean(0) + size / (mixed.norm() + 1e-8) * mixed


LOOPS: dict[str, Callable[[Tensor], Tensor]] = {"PCGrad": pcgrad_loop, "MGDA": mgda_loop, "CAGrad": cagrad_loop}


def of_loops(name: str, rows: Tensor) -> Callable[[], Tensor] | None:
    loop = LOOPS.get(name)
    return None if loop is None else lambda: loop(rows)


PEERS = {"TorchJD": of_torchjd, "conflictfree": of_conflictfree, "loops": of_loops}
