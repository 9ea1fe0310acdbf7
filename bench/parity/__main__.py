"""Makes the runs that are missing, or a table of those that were made."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ..measure import RESULTS
from . import digits, fronts, pairs, records
from .records import Key

FOLDER = RESULTS / "parity"
SCRATCH = Path(__file__).parents[1] / "scratch" / "parity"
SEEDS = 3
"""Of the digits, as published; the fronts have one."""


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m bench.parity", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("run", help="make what is missing; may be stopped and started again at any time")
    make.add_argument("--only", choices=["digits", *fronts.METHODS], help="a part of it")
    make.add_argument("--minutes", type=float, help="start no further run or epoch after so long")
    commands.add_parser("report", help="the tables of the records that are there")
    return parser.parse_args(argv)


def run_digits(path: Path, late: Callable[[], bool]) -> None:
    """Seed after seed of all methods."""
    train, test = pairs.digit_pairs()
    done = records.read(path)
    for seed in range(SEEDS):
        for method in digits.METHODS:
            if late():
                return
            if Key("digits", method, seed) not in done:
                record = digits.run(method, seed, train, test)
                records.append(path, record)
                print(record, flush=True)


def run_front(method: str, path: Path, scratch: Path, late: Callable[[], bool]) -> None:
    """One seed, all epochs that were published, if there is time."""
    try:
        train, validation, test = pairs.garment_pairs()
    except FileNotFoundError as error:
        raise SystemExit(f"{error}; or go without it: --only digits") from error
    training, epochs = fronts.Training(method, 0, train), fronts.METHODS[method].epochs
    for record in fronts.looks(training, scratch / f"{method}.pt", (validation, test), epochs, late):
        records.append(path, record)
        print({name: value for name, value in record.items() if name != "losses"}, flush=True)


def main(argv: list[str] | None = None, folder: Path = FOLDER) -> None:
    chosen = arguments(argv)
    path = folder / "runs.jsonl"
    if chosen.command == "report":
        from .report import report

        report(records.read(path), folder)
        return
    torch.set_num_threads(1)
    end = float("inf") if chosen.minutes is None else time.monotonic() + 60 * chosen.minutes

    def late() -> bool:
        return time.monotonic() > end

    if chosen.only in (None, "digits"):
        run_digits(path, late)
    for method in fronts.METHODS:
        if chosen.only in (None, method) and not late():
            run_front(method, path, SCRATCH, late)


if __name__ == "__main__":
    sys.exit(main())
