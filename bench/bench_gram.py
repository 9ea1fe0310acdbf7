"""Inner products of all rows, plain and centred, against torch, and against one read of the rows; with errors.

python bench/bench_gram.py [--quick]
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from bench import floor
from bench.measure import interleaved, milliseconds, power, ratio, table, write
from mt2o_ext import ops

NOTES = (
    "R rows of P columns. x read: median per-round ratio to one read of the rows. 'mm': rows @ rows.T in float32 "
    "(centred: after subtracting the mean); 'double': the same in float64. error: largest |Q - exact| / "
    "sqrt(Q_ii Q_jj), exact in float64. "
    "Centred rows differ by 1e-3 of their size, as the subproblems' parameters do."
)


def torch_gram(rows: Tensor, centre: bool) -> Tensor:
    centred = rows - rows.mean(0, keepdim=True) if centre else rows
    return centred @ centred.T


def error(gram: Tensor, exact: Tensor) -> float:
    size = exact.diagonal().sqrt()
    return float(((gram.double() - exact).abs() / (size[:, None] * size)).max())


def measure(num_rows: int, columns: int, centre: bool, rounds: int) -> dict[str, Any]:
    _, row, chunk_list = ops.plan_layout([columns])
    chunks = torch.tensor(chunk_list)
    rows = torch.zeros(num_rows, row)
    common = torch.randn(columns)
    rows[:, :columns] = common + 1e-3 * torch.randn(num_rows, columns) if centre else torch.randn(num_rows, columns)
    out = torch.zeros(1, 1, num_rows, num_rows, dtype=torch.float64)
    partials = torch.zeros(1, len(chunks), num_rows * (num_rows + 1) // 2, dtype=torch.float64)
    runs = {
        "ours": lambda: ops.gram_(out, partials, rows.unsqueeze(0), chunks, centre=centre),
        "mm": lambda: torch_gram(rows, centre),
        "double": lambda: torch_gram(rows.double(), centre),
        "read": floor.read(rows, torch.get_num_threads()),
    }
    seconds = interleaved(runs, rounds)
    exact = torch_gram(rows.double(), centre)
    kind = "centred" if centre else "plain"
    result: dict[str, Any] = {"R": num_rows, "P": power(columns), "rows": kind}
    result |= {"ms": milliseconds(seconds["ours"]), "x read": ratio(seconds["ours"], seconds["read"])}
    result |= {f"{name} / ours": ratio(seconds[name], seconds["ours"]) for name in ("mm", "double")}
    result["error"] = f"{error(out[0, 0], exact):.0e}"
    result["error of mm"] = f"{error(torch_gram(rows, centre), exact):.0e}"
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the smallest size only, few rounds")
    quick = parser.parse_args().quick
    size, rounds = (100_000, 5) if quick else (4_000_000, 11)
    rows = [measure(r, size, centre, rounds) for centre in (True, False) for r in (2, 3, 5, 8, 16)]
    print(table(rows))
    if not quick:
        print(write("gram", rows, NOTES))


if __name__ == "__main__":
    main()
