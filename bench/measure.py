"""How everything here is timed: all variants in one process, in turn, medians, ratios of the same round."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import mt2o_ext

# OpenMP's workers spin for a few milliseconds after each parallel region, which would take a core from the next
# variant; once asleep they take as long to wake.  So: wait, run once untimed, then time.
PAUSE = 0.01

RESULTS = Path(__file__).with_name("results")


def interleaved(variants: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every variant in every round; they take turns, so that what else the machine does hits all alike."""
    for run in variants.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            time.sleep(PAUSE)
            run()
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def milliseconds(times: list[float]) -> float:
    return round(statistics.median(times) * 1e3, 4)


def ratio(times: list[float], of: list[float]) -> float:
    """The median over rounds of one variant's time over another's in the same round."""
    return round(statistics.median(a / b for a, b in zip(times, of, strict=True)), 3)


def lower_of(*several: list[float]) -> list[float]:
    return [min(round_) for round_ in zip(*several, strict=True)]


def peak_bytes(function: Callable[[], object]) -> int:
    """Bytes that are allocated at most while it runs; what is freed of earlier memory does not count."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    total = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        highest = max(highest, total)
    return highest


def machine() -> dict[str, Any]:
    processors = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    model = processors[0].partition(":")[2].strip() if processors else platform.processor()
    info = mt2o_ext.backend_info()
    return {
        "date": datetime.date.today().isoformat(),
        "processor": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "instruction set": info["instruction set"],
        "load average": round(os.getloadavg()[0], 2),
    }


def write(name: str, rows: list[dict[str, Any]], notes: str) -> Path:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), "notes": notes, "rows": rows}, indent=1) + "\n")
    return path


def power(number: int) -> str:
    """1000000 -> 1e6."""
    return f"{number:.0e}".replace("e+0", "e")


def table(rows: list[dict[str, Any]]) -> str:
    """Rows of the same keys as a Markdown table."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(str(row.get(name, "")) for name in names) + " |" for row in rows]
    return "\n".join(lines)
