"""Steps of subproblems that ranks share, over the loopback device: what a transfer adds, and what travels.

python bench/bench_subproblem_mesh.py [--quick]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch import distributed as dist

from bench.measure import PAUSE, milliseconds, power, table, write
from mt2o_ext import MT2OFused
from mt2o_ext.transfer import Mean, Neighbours, Spectral

K, T = 8, 2
VARIANTS: dict[str, dict[str, Any]] = {
    "rows, none due": {"front": "rows", "transfer": None},
    "rows, dense M": {"front": "rows", "transfer": Mean(0.1)},
    "rows, spectral": {"front": "rows", "transfer": Spectral(every=1)},
    "rows, neighbours": {"front": "rows", "transfer": Neighbours(0.1, 0.2, nearest=1)},
    "vertices": {"front": "vertices"},
}
NOTES = (
    f"K = {K} subproblems of one tensor of P float32, T = {T} tasks, AdamW; gloo over the loopback device, a thread "
    "for each rank. ms: step() of the slowest rank, medians. ms here: the same K / R models in one process, without "
    "transfer. transfer: what a step with one takes more than one without, in the same round. MB: sent by each rank in "
    "this step, counted. all-gather: of all rows to all ranks, which would be the other way."
)
ARITHMETIC_NOTES = (
    "Arithmetic, nothing of it measured: bytes that each rank sends in a step with a transfer, over the speed of the "
    "network, 450 GB/s in each direction (NVLink of 8 x H100) and 50 GB/s (400 Gbit/s for each of 64 nodes, one rank "
    f"each). P = 1e8 float32, T = {T}. Latency and the blend itself are left out."
)


# ---------------------------------------------------------------------- what travels
def sent(name: str, ranks: int, rows: int, columns: int) -> float:
    """Bytes that a rank with so many rows sends in a step with a transfer."""
    row, others = 4.0 * columns, ranks - 1
    if name == "rows, none due":
        return 0.0
    if name == "rows, neighbours":  # one row to each side, in the middle
        return (1 if ranks == 2 else 2) * row
    if name == "vertices":  # a ring: a sum, and what it has become
        return 2 * others / ranks * T * row
    if name == "all-gather":
        return others * rows * row
    return 2 * others / ranks * rows * row


def arithmetic() -> list[dict[str, Any]]:
    columns, found = 10**8, []
    networks = [("8 x H100, NVLink", 8, 450e9, (1, 4)), ("64 nodes, 400 Gbit/s", 64, 50e9, (1, 4))]
    for network, ranks, speed, sizes in networks:
        for rows in sizes:
            row: dict[str, Any] = {"network": network, "K": rows * ranks, "rows of a rank": rows}
            for name in ("rows, dense M", "all-gather", "rows, neighbours", "vertices"):
                bytes_ = sent(name, ranks, rows, columns)
                row[f"{name}: GB"], row[f"{name}: ms"] = round(bytes_ / 1e9, 2), round(1e3 * bytes_ / speed, 1)
            found.append(row)
    return found


# ---------------------------------------------------------------------- what it takes
class Run:
    """An optimizer of one tensor, whose gradients are made before a step is timed."""

    def __init__(self, columns: int, num_subproblems: int, *, mesh: bool, **options: Any) -> None:
        torch.manual_seed(0)
        self.p = nn.Parameter(torch.randn(columns))
        self.optimizer = MT2OFused(
            [self.p], num_tasks=T, num_subproblems=num_subproblems, subproblem_mesh=mesh or None,
            process_group=None if mesh else False, **options,
        )  # fmt: skip
        self.noise = torch.randn(columns)

    def losses(self, k: int) -> list[Tensor]:
        return [(self.p * self.noise).sum() * (1 + k), self.p.sum()]

    def seconds(self) -> float:
        for k in self.optimizer.subproblems():
            self.optimizer.backward(self.losses(k))
        dist.barrier()
        begin = time.perf_counter()
        self.optimizer.step()
        return time.perf_counter() - begin


class Gather:
    """All rows to all ranks."""

    def __init__(self, columns: int, rows: int) -> None:
        self.own = torch.randn(rows * columns)
        self.all = torch.empty(rows * columns * dist.get_world_size())

    def seconds(self) -> float:
        dist.barrier()
        begin = time.perf_counter()
        dist.all_gather_into_tensor(self.all, self.own)
        return time.perf_counter() - begin


def rank_of(rank: int, ranks: int, folder: str, columns: int, rounds: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    runs: dict[str, Run | Gather] = {name: Run(columns, K, mesh=True, **options) for name, options in VARIANTS.items()}
    runs["here"] = Run(columns, K // ranks, mesh=False, front="rows", transfer=None)
    runs["all-gather"] = Gather(columns, K // ranks)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 2):  # the first ones make moments and connections
        for name, run in runs.items():
            time.sleep(PAUSE)
            slowest = torch.tensor([run.seconds()], dtype=torch.float64)
            dist.all_reduce(slowest, dist.ReduceOp.MAX)
            if turn >= 2:
                seconds[name].append(float(slowest))
    if rank == 0:
        torch.save(seconds, Path(folder) / "seconds.pt")
    dist.destroy_process_group()


def measure(ranks: int, columns: int, rounds: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(rank_of, (ranks, folder, columns, rounds), nprocs=ranks, start_method="spawn")
        seconds = torch.load(Path(folder) / "seconds.pt")
    middle = {name: milliseconds(times) for name, times in seconds.items()}
    found = []
    for name in VARIANTS:
        row: dict[str, Any] = {"R": ranks, "P": power(columns), "step": name, "ms": round(middle[name], 2)}
        row["ms here"] = round(middle["here"], 2) if name != "vertices" else ""
        more = [a - b for a, b in zip(seconds[name], seconds["rows, none due"], strict=True)]
        due = name.startswith("rows") and name != "rows, none due"
        row["transfer: ms"] = round(milliseconds(more), 2) if due else ""
        row["MB"] = round(sent(name, ranks, K // ranks, columns) / 1e6, 1)
        if name in ("rows, dense M", "rows, spectral"):
            row["all-gather: ms"] = round(middle["all-gather"], 2)
            row["all-gather: MB"] = round(sent("all-gather", ranks, K // ranks, columns) / 1e6, 1)
        found.append(row)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two ranks and the smallest size only, few rounds")
    quick = parser.parse_args().quick
    cases = [(2, 100_000)] if quick else [(ranks, columns) for columns in (100_000, 1_000_000) for ranks in (2, 4)]
    rows = [row for ranks, columns in cases for row in measure(ranks, columns, 5 if quick else 15)]
    print(table(rows))
    print(table(arithmetic()))
    if not quick:
        print(write("subproblem_mesh", rows, NOTES))
        print(write("subproblem_mesh_arithmetic", arithmetic(), ARITHMETIC_NOTES))


if __name__ == "__main__":
    main()
