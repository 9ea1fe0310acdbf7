"""Everything that can be proven of the CUDA kernels on a machine with a GPU, in one command; see parts().

tools/gpu_check.sh [--out DIR] [--commit TEXT] [--dry-run] [--only PART...] [--only-failed]

Needs what a CUDA image has and no network: torch with CUDA, nvcc, g++, CMake, ninja, pybind11, pytest, hypothesis;
where they are there, pytest-xdist, compute-sanitizer, ncu and Triton are used.  README.md beside this file tells how to
prepare a machine that has only those.  Writes DIR/gpu-check-NAME-DATE.json after each part and, of the part "timing",
DIR/gpu-NAME-DATE.json; fails if any part did that must pass.  --dry-run does all that can be done without a GPU, with
the emulator in its place.  --only-failed builds again and runs the tests that failed last time.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tools.gpu_check.runner import RESULT, ROOT, UNTIL, Part, Report, run_part, run_parts, write_json

PYTHON = sys.executable
TOTAL, AGAIN = 400.0, 120.0  # seconds for everything, and with --only-failed
PATIENCE = 10  # how many times as long a rehearsal may take: it may compile, and emulate, on one core

REHEARSED = ("tests/ops/test_transfer.py", "tests/ops/test_finite.py")  # a dry run needs no more of the tests
CUDA = "/usr/local/cuda/bin"  # where a toolkit is that is not in PATH


def module(name: str, *arguments: str) -> list[str]:
    return [PYTHON, "-m", name, *arguments]


def of_check(name: str, *arguments: str) -> list[str]:
    return module(f"tools.gpu_check.{name}", RESULT, *arguments)


def of_bench(name: str, *arguments: str) -> list[str]:
    return module(f"bench.{name}", "--json", RESULT, *arguments)


def parts(architecture: str | None) -> list[Part]:
    """The parts for a GPU of this architecture ("9.0"), or for a dry run (None), in the order of their worth.

    All together they would take longer than there is time: what comes last gets what is left.
    """
    built_for = architecture or ("9.0" if shutil.which("nvcc") else "none")
    dry = [] if architecture else ["--dry-run"]
    quick = ["--device", "cuda"] if architecture else ["--device", "cpu", "--quick"]
    tests = ["cuda"] if architecture else ["cuda-emulated", *REHEARSED]
    slower = 1 if architecture else PATIENCE
    return [
        Part("build", of_check("build", built_for), 90 * slower),
        Part("smoke", of_check("smoke", *dry), 15 * slower),
        Part("timing", of_bench("gpu_table", "--until", UNTIL, *quick), 60 * slower, shown=True),
        Part("tests", of_check("suite", UNTIL, *tests), 150 * slower),
        Part("bits", of_check("bits", *dry), 30 * slower, {"OMP_NUM_THREADS": "1"}),  # small problems
        Part("steps", of_bench("gpu_steps", *quick[:2]), 20 * slower),
        Part("sanitizer", of_check("sanitize", UNTIL, built_for, *dry), 60 * slower, must_end=False, shown=True),
        Part("counters", of_check("counters", UNTIL, *dry), 45 * slower, must_end=False, shown=True),
        Part("peers", of_bench("bench_gpu", "--until", UNTIL, *quick), 120 * slower, must_end=False, shown=True),
    ]


def failed_parts(architecture: str | None) -> list[Part]:
    """For another look at the tests that have failed."""
    slower = 1 if architecture else PATIENCE
    built_for = architecture or ("9.0" if shutil.which("nvcc") else "none")
    return [
        Part("build", of_check("build", built_for, "--no-emulator"), 60 * slower),
        Part("tests", of_check("suite", UNTIL, "cuda" if architecture else "cuda-emulated", "--failed"), 110 * slower),
    ]


def machine_part(dry: bool, commit: str) -> Part:
    arguments = ["--commit", commit, *(["--dry-run"] if dry else [])]
    return Part("machine", of_check("machine", *arguments), 30)


def name_of(machine: dict[str, Any]) -> str:
    """nvidia-h100-80gb-hbm3-2026-01-31"""
    words = re.sub(r"[^a-z0-9]+", "-", machine["gpu"].lower()).strip("-")
    return f"{words}-{machine['date']}"


def write_table(report: Report, path: Path) -> None:
    """The timing table in the form of the other files in bench/results."""
    table = report.content["parts"].get("timing", {}).get("result")
    if table:
        write_json(path, {"machine": report.content["machine"], **table})
        print(f"timing table: {path}")


def check(chosen: argparse.Namespace, out: Path) -> int:
    end = time.monotonic() + (AGAIN if chosen.only_failed else TOTAL) * (PATIENCE if chosen.dry_run else 1)
    part = machine_part(chosen.dry_run, chosen.commit)
    entry = run_part(part, part.limit)
    if entry["status"] != "ok":
        print(entry["output"])
        return 1
    machine = entry["result"]
    print(f"{machine['gpu']}, torch {machine['torch']}, nvcc {machine['nvcc']}, commit {machine['commit']}")
    out.mkdir(parents=True, exist_ok=True)
    name, suffix = name_of(machine), "-failed" if chosen.only_failed else ""
    report = Report(out / f"gpu-check-{name}{suffix}.json", {"machine": machine, "dry run": chosen.dry_run})
    every = (failed_parts if chosen.only_failed else parts)(machine.get("architecture"))
    run_parts([part for part in every if not chosen.only or part.name in chosen.only], report, end)
    write_table(report, out / f"gpu-{name}.json")
    print(f"{'all passed' if report.passed else 'NOT all passed'}: {report.path}")
    return 0 if report.passed else 1


def prepare_environment() -> None:
    """For all parts: programs beside this interpreter (cmake, ninja) and CUDA's are found; no reference in place of
    kernels."""
    os.environ["PATH"] = os.pathsep.join([str(Path(PYTHON).parent), os.environ.get("PATH", ""), CUDA])
    os.environ["MT2O_REQUIRE_NATIVE"] = "1"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="default: bench/results; of a dry run, nowhere that stays")
    parser.add_argument("--commit", default="", help="for the report, where there is no git")
    parser.add_argument("--dry-run", action="store_true", help="without a GPU")
    names = [part.name for part in parts(None)]
    parser.add_argument("--only", nargs="+", default=[], choices=names, metavar="PART", help=f"of {', '.join(names)}")
    parser.add_argument("--only-failed", action="store_true", help="the tests that failed last time, in two minutes")
    return parser.parse_args()


def main() -> int:
    chosen = arguments()
    prepare_environment()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the part that runs ends too
    if chosen.out is None and chosen.dry_run:
        with tempfile.TemporaryDirectory() as directory:
            return check(chosen, Path(directory))
    return check(chosen, chosen.out or ROOT / "bench" / "results")


if __name__ == "__main__":
    sys.exit(main())
