"""The T x T solvers behind the weightings, against other people's: milliseconds for one problem, calls included.

python bench/bench_solve.py [--quick]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import quadprog
import torch
from scipy.optimize import linprog, nnls
from torch import Tensor

from bench.measure import interleaved, milliseconds, ratio, table, write
from mt2o_ext import ops

NOTES = (
    "ms for one problem of T conflicting tasks, rows of lengths 1e-3 to 1, through the Python function; the median of "
    "runs of 20 calls. Peers are given what they need, prepared: quadprog the matrix of cosines, nnls (SciPy) a square "
    "root of the Gram matrix, once for each right-hand side; linprog (SciPy, HiGHS) the linear program."
)
CALLS = 20

Run = Callable[[], object]


def gram_of(tasks: int) -> Tensor:
    """float64 [1, T, T]: nearly all pairs conflict."""
    generator = torch.Generator().manual_seed(tasks)
    rows = torch.randn(tasks, 2 * tasks + 3, dtype=torch.float64, generator=generator)
    rows = rows - 0.9 * rows.mean(0)
    rows *= 10.0 ** (-3 * torch.rand(tasks, 1, dtype=torch.float64, generator=generator))
    return (rows @ rows.T)[None]


def ours(tasks: int) -> dict[str, Run]:
    gram, ones = gram_of(tasks), torch.ones(1, tasks, dtype=torch.float64)
    mean = ones / tasks
    weights, residual = torch.zeros_like(ones), torch.zeros(1, dtype=torch.float64)
    square = torch.zeros_like(gram)
    each = torch.diag_embed(mean)
    order = torch.rand(1, tasks, tasks).argsort(dim=-1)
    losses = torch.linspace(1, 2, tasks, dtype=torch.float64)[None]
    workspace = torch.zeros(1, ops.workspace_size(tasks), dtype=torch.float64)
    return {
        "least norm": lambda: ops.minimum_norm_(weights, gram, workspace=workspace),
        "CAGrad": lambda: ops.conflict_averse_(weights, gram, mean, 0.5, rtol=1e-12, workspace=workspace),
        "barrier, p = 1": lambda: ops.power_barrier_(weights, residual, gram, ones, power=1.0, workspace=workspace),
        "barrier, p = 0.3": lambda: ops.power_barrier_(weights, residual, gram, ones, power=0.3, workspace=workspace),
        "dual cone, u": lambda: ops.dual_cone_(weights[None], gram, mean[None], workspace=workspace),
        "dual cone, T right sides": lambda: ops.dual_cone_(square, gram, each, workspace=workspace),
        "eigenvalues": lambda: ops.eigen_(weights, square, gram, workspace=workspace),
        "projections": lambda: ops.project_(weights, None, gram, order, workspace=workspace),
        "EPO": lambda: ops.descent_(weights, gram, losses, ones, workspace=workspace),
    }


def peers(tasks: int) -> dict[str, tuple[str, Run]]:
    """For some of ours: whose, and the same problem there."""
    gram = gram_of(tasks)[0]
    lengths = gram.diagonal().sqrt()
    cosines = (gram / lengths / lengths[:, None]).numpy()
    conditions = np.column_stack([(lengths.min() / lengths).numpy(), np.eye(tasks)])
    right, zero = np.eye(tasks + 1)[0], np.zeros(tasks)
    root = np.linalg.cholesky(cosines).T
    targets = -root * (lengths / tasks).numpy()
    objective, matrix = -cosines.sum(0), -cosines
    return {
        "least norm": ("quadprog", lambda: quadprog.solve_qp(cosines, zero, conditions, right, 1)),
        "dual cone, u": ("nnls", lambda: nnls(root, targets.sum(1))),
        "dual cone, T right sides": ("nnls", lambda: [nnls(root, targets[:, i]) for i in range(tasks)]),
        "eigenvalues": ("torch", lambda: torch.linalg.eigh(gram)),
        "EPO": ("linprog", lambda: linprog(objective, matrix, zero, np.ones((1, tasks)), [1.0])),
    }


def repeated(run: Run, calls: int) -> Run:
    def body() -> None:
        for _ in range(calls):
            run()

    return body


def measure(tasks: int, rounds: int) -> list[dict[str, Any]]:
    rows = []
    others = peers(tasks)
    for name, run in ours(tasks).items():
        peer, other = others.get(name, ("", None))
        runs = {"ours": repeated(run, CALLS)} | ({"peer": repeated(other, CALLS)} if other else {})
        seconds = {key: [t / CALLS for t in times] for key, times in interleaved(runs, rounds).items()}
        row: dict[str, Any] = {"T": tasks, "solver": name, "ms": milliseconds(seconds["ours"]), "peer": peer}
        rows.append(row | {"peer / ours": ratio(seconds["peer"], seconds["ours"]) if other else ""})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds, nothing is written")
    quick = parser.parse_args().quick
    rows = [row for tasks in (2, 8, 16, 40) for row in measure(tasks, 3 if quick else 11)]
    print(table(rows))
    if not quick:
        print(write("solve", rows, NOTES))


if __name__ == "__main__":
    main()
