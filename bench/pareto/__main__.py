"""Trains fronts, or reports on those that were trained: ``make pareto``, ``pareto-quick``, ``pareto-report``."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from ..measure import RESULTS
from .arms import ARMS
from .plan import Plan
from .problems import PROBLEMS
from .runs import OPTIONS

FOLDER = RESULTS / "pareto"
QUICK = {
    "problems": ("bn8", "di"),
    "arms": ("ind", "spec", "vertices", "pml", "branch25", "vbranch25", "mean", "placebo"),
    "steps": {"bn8": 500, "di": 500},
    "seeds": 3,
}


def names(of: dict[str, object]) -> object:
    def parse(text: str) -> tuple[str, ...]:
        chosen = tuple(text.split(","))
        if unknown := [name for name in chosen if name not in of]:
            raise argparse.ArgumentTypeError(f"expected names among {', '.join(of)}, got {', '.join(unknown)}")
        return chosen

    return parse


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m bench.pareto", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train what is missing; may be stopped and started again at any time")
    run.add_argument("--quick", action="store_true", help="two problems, a third of the steps, 3 seeds")
    run.add_argument("--problems", type=names(dict(PROBLEMS)), help=f"default: {','.join(PROBLEMS)}")
    run.add_argument("--arms", type=names(dict(ARMS)), help=f"default: {','.join(ARMS)}")
    run.add_argument("--seeds", type=int, help="reported seeds; default 10, quick 3")
    run.add_argument("--options", default="", choices=["", *OPTIONS, "batch4+cosine"], help="of every run")
    run.add_argument("--workers", type=int, default=2, help="processes side by side, of one thread each")
    run.add_argument("--minutes", type=float, help="start no further run after so long")
    report = commands.add_parser("report", help="tables and figures of the records that are there")
    report.add_argument("--quick", action="store_true", help="of the quick form")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None, folder: Path = FOLDER) -> None:
    chosen = arguments(argv)
    folder = folder / "quick" if chosen.quick else folder
    if chosen.command == "report":
        from .report import report

        report(folder)
        return
    from .drive import drive

    plan = Plan(
        problems=chosen.problems or (QUICK["problems"] if chosen.quick else tuple(PROBLEMS)),
        arms=chosen.arms or (QUICK["arms"] if chosen.quick else tuple(ARMS)),
        seeds=chosen.seeds or (QUICK["seeds"] if chosen.quick else 10),
        steps=QUICK["steps"] if chosen.quick else {},
        options=chosen.options,
    )
    end = None if chosen.minutes is None else time.monotonic() + 60 * chosen.minutes
    for problem in plan.problems:  # data that is missing is told of before hours are spent
        try:
            PROBLEMS[problem].parts()
        except (FileNotFoundError, ImportError) as error:
            rest = ",".join(name for name in plan.problems if name != problem)
            raise SystemExit(f"{problem}: {error}; or go without it: --problems {rest}") from error
    drive(plan, folder, chosen.workers, lambda: end is not None and time.monotonic() > end)


if __name__ == "__main__":
    sys.exit(main())
