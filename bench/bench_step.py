"""The fused step against torch's ways to do the same, and against the floor.

python bench/bench_step.py [--quick]
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable
from typing import Any

import torch

from bench import floor
from bench.measure import interleaved, lower_of, milliseconds, power, ratio, table, write
from bench.step_problem import StepProblem

SHAPES = [(1, 1), (5, 2), (8, 3), (16, 2)]
SIZES = [100_000, 1_000_000, 4_000_000]

NOTES = (
    "AdamW, transfer M theta, T task gradients with weights. ms: medians; x floor: median per-round ratio to the bytes "
    "that must move at the best of streaming copy, streaming triad and in-place scale of the same round; x twin: to a "
    "loop over the same arrays with trivial arithmetic; others: their time over ours in the same round."
)


def variants_of(problem: StepProblem, threads: int) -> dict[str, Callable[[], object]]:
    runs: dict[str, Callable[[], object]] = {"ours": problem.ours()}
    runs |= {
        "fused": problem.optimizer(fused=True),
        "foreach": problem.optimizer(foreach=True),
        "eager": problem.eager(),
        "compiled": problem.eager(compile_it=True),
    }
    twin = StepProblem(problem.num_rows, problem.num_tasks, problem.columns)
    runs["twin"] = floor.step_twin(twin.theta, twin.m, twin.v, twin.grads, threads)
    return runs | floor.copies(problem.num_bytes, threads)


def measure(num_rows: int, num_tasks: int, columns: int, rounds: int) -> dict[str, Any]:
    torch._dynamo.reset()
    problem = StepProblem(num_rows, num_tasks, columns)
    seconds = interleaved(variants_of(problem, torch.get_num_threads()), rounds)
    ours = seconds["ours"]
    lowest = lower_of(seconds["copy"], seconds["triad"], seconds["scale"])
    row: dict[str, Any] = {"K": num_rows, "T": num_tasks, "P": power(columns), "ms": milliseconds(ours)}
    row |= {"x floor": ratio(ours, lowest), "x twin": ratio(ours, seconds["twin"])}
    row |= {f"{name} / ours": ratio(seconds[name], ours) for name in ("fused", "foreach", "eager", "compiled")}
    gc.collect()
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the smallest size only, few rounds")
    quick = parser.parse_args().quick
    sizes, rounds = (SIZES[:1], 5) if quick else (SIZES, 11)
    rows = [measure(k, t, p, rounds) for p in sizes for k, t in SHAPES]
    print(table(rows))
    if not quick:
        print(write("step", rows, NOTES))


if __name__ == "__main__":
    main()
