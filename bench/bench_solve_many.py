"""Weights of many tasks from a given Gram matrix, beside TorchJD's: tasks may be the samples of a batch.

python bench/bench_solve_many.py [--quick]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchjd.aggregation import MGDAWeighting, UPGradWeighting

from bench.measure import interleaved, milliseconds, ratio, table, write
from mt2o_ext.weighting import MGDA, UPGrad

NOTES = (
    "One thread. ms for the weights of one float32 Gram matrix of T gradients of 4 T columns, ours and TorchJD's in "
    "turn, the median; ~: a single run, because it took more than 0.3 s. Easy: the gradients have a common part, few "
    "pairs conflict; hard: they have none, half of the pairs conflict. longer: |J'w| over the mean length of the rows, "
    "at most 1 where a projection does not lengthen."
)
SLOW = 0.3  # seconds

METHODS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "UPGrad": (UPGrad, UPGradWeighting),
    "MGDA": (MGDA, MGDAWeighting),
}


def rows_of(kind: str, tasks: int) -> Tensor:
    generator = torch.Generator().manual_seed(tasks)
    rows = torch.randn(tasks, 4 * tasks, generator=generator)
    return rows + torch.randn(4 * tasks, generator=generator) if kind == "easy" else rows


def once(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def measure(name: str, kind: str, tasks: int, rounds: int) -> dict[str, Any]:
    rows = rows_of(kind, tasks)
    gram = rows @ rows.T
    ours, theirs = (make() for make in METHODS[name])
    length = float((rows.T @ ours(gram).float()).norm() / rows.norm(dim=1).mean())
    row: dict[str, Any] = {"T": tasks, "weighting": name, "gradients": kind}
    first = once(lambda: theirs(gram))
    if first > SLOW:
        [own] = interleaved({"ours": lambda: ours(gram)}, rounds).values()
        row |= {"ms": milliseconds(own), "TorchJD": f"~{first * 1e3:.0f}", "TorchJD / ours": f"~{first / min(own):.0f}"}
    else:
        seconds = interleaved({"ours": lambda: ours(gram), "theirs": lambda: theirs(gram)}, rounds)
        row |= {"ms": milliseconds(seconds["ours"]), "TorchJD": milliseconds(seconds["theirs"])}
        row["TorchJD / ours"] = ratio(seconds["theirs"], seconds["ours"])
    return row | {"longer": round(length, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few tasks and rounds, nothing is written")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)  # else the threads of the one spin while the other is timed
    sizes, rounds = ((16,), 2) if quick else ((16, 32, 64, 128, 256), 7)
    rows = [measure(name, kind, tasks, rounds) for name in METHODS for kind in ("easy", "hard") for tasks in sizes]
    print(table(rows))
    if not quick:
        print(write("solve_many", rows, NOTES))


if __name__ == "__main__":
    main()
