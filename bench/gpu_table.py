"""The timing table of a GPU: every kernel family over R and types, solvers, the priority rule, whole steps.

python -m bench.gpu_table [--device cuda] [--json FILE] [--until TIME] [--quick]

Fast on purpose: no torch.compile and no peers but torch's fused AdamW, so that the table is there after half a minute
(bench_gpu.py has the peers).  With --device cpu it runs all the same, a rehearsal, whose figures mean nothing.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.gpu_cases import Combine, Finite, Gram, Priority, Step, Transfer
from bench.gpu_elements import element_cases
from bench.gpu_masks import mask_cases
from bench.gpu_optimizers import OPTIMIZERS, whole_step
from bench.gpu_timing import BUFFER, Report, add_cases, ceilings, seconds_of, timed
from bench.measure import table
from bench.network_shapes import Shape, resnet50
from tools.gpu_check import problems

ROWS = (2, 3, 5, 8, 16, 40)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TASKS = (3, 8, 16, 40)  # of the solvers
ELEMENTS = 200_000_000  # numbers in each set of R rows: whatever R and the type, many times the second-level cache
SMALL_MODEL = 1_000_000
NOTES = (
    "CUDA events after a warm-up, medians. R: rows of gram and finite, K of transfer and of step (T = 2, with a "
    "transfer), T of combine (K = 1); R P = 2e8 numbers. dtype: of the gradients, of gram and transfer of the rows. "
    "GB/s: bytes that must move over time; x ceiling: that over the bandwidth of a copy (read + write), or of reading "
    "where a kernel only reads. Optimizers: ms of step() by the host's clock until the device is done, host ms until "
    "it returns."
)


# Of each family the types that it knows (parameters are no 16-bit numbers), and a case of R rows.
FAMILIES: dict[str, tuple[tuple[torch.dtype, ...], Callable[..., partial[Any]]]] = {
    "gram": (DTYPES, lambda rows, *others: partial(Gram, rows, *others)),
    "step": (DTYPES, lambda rows, *others: partial(Step, rows, 2, *others)),
    "finite": (DTYPES, lambda rows, *others: partial(Finite, rows, 1, *others)),
    "combine": (DTYPES, lambda rows, *others: partial(Combine, 1, rows, *others)),
    "transfer": (DTYPES[:1], lambda rows, *others: partial(Transfer, rows, *others)),
}


def grid(elements: int) -> Iterator[tuple[int, partial[Any]]]:
    """Every family, type and R, with R."""
    for dtypes, case in FAMILIES.values():
        for dtype in dtypes:
            for rows in ROWS:
                yield rows, case(rows, dtype, max(elements // rows, 1))


def other_cases(elements: int, shapes: list[Shape]) -> Iterator[partial[Any]]:
    yield partial(Step, 1, 1, torch.float32, elements)  # AdamW alone
    yield partial(Gram, 8, torch.float32, min(elements, SMALL_MODEL))
    for tasks in (2, 3, 8):
        yield partial(Priority, tasks, shapes)
    yield from mask_cases(elements)
    yield from element_cases(elements)


def solvers(device: torch.device) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """One problem of T tasks at a time."""
    sampler = problems.Sampler(problems.LAYOUT, seed=3)
    for tasks in TASKS:
        for call in problems.solves(sampler, tasks, batch=1):

            def row(call: problems.Call = call, tasks: int = tasks) -> dict[str, Any]:
                operator = getattr(torch.ops.mt2o_ext, call.operator)
                arguments = [None if a is None else a.to(device) for a in call.arguments]
                seconds = seconds_of(lambda: operator(*arguments, **call.options), device)
                return {"solver": call.operator, "T": tasks, "ms": round(seconds * 1e3, 4)}

            yield call.what, row


def measure_all(report: Report, device: torch.device, *, quick: bool) -> None:
    elements = 20_000 if quick else ELEMENTS
    shapes: list[Shape] = [(8, 4, 3, 3), (8,), (8,), (10, 8), (10,)] if quick else resnet50()

    def limits() -> dict[str, float]:
        return ceilings(device, 1 << 20 if quick else BUFFER)

    before = limits()
    report.write(**{"ceilings, GB/s": [rounded(before)]})
    for rows, make in grid(elements):
        add_cases(report, [make], device, lambda case, rows=rows: {"R": rows} | timed(case, device, before))
    for name in OPTIMIZERS:
        report.add(name, partial(whole_step, name, shapes, device), "optimizers")
    add_cases(report, other_cases(elements, shapes), device, lambda case: timed(case, device, before), "others")
    for name, row in solvers(device):
        report.add(name, row, "solvers")
    report.write(**{"ceilings, GB/s": [rounded(before), rounded(limits())]})


def rounded(rates: dict[str, float]) -> dict[str, int]:
    return {name: round(rate / 1e9) for name, rate in rates.items()}


def pivot(rows: list[dict[str, Any]], value: str, columns: str, *names: str) -> str:
    """One line for each combination of ``names``, one column for each of ``columns``."""
    lines: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        key = tuple(row[name] for name in names)
        lines.setdefault(key, dict(zip(names, key, strict=True)))[f"{columns}={row[columns]}"] = row[value]
    return table(list(lines.values()))


def printed(report: Report) -> str:
    content = report.content
    parts = {
        "ms": pivot(content["rows"], "ms", "R", "family", "dtype"),
        "x ceiling": pivot(content["rows"], "x ceiling", "R", "family", "dtype"),
        "solvers, ms": pivot(content["solvers"], "ms", "T", "solver"),
        "others": table(content["others"]),
        "whole steps": table(content["optimizers"]),
        "ceilings, GB/s, before and after": table(content["ceilings, GB/s"]),
    }
    lines = [f"{title}\n{text}\n" for title, text in parts.items()]
    return "\n".join([*lines, *(f"error: {error}" for error in content["errors"]), *left_out(content)])


def left_out(content: dict[str, Any]) -> list[str]:
    return [f"left out for want of time: {', '.join(content['left out'])}"] if content["left out"] else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path, help="written after each row")
    parser.add_argument("--until", type=float, default=math.inf, help="when to leave out the rest (time.time())")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: a rehearsal")
    chosen = parser.parse_args()
    report = Report(chosen.json, chosen.until, NOTES, ("others", "optimizers", "solvers"))
    measure_all(report, torch.device(chosen.device), quick=chosen.quick)
    print(printed(report))
    return 0 if report.whole else 1


if __name__ == "__main__":
    raise SystemExit(main())
