"""Every kernel family on a GPU against torch and against a device copy; waits and launches of whole steps.

python -m bench.bench_gpu [--device cuda] [--json FILE] [--quick]

With --device cpu it runs all the same, timed by the host's clock: a rehearsal, whose figures mean nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from bench.gpu_cases import Case, Run, makers
from bench.gpu_steps import steps
from bench.measure import power, table

ROUNDS = 30
WARM_UP = 3
SIZES = (10_000_000, 100_000_000)
TARGET = 0.9  # of the bandwidth of a device copy
LARGEST_COPY = 1 << 30  # bytes of each of its two buffers
SPIN = 5_000_000  # cycles, a few milliseconds: the host gets ahead, so that events time the device alone
NOTES = (
    "CUDA events after warm-up, medians of 30. GB/s: bytes that must move over time; x copy: that over the bandwidth "
    "of a device copy of as many bytes (read + write, at most 2 GiB) in the same row. Others: their time over ours. "
    "x L2: bytes over the size of the cache."
)


def seconds_of(run: Run, device: torch.device, rounds: int) -> float:
    """The median time of a call."""
    for _ in range(WARM_UP):
        run()
    if device.type != "cuda":
        times = []
        for _ in range(rounds):
            begin = time.perf_counter()
            run()
            times.append(time.perf_counter() - begin)
        return statistics.median(times)
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(rounds)]
    torch.cuda.synchronize(device)
    torch.cuda._sleep(SPIN)
    for begin_event, end_event in events:
        begin_event.record()
        run()
        end_event.record()
    torch.cuda.synchronize(device)
    return statistics.median(begin_event.elapsed_time(end_event) for begin_event, end_event in events) / 1e3


def copy_bandwidth(num_bytes: int, device: torch.device, rounds: int) -> float:
    """Bytes per second, read and written, of a copy that moves about as many bytes."""
    size = max(min(num_bytes // 2, LARGEST_COPY) // 4, 1)
    source, target = torch.ones(size, device=device), torch.zeros(size, device=device)
    return 8 * size / seconds_of(lambda: target.copy_(source), device, rounds)


def cache_bytes(device: torch.device) -> int | None:
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else None


def timed(case: Case, device: torch.device, rounds: int) -> dict[str, Any]:
    ours = seconds_of(case.ours(), device, rounds)
    row: dict[str, Any] = {"family": case.family, **case.shape, "P": power(case.shape["P"])}
    row |= {"ms": round(ours * 1e3, 4), "GB/s": round(case.num_bytes / ours / 1e9)}
    row["x copy"] = round(case.num_bytes / ours / copy_bandwidth(case.num_bytes, device, rounds), 3)
    if cache := cache_bytes(device):
        row["x L2"] = round(case.num_bytes / cache, 1)
    for name, make in case.peers().items():
        try:
            row[f"{name} / ours"] = round(seconds_of(make(), device, rounds) / ours, 3)
        except Exception as error:  # a peer that cannot run (no Triton, say) is no failure of ours; it is in the row
            row[f"{name} / ours"] = f"{type(error).__name__}: {error}"[:200]
    return row


def release(device: torch.device) -> None:
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


class Report:
    """What was measured so far; on disk after each row, since the whole may be stopped by a time limit."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.content: dict[str, Any] = {"notes": NOTES, "rows": [], "left out": [], "steps": [], "below target": []}

    def add(self, kind: str, entry: dict[str, Any]) -> None:
        self.content[kind].append(entry)
        self.content["below target"] = below_target(self.content["rows"])
        if self.path:
            self.path.write_text(json.dumps(self.content, indent=1) + "\n")


def measure_all(device: torch.device, sizes: tuple[int, ...], rounds: int, report: Report) -> None:
    for entry in steps(device):
        report.add("steps", entry)
    for columns in sizes:
        # torch.compile takes seconds for each shape: at one size only, and not in a rehearsal
        for make in makers(columns, compiled=columns == SIZES[0]):
            release(device)
            try:
                report.add("rows", timed(make(device), device, rounds))
            except torch.OutOfMemoryError:
                report.add("left out", {"case": str(make.args), "family": make.func.__name__, "reason": "memory"})
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # raises what a kernel did wrong in the last row


def below_target(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that are slower than the target, or than a peer."""
    return [
        row
        for row in rows
        if row["x copy"] < TARGET or any(key.endswith("/ ours") and not _ahead(row[key]) for key in row)
    ]


def _ahead(value: float | str) -> bool:
    return isinstance(value, str) or value > 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path, help="written after each row")
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds: a rehearsal")
    chosen = parser.parse_args()
    report = Report(chosen.json)
    sizes, rounds = ((20_000,), 3) if chosen.quick else (SIZES, ROUNDS)
    measure_all(torch.device(chosen.device), sizes, rounds, report)
    rows, entries = report.content["rows"], report.content["steps"]
    for family in dict.fromkeys(row["family"] for row in rows):
        print(table([row for row in rows if row["family"] == family]), "\n")
    print(table(entries), "\n")
    print(f"{len(report.content['below target'])} of {len(rows)} rows below {TARGET} of a copy, or behind torch")
    return 0 if all(entry["right"] for entry in entries) else 1


if __name__ == "__main__":
    raise SystemExit(main())
