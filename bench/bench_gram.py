"""Inner products of rows (all pairs, two sets of rows, squares alone) against torch and one read of the rows; errors.

python -m bench.bench_gram [--quick]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench import floor
from bench.measure import interleaved, milliseconds, power, ratio, table, write
from mt2o_ext import ops

NOTES = (
    "R rows of P columns; 'cross': with R others (twice the bytes); 'diagonal': squares alone. x read: median "
    "per-round ratio to one read of the rows and of the others. 'mm': rows @ rows.T in float32 (centred: after "
    "subtracting the mean; diagonal: linalg.vector_norm); 'dots': torch.dot for each pair; 'double': mm in float64; "
    "both only where they take seconds, not minutes. error: largest |Q - exact| / sqrt(Q_ii Q_jj), exact in float64. "
    "Centred rows differ by 1e-3 of their size, as the subproblems' parameters do."
)
KINDS = ("pairs", "cross", "diagonal", "centred")


class Problem:
    """Rows of one kind, with arguments for our operator."""

    def __init__(self, kind: str, num_rows: int, columns: int) -> None:
        _, row, chunks = ops.plan_layout([columns])
        self.kind, self.columns, self.chunks = kind, columns, torch.tensor(chunks)
        sets = torch.zeros(2 if kind == "cross" else 1, num_rows, row)
        sets[..., :columns].normal_()
        if kind == "centred":
            sets[..., :columns].mul_(1e-3).add_(torch.randn(columns))
        self.sets, self.rows, self.others = sets, sets[:1], sets[1:] if kind == "cross" else None
        shape = (num_rows,) if kind == "diagonal" else (num_rows, num_rows)
        sums = {"cross": num_rows**2, "diagonal": num_rows}.get(kind, num_rows * (num_rows + 1) // 2)
        self.out = torch.zeros(1, 1, *shape, dtype=torch.float64)
        self.partials = torch.zeros(1, len(chunks), sums, dtype=torch.float64)

    def ours(self) -> Tensor:
        ops.gram_(
            self.out, self.partials, self.rows, self.others, self.chunks,
            centre=self.kind == "centred", diagonal=self.kind == "diagonal",
        )  # fmt: skip
        return self.out[0, 0]

    def torch(self, dtype: torch.dtype) -> Tensor:
        """The line of torch that people write."""
        x = self.rows[0].to(dtype)
        if self.kind == "diagonal":
            return torch.linalg.vector_norm(x, dim=1).square()
        if self.kind == "centred":
            x = x - x.mean(0, keepdim=True)
        return x @ (x if self.others is None else self.others[0].to(dtype)).T

    def dots(self) -> None:
        x = self.rows[0]
        y = x if self.others is None else self.others[0]
        for i in range(len(x)):
            for j in range(len(y) if self.kind == "cross" else i + 1):
                torch.dot(x[i], y[j])

    def exact(self, step: int = 1 << 20) -> Tensor:
        """In float64, a piece of the columns at a time: not to hold all of them twice."""
        total = torch.zeros_like(self.out[0, 0])
        for begin in range(0, self.columns, step):
            x, y = (values[..., begin : begin + step].double() for values in (self.sets[0], self.sets[-1]))
            if self.kind == "centred":
                x = y = x - x.mean(0, keepdim=True)
            total += x.square().sum(1) if self.kind == "diagonal" else x @ y.T
        return total

    def error(self, gram: Tensor, exact: Tensor) -> str:
        lengths = [
            torch.linalg.vector_norm(values, dim=1, dtype=torch.float64) for values in (self.sets[0], self.sets[-1])
        ]
        if self.kind == "centred":
            lengths = [exact.diagonal().sqrt()] * 2
        size = lengths[0].square() if self.kind == "diagonal" else lengths[0][:, None] * lengths[1]
        return f"{float(((gram.double() - exact).abs() / size).max()):.0e}"


def measure(kind: str, num_rows: int, columns: int, rounds: int) -> dict[str, Any]:
    problem = Problem(kind, num_rows, columns)
    runs: dict[str, Callable[[], object]] = {"ours": problem.ours, "mm": lambda: problem.torch(torch.float32)}
    if kind in ("pairs", "cross") and num_rows**2 * columns <= 2_000_000_000:
        runs["dots"] = problem.dots
    if num_rows * columns <= 40_000_000:
        runs["double"] = lambda: problem.torch(torch.float64)
    runs["read"] = floor.read(problem.sets, torch.get_num_threads())
    seconds = interleaved(runs, rounds)
    result: dict[str, Any] = {"R": num_rows, "P": power(columns), "rows": kind}
    result |= {"ms": milliseconds(seconds["ours"]), "x read": ratio(seconds["ours"], seconds["read"])}
    result |= {f"{name} / ours": ratio(seconds[name], seconds["ours"]) for name in runs if name not in ("ours", "read")}
    exact = problem.exact()
    result["error"] = problem.error(problem.ours(), exact)
    result["error of mm"] = problem.error(problem.torch(torch.float32), exact)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes only, few rounds")
    quick = parser.parse_args().quick
    if quick:
        rows = [measure(kind, r, 100_000, 3) for kind in KINDS for r in (3, 8)]
    else:
        counts = (2, 3, 8, 16, 40)
        rows = [measure(kind, r, 1_000_000, 11) for kind in KINDS for r in counts]
        rows += [measure("pairs", r, 10_000_000, 7) for r in counts]
    print(table(rows))
    if not quick:
        print(write("gram", rows, NOTES))


if __name__ == "__main__":
    main()
