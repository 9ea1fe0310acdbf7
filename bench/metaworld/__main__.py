"""Makes demonstrations and runs, or reports on those that were made: ``make metaworld``."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from ..measure import RESULTS
from . import demonstrations
from .plan import SEEDS, needs_episodes, next_run
from .robots import MetaWorld, World
from .runs import Records, run

FOLDER = RESULTS / "metaworld"
SCRATCH = Path(__file__).parents[1] / "scratch" / "metaworld"


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m bench.metaworld", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("run", help="make what is missing; may be stopped and started again at any time")
    make.add_argument("--seeds", type=int, default=SEEDS, help=f"reported seeds; default {SEEDS}")
    make.add_argument("--minutes", type=float, help="start no further run after so long")
    commands.add_parser("report", help="tables and figure of the records that are there")
    return parser.parse_args(argv)


def drive(records: Records, world: World, scratch: Path, seeds: int, minutes: float | None = None) -> None:
    """One run after another, in one thread."""
    path = scratch / "demonstrations.pt"
    if not path.exists():
        demonstrations.save(demonstrations.make(world), path)
    kept = demonstrations.load(path)
    end = float("inf") if minutes is None else time.monotonic() + 60 * minutes
    while time.monotonic() < end and (key := next_run(records.by_key, seeds)) is not None:
        record = run(key, kept, world if needs_episodes(key) else None)
        records.add(record)
        success = f", success {record.success:.3f}" if record.reached else ""
        print(f"{key}: held-out loss {record.loss:.4f}{success}, {sum(record.seconds):.0f} s", flush=True)


def main(argv: list[str] | None = None, folder: Path = FOLDER) -> None:
    chosen = arguments(argv)
    records = Records(folder / "runs.jsonl")
    if chosen.command == "report":
        from .report import report

        report(records, folder)
        return
    torch.set_num_threads(1)
    drive(records, MetaWorld(), SCRATCH, chosen.seeds, chosen.minutes)


if __name__ == "__main__":
    sys.exit(main())
