"""Every kernel family on a GPU beside torch's ways to do the same, torch.compile among them.

python -m bench.bench_gpu [--device cuda] [--json FILE] [--until TIME] [--quick]

The kernels alone, over R and types, are in gpu_table.py.  With --device cpu it runs all the same: a rehearsal, whose
figures mean nothing.
"""

from __future__ import annotations

import argparse
import itertools
import math
from pathlib import Path
from typing import Any

import torch

from bench.gpu_cases import Case, compiled_cases, peer_cases
from bench.gpu_timing import BUFFER, Report, add_cases, ceilings, seconds_of, timed
from bench.measure import table
from bench.network_shapes import Shape, resnet50

ELEMENTS = 100_000_000  # numbers in each set of rows
TARGET = 0.9  # of the bandwidth that a copy, or reading, has
NOTES = (
    "CUDA events after a warm-up, medians. GB/s: bytes that must move over time; x ceiling: that over the bandwidth of "
    "a copy (read + write), or of reading where a kernel only reads. Others: their time over ours."
)


def with_peers(case: Case, device: torch.device, limits: dict[str, float]) -> dict[str, Any]:
    row = timed(case, device, limits)
    for name, make in case.peers().items():
        try:
            row[f"{name} / ours"] = round(seconds_of(make(), device) / row["ms"] * 1e3, 3)
        except Exception as error:  # a peer that cannot run (no Triton, say) is no failure of ours; it is in the row
            row[f"{name} / ours"] = f"{type(error).__name__}: {error}"[:200]
    return row


def measure_all(report: Report, device: torch.device, *, quick: bool) -> None:
    elements, limits = (20_000, ceilings(device, 1 << 20)) if quick else (ELEMENTS, ceilings(device, BUFFER))
    shapes: list[Shape] = [(8, 4, 3, 3), (8,), (10, 8)] if quick else resnet50()
    compiled = itertools.islice(compiled_cases(elements), 1 if quick else None)
    for makers in (peer_cases(elements, shapes), compiled):
        add_cases(report, makers, device, lambda case: with_peers(case, device, limits))
    report.write(**{"below target": below_target(report.content["rows"])})


def below_target(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that are slower than the target, or than a peer."""
    return [
        row
        for row in rows
        if row["x ceiling"] < TARGET or any(key.endswith("/ ours") and not _ahead(row[key]) for key in row)
    ]


def _ahead(value: float | str) -> bool:
    return isinstance(value, str) or value > 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path, help="written after each row")
    parser.add_argument("--until", type=float, default=math.inf, help="when to leave out the rest (time.time())")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: a rehearsal")
    chosen = parser.parse_args()
    report = Report(chosen.json, chosen.until, NOTES)
    measure_all(report, torch.device(chosen.device), quick=chosen.quick)
    rows, errors = report.content["rows"], report.content["errors"]
    for family in dict.fromkeys(row["family"] for row in rows):
        print(table([row for row in rows if row["family"] == family]), "\n")
    print(f"{len(report.content['below target'])} of {len(rows)} rows below {TARGET} of the ceiling, or behind torch")
    print(f"left out for want of time: {', '.join(report.content['left out']) or 'nothing'}", *errors, sep="\n")
    return 1 if errors else 0


if __name__ == "__main__":
    raise SystemExit(main())
