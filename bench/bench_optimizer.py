"""Whole optimizers on many small tensors, on many groups and on one large tensor, against torch.optim.AdamW.

python bench/bench_optimizer.py [--quick]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.measure import interleaved, milliseconds, ratio, table, write
from mt2o_ext import MT2OFused
from mt2o_ext.base import AdamW

NOTES = (
    "K = 1, T = 1, AdamW. ms of optimizer.step(), medians; MT2OFused's includes what torch's does not: the gradients "
    "are checked for infinities and NaN before anything is written. Others: their time over "
    "ours in the same round."
)


def parameters(count: int, numel: int) -> list[Tensor]:
    made = [torch.nn.Parameter(torch.randn(numel)) for _ in range(count)]
    for p in made:
        p.grad = torch.randn(numel)
    return made


def groups(parameters: list[Tensor], number: int) -> list[dict[str, Any]]:
    size = len(parameters) // number
    return [{"params": parameters[i * size : (i + 1) * size], "lr": 1e-3 * (1 + 1e-3 * i)} for i in range(number)]


def variants(count: int, numel: int, num_groups: int) -> dict[str, Callable[[], object]]:
    def grouped() -> list[dict[str, Any]]:
        return groups(parameters(count, numel), num_groups)

    return {
        "ours": MT2OFused(grouped(), num_tasks=1, num_subproblems=1, base=AdamW()).step,
        "fused": torch.optim.AdamW(grouped(), fused=True).step,
        "foreach": torch.optim.AdamW(grouped(), foreach=True).step,
        "for loop": torch.optim.AdamW(grouped(), foreach=False, fused=False).step,
    }


def measure(name: str, count: int, numel: int, num_groups: int, rounds: int) -> dict[str, Any]:
    seconds = interleaved(variants(count, numel, num_groups), rounds)
    row: dict[str, Any] = {"tensors": name, "groups": num_groups, "ms": milliseconds(seconds["ours"])}
    others = [name for name in seconds if name != "ours"]
    return row | {f"{other} / ours": ratio(seconds[other], seconds["ours"]) for other in others}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds")
    rounds = 3 if parser.parse_args().quick else 9
    rows = [
        measure("2,000 of 5,000", 2000, 5000, 1, rounds),
        measure("465 of 5,000", 465, 5000, 1, rounds),
        measure("465 of 5,000", 465, 5000, 465, rounds),
        measure("1 of 4,000,000", 1, 4_000_000, 1, rounds),
    ]
    print(table(rows))
    if rounds > 3:
        print(write("optimizer", rows, NOTES))


if __name__ == "__main__":
    main()
