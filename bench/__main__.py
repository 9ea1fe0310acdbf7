"""All benchmarks one after another, then README's tables: ``make bench``."""

from __future__ import annotations

import subprocess
import sys

NAMES = [
    "bench_gram",
    "bench_solve",
    "bench_solve_many",
    "bench_transfer",
    "bench_subproblem_mesh",
    "bench_step",
    "bench_priority",
    "bench_optimizer",
    "bench_weightings",
    "bench_row_methods",
    "bench_training",
    "bench_many_losses",
    "bench_masks",
]

for name in NAMES:
    print(f"\n{name}", flush=True)
    subprocess.run([sys.executable, "-m", f"bench.{name}", *sys.argv[1:]], check=True)
if not sys.argv[1:]:
    subprocess.run([sys.executable, "-m", "bench.readme"], check=True)
