"""The transfer alone, theta <- M theta, against torch's matrix product, and against the floor.

python bench/bench_transfer.py [--quick]
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from bench import floor
from bench.measure import interleaved, lower_of, milliseconds, power, ratio, table, write
from mt2o_ext import ops

NOTES = (
    "In place. 'mm': torch.mm into a buffer, then copied back; 'mm_out': without the copy (two buffers of parameters "
    "in turn, which views of one cannot use). sparse: each row takes from its two neighbours. x floor as of the step."
)


def mixes(num_rows: int) -> dict[str, torch.Tensor]:
    eye = torch.eye(num_rows, dtype=torch.float64)
    near = (torch.arange(num_rows)[:, None] - torch.arange(num_rows)).abs() == 1
    neighbours = near.double() / near.sum(1, keepdim=True)
    return {"dense": 0.9 * eye + 0.1 / num_rows, "sparse": 0.9 * eye + 0.1 * neighbours}


def measure(num_rows: int, columns: int, kind: str, rounds: int) -> dict[str, Any]:
    _, row, chunk_list = ops.plan_layout([columns])
    chunks, mix = torch.tensor(chunk_list), mixes(num_rows)[kind]
    theta, other, out = torch.randn(num_rows, row), torch.randn(num_rows, row), torch.zeros(num_rows, row)
    single = mix.float()
    runs = {
        "ours": lambda: ops.transfer_(theta, mix, chunks),
        "mm": lambda: other.copy_(torch.mm(single, other, out=out)),
        "mm_out": lambda: torch.mm(single, other, out=out),
    } | floor.copies(8 * num_rows * columns, torch.get_num_threads())
    seconds = interleaved(runs, rounds)
    lowest = lower_of(seconds["copy"], seconds["triad"], seconds["scale"])
    result: dict[str, Any] = {"K": num_rows, "P": power(columns), "M": kind, "ms": milliseconds(seconds["ours"])}
    result["x floor"] = ratio(seconds["ours"], lowest)
    return result | {f"{name} / ours": ratio(seconds[name], seconds["ours"]) for name in ("mm", "mm_out")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the smallest size only, few rounds")
    quick = parser.parse_args().quick
    sizes, rounds = ([1_000_000], 5) if quick else ([1_000_000, 4_000_000], 11)
    cases = [(k, p) for p in sizes for k in (5, 8, 16, 64) if k * p <= 64e6]
    rows = [measure(k, p, kind, rounds) for k, p in cases for kind in ("dense", "sparse")]
    print(table(rows))
    if not quick:
        print(write("transfer", rows, NOTES))


if __name__ == "__main__":
    main()
