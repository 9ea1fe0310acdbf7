"""From T task gradients to one: Gram matrix, solver and combination, against TorchJD, conflictfree and plain loops.

python bench/bench_weightings.py [--quick]
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench import floor
from bench.measure import interleaved, lower_of, milliseconds, power, ratio, table, write
from bench.weighting_peers import METHODS, PEERS
from mt2o_ext.gradients.layout import Layout
from mt2o_ext.gradients.table import GradientTable

NOTES = (
    "Gram matrix + T x T solver + combination into an existing gradient. x bytes: median per-round ratio to moving "
    "8 T P + 4 P bytes at the best of streaming copy, triad and in-place scale; x mv: to torch.mv(J.T, w, out=...), "
    "one read. Others: their time over ours; ~: of a single run, because it took more than 0.3 s; empty: not there, or "
    "left out at this size for taking too long. loops: PCGrad, MGDA and CAGrad as published codes write them, without "
    "copies to the CPU. cos: of TorchJD's gradient with ours (random orders and defaults differ). Gradients: a common "
    "part and noise, norms within a factor of 30."
)
SLOW = 0.3
LARGEST = 1 << 27  # bytes that the floor moves; more is taken in proportion


def gradients(tasks: int, columns: int) -> GradientTable:
    """T conflicting rows: a common direction, noise, and norms from 0.1 to 3."""
    generator = torch.Generator().manual_seed(0)
    grads = GradientTable(Layout([torch.empty(columns)]), tasks)
    common = torch.randn(columns, generator=generator)
    for task, row in enumerate(grads.flat()[0, :, :columns]):
        size = 0.1 * 30 ** (task / (tasks - 1))
        row.normal_(generator=generator).add_(common, alpha=(-1) ** task * 0.3 + 0.2).mul_(size / columns**0.5)
    grads.fill([[True] for _ in range(tasks)])
    return grads


def ours(name: str, grads: GradientTable) -> tuple[Callable[[], Tensor], Tensor]:
    weighting, generator = METHODS[name][0](), torch.Generator().manual_seed(0)
    out = torch.zeros(1, grads.layout.width)

    def run() -> Tensor:
        grads.combine(out, weighting(grads.gram().sum(1), generator=generator))
        return out

    return run, out


def peers(name: str, rows: Tensor, most: float) -> tuple[dict[str, Callable[[], object]], dict[str, float]]:
    """Those to take turns with ours, and seconds of a single run of the slow ones; ``most``: T P they may have."""
    fast: dict[str, Callable[[], object]] = {}
    slow: dict[str, float] = {}
    for peer, make in PEERS.items():
        expensive = name == "ConFIG" or peer != "TorchJD"
        if rows.numel() > (most / 4 if expensive else most) or (run := make(name, rows)) is None:
            continue
        begin = time.perf_counter()
        run()
        seconds = time.perf_counter() - begin
        if seconds > SLOW:
            slow[peer] = seconds
        else:
            fast[peer] = run
    return fast, slow


def measure(name: str, tasks: int, columns: int, rounds: int, most: float) -> dict[str, Any]:
    grads = gradients(tasks, columns)
    rows = grads.flat()[0, :, :columns]
    if rows.numel() <= most:
        rows = rows.contiguous()  # as peers would have them
    run, out = ours(name, grads)
    weights, target = torch.full((tasks,), 1 / tasks), torch.zeros(columns)
    num_bytes = 8 * tasks * columns + 4 * columns
    part = min(1.0, LARGEST / num_bytes)
    fast, slow = peers(name, rows, most)
    variants = {"ours": run, "mv": lambda: torch.mv(rows.T, weights, out=target), **fast}
    seconds = interleaved(variants | floor.copies(int(part * num_bytes), torch.get_num_threads()), rounds)
    lowest = [one / part for one in lower_of(seconds["copy"], seconds["triad"], seconds["scale"])]
    row: dict[str, Any] = {"method": name, "T": tasks, "P": power(columns), "ms": milliseconds(seconds["ours"])}
    row |= {"x bytes": ratio(seconds["ours"], lowest), "x mv": ratio(seconds["ours"], seconds["mv"])}
    median = sorted(seconds["ours"])[len(seconds["ours"]) // 2]
    for peer in PEERS:
        row[f"{peer} / ours"] = ""
        if peer in fast:
            row[f"{peer} / ours"] = ratio(seconds[peer], seconds["ours"])
        elif peer in slow:
            row[f"{peer} / ours"] = f"~{slow[peer] / median:.3g}"
    return row | {"cos": agreement(name, rows, out[0, :columns]) if "TorchJD" in fast else ""}


def agreement(name: str, rows: Tensor, combined: Tensor) -> str:
    run = PEERS["TorchJD"](name, rows)
    assert run is not None
    return f"{float(torch.cosine_similarity(run().double(), combined.double(), dim=0)):.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes only, few rounds")
    quick = parser.parse_args().quick
    warnings.filterwarnings("ignore")  # of the peers' solvers
    cases = [(100_000, (2, 8))] if quick else [(1_000_000, (2, 3, 8, 16, 40)), (10_000_000, (2, 3, 8, 16, 40))]
    rounds, most = (3, 1e6) if quick else (7, 1.7e8)
    rows = []
    for columns, counts in cases:
        for tasks in counts:
            names = list(METHODS) if columns <= 1_000_000 else ["UPGrad", "Nash-MTL", "CAGrad", "PCGrad", "IMTL-G"]
            if tasks * columns > most:  # without peers, and the gradients alone take seconds
                names = names[:2]
            for name in names:
                rows.append(measure(name, tasks, columns, rounds, most))
                print(table(rows[-1:]).splitlines()[-1], flush=True)
    print(table(rows))
    if not quick:
        print(write("weightings", rows, NOTES))


if __name__ == "__main__":
    main()
