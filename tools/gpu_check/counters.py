"""Hardware counters of four kernels, read by ncu: bytes of memory, occupancy, what warps wait for; JSON.

python -m tools.gpu_check.counters FILE UNTIL [--dry-run]

Where ncu is not there, may not read counters or is not done in time, that is said and no failure.  A dry run launches
the kernels on the CPU, without ncu.  UNTIL: as time.time() counts.
"""

from __future__ import annotations

import csv
import glob
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.gpu_cases import Combine, Finite, Gram, Step
from bench.measure import table
from tools.gpu_check.runner import ROOT, write_json

ELEMENTS = 100_000_000  # numbers in each set of rows
INSTALLED = "/opt/nvidia/nsight-compute/*/ncu"  # where it is if it is not in PATH
LOG = ROOT / "build" / "gpu-check" / "ncu.csv"
WORDS = 1500  # characters of what ncu said that are kept
STALLS = (
    "barrier", "branch_resolving", "dispatch_stall", "drain", "imc_miss", "lg_throttle", "long_scoreboard",
    "math_pipe_throttle", "membar", "mio_throttle", "no_instruction", "not_selected", "selected", "short_scoreboard",
    "wait",
)  # fmt: skip
STALL = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
METRICS = {
    "us": "gpu__time_duration.sum",
    "read, GB": "dram__bytes_read.sum",
    "written, GB": "dram__bytes_write.sum",
    "% of DRAM": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "% occupancy": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "registers": "launch__registers_per_thread",
} | {name: STALL.format(name) for name in STALLS}
SCALES = {"us": 1e-3, "read, GB": 1e-9, "written, GB": 1e-9}  # of nanoseconds and bytes


def cases(elements: int) -> list[partial[Any]]:
    return [
        partial(Gram, 8, torch.float32, elements // 8),
        partial(Step, 5, 2, torch.float32, elements // 5),
        partial(Finite, 8, 1, torch.bfloat16, elements // 8),
        partial(Combine, 1, 8, torch.float32, elements // 8),
    ]


def launch(device: torch.device, elements: int) -> None:
    """Each kernel twice; what ncu is to look at is the second time."""
    for make in cases(elements):
        run = make(device=device).ours()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.profiler.start()
            run()
            torch.cuda.synchronize(device)
            torch.cuda.profiler.stop()


def find_ncu() -> str | None:
    return shutil.which("ncu") or max(glob.glob(INSTALLED), default=None)


def command(ncu: str, metrics: Iterable[str]) -> list[str]:
    options = ["--clock-control", "none", "--profile-from-start", "off", "--csv", "--page", "raw"]
    options += ["--print-units", "base", "--print-kernel-base", "function", "--log-file", str(LOG)]
    program = [sys.executable, "-m", "tools.gpu_check.counters", "--launch"]
    return [ncu, *options, "--metrics", ",".join(metrics), *program]


def kernels(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """What ncu's table says of each launch: a line of names, one of units, one for each launch, among other lines."""
    rows = csv.DictReader(line for line in lines if line.startswith('"'))
    for row in rows:
        if row["ID"]:  # not the line of units
            yield {"kernel": row["Kernel Name"]} | dict(values(row))


def values(row: dict[str, str]) -> Iterator[tuple[str, float]]:
    for name, metric in METRICS.items():
        number = row.get(metric, "").replace(",", "")
        if number and number[0].isdigit():  # what this GPU does not count is "n/a" or empty
            yield name, round(float(number) * SCALES.get(name, 1.0), 3)


def line_of(kernel: dict[str, Any]) -> dict[str, Any]:
    """For the table: without the stalls but for the three largest."""
    stalls = sorted((name for name in STALLS if name in kernel), key=lambda name: -kernel[name])[:3]
    rest = {name: value for name, value in kernel.items() if name not in STALLS}
    return rest | {"warps per issue that wait for": ", ".join(f"{name} {kernel[name]}" for name in stalls)}


def measured(ncu: str, until: float) -> dict[str, Any]:
    """ "kernels", or "refused": what ncu said.  If there are none with all counters, without those of stalls."""
    said = ""
    for metrics in (METRICS.values(), [METRICS[name] for name in METRICS if name not in STALLS]):
        said += output_of(command(ncu, metrics), until)
        if found := list(kernels(LOG.read_text(errors="replace").splitlines())):
            return {"kernels": found}
        said += LOG.read_text(errors="replace")
    return {"refused": said[-WORDS:]}


def output_of(words: list[str], until: float) -> str:
    LOG.parent.mkdir(parents=True, exist_ok=True)
    LOG.write_text("")
    try:
        done = subprocess.run(
            words, cwd=ROOT, timeout=max(until - time.time(), 0), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "out of time\n"
    return done.stdout


def main() -> int:
    if sys.argv[1] == "--launch":
        launch(torch.device("cuda"), ELEMENTS)
        return 0
    path, until, dry = Path(sys.argv[1]), float(sys.argv[2]), "--dry-run" in sys.argv[3:]
    ncu = find_ncu()
    if dry:
        launch(torch.device("cpu"), 20_000)
        result: dict[str, Any] = {"refused": "a dry run"}
    elif ncu is None:
        result = {"refused": f"there is no ncu in PATH ({os.environ['PATH']}) or as {INSTALLED}"}
    else:
        result = measured(ncu, until)
    write_json(path, result)
    if "refused" in result:
        print(f"no counters: {result['refused']}")
    else:
        print(table([line_of(kernel) for kernel in result["kernels"]]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
