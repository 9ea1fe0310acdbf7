"""Everything that can be proven of the CUDA kernels on a machine with a GPU, in one command; see PARTS.

tools/gpu_check.sh [--out DIR] [--dry-run] [--only PART...]

Needs what a CUDA image has and no network: torch with CUDA, nvcc, g++, CMake, ninja, pybind11, pytest, hypothesis;
where they are there, pytest-xdist, compute-sanitizer and Triton are used.  Writes DIR/gpu-NAME-DATE.json after each
part, and fails if any part did.  --dry-run does all that can be done without a GPU, with the emulator in its place.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.gpu_check.runner import RESULT, ROOT, Part, run_part, run_parts

PYTHON = sys.executable

# So that cmake and ninja of the environment of this interpreter are found.
PATH = os.pathsep.join([str(Path(PYTHON).parent), os.environ.get("PATH", "")])

EMULATOR = (
    "cmake --preset release -DMT2O_TORCH=\"$({python} -c 'import torch; print(torch.__path__[0])')\" && "
    "cmake --build --preset release --target mt2o_emulated"
)
REHEARSED = ("tests/ops/test_transfer.py", "tests/ops/test_finite.py")  # a dry run needs no more of the tests


def module(name: str, *arguments: str) -> list[str]:
    return [PYTHON, "-m", f"tools.gpu_check.{name}", RESULT, *arguments]


def parts(architecture: str | None) -> list[Part]:
    """The parts for a GPU of this architecture ("9.0"), or for a dry run (None).

    Each has its own share of the eight minutes; a rehearsal may compile on one core, and takes what it needs.
    """
    if architecture is None:
        dry, build, timing = ["--dry-run"], {}, ["--device", "cpu", "--quick"]
        tests, slower = ["cuda-emulated", *REHEARSED], 10
    else:
        dry, build, timing = [], {"FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": architecture}, ["--device", "cuda"]
        tests, slower = ["cuda"], 1
    return [
        Part("build", [PYTHON, "setup.py", "build_ext", "--inplace"], 100 * slower, build),
        Part("self-check", [PYTHON, "-m", "mt2o_ext"], 15 * slower, {"MT2O_REQUIRE_NATIVE": "1"}),
        Part("emulator", ["bash", "-c", EMULATOR.format(python=PYTHON)], 60 * slower, {"PATH": PATH}),
        Part("tests", module("suite", *tests), 120 * slower),
        Part("bits", module("bits", *dry), 40 * slower),
        Part("sanitizer", module("sanitize", architecture or "none", *dry), 55 * slower),
        Part("timing", [PYTHON, "-m", "bench.bench_gpu", "--json", RESULT, *timing], 80 * slower),
    ]


def file_name(machine: dict[str, Any]) -> str:
    """gpu-nvidia-h100-80gb-hbm3-2026-01-31.json"""
    words = re.sub(r"[^a-z0-9]+", "-", machine["gpu"].lower()).strip("-")
    return f"gpu-{words}-{machine['date']}.json"


def machine_part(dry: bool) -> Part:
    return Part("machine", module("machine", *(["--dry-run"] if dry else [])), 30)


def check(out: Path, dry: bool, only: Sequence[str] = ()) -> int:
    entry = run_part(machine_part(dry))
    if entry["status"] != "ok":
        print(entry["output"])
        return 1
    machine = entry["result"]
    out.mkdir(parents=True, exist_ok=True)
    path = out / file_name(machine)
    print(f"{machine['gpu']}, torch {machine['torch']}, nvcc {machine['nvcc']}: {path}")
    chosen = [part for part in parts(machine.get("architecture")) if not only or part.name in only]
    return 0 if run_parts(chosen, {"machine": machine, "dry run": dry}, path) else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="default: bench/results; of a dry run, nowhere that stays")
    parser.add_argument("--dry-run", action="store_true", help="without a GPU")
    names = [part.name for part in parts(None)]
    parser.add_argument("--only", nargs="+", default=[], choices=names, metavar="PART", help=f"of {', '.join(names)}")
    chosen = parser.parse_args()
    if chosen.out is None and chosen.dry_run:
        with tempfile.TemporaryDirectory() as directory:
            return check(Path(directory), True, chosen.only)
    return check(chosen.out or ROOT / "bench" / "results", chosen.dry_run, chosen.only)


if __name__ == "__main__":
    sys.exit(main())
