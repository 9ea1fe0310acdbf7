"""The tests of one backend; counts and failures as JSON.

python -m tools.gpu_check.suite FILE UNTIL BACKEND [--failed] [PATH]...

UNTIL: when pytest is stopped, as time.time() counts.
--failed: only those that have failed, or could not be collected, in the last run without it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tools.gpu_check.runner import ROOT, write_json

WORKERS = 12  # each has a CUDA context of its own
SHOWN = 40  # failures that are written out
SLOWEST = 10  # tests whose time is written out
FAILED = ROOT / "build" / "gpu-check" / "failed.json"  # for --failed


def selection(backend: str) -> str:
    """pytest's -k for the tests of a backend: its name is in their ids."""
    return "cuda and not emulated" if backend == "cuda" else backend


def command(backend: str, record: Path, paths: list[str]) -> list[str]:
    """Warnings are none of the failures: those of another torch or driver say nothing about the kernels."""
    xdist = importlib.util.find_spec("xdist") is not None
    workers = ["-n", str(min(WORKERS, os.cpu_count() or 1))] if xdist else []
    options = ["-q", "-W", "default", "-p", "no:cacheprovider", "--continue-on-collection-errors", "-m", "not slow"]
    # One word: pytest would take a path by itself for one of tests, and look for its settings above both.
    recorder = ["-p", "tools.gpu_check.recorder", f"--record={record}"]
    return [sys.executable, "-m", "pytest", *options, *workers, *recorder, "-k", selection(backend), *paths]


def run(words: list[str], until: float) -> int | None:
    """pytest's exit status; None if it was stopped for taking longer."""
    environment = os.environ | {"MT2O_REQUIRE_NATIVE": "1", "OMP_NUM_THREADS": "1"}
    try:
        return subprocess.run(words, cwd=ROOT, env=environment, timeout=max(until - time.time(), 0)).returncode
    except subprocess.TimeoutExpired:
        return None


def counts(lines: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """passed, failed, skipped (how often for each reason), not collected (files), the first failures, the slowest."""
    last = {line["id"]: line for line in lines}  # of a test that passes and fails in its tear-down, the failure
    of = {
        outcome: [line for line in last.values() if line["outcome"] == outcome]
        for outcome in ("passed", "failed", "skipped", "not collected")
    }
    reasons = [line["message"] for line in of["skipped"]]
    slowest = sorted(of["passed"] + of["failed"], key=lambda line: -line["seconds"])[:SLOWEST]
    return {
        "passed": len(of["passed"]),
        "failed": len(of["failed"]),
        "skipped": {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)},
        "not collected": {line["id"]: line["message"] for line in of["not collected"]},
        "failures": {line["id"]: line["message"] for line in of["failed"][:SHOWN]},
        "again": [line["id"] for line in of["failed"] + of["not collected"]],
        "slowest": {line["id"]: line["seconds"] for line in slowest},
    }


def names_a_backend(path: str) -> bool:
    """False for test files that have nothing to do with the choice of a backend (plots, the demo)."""
    return not (ROOT / path).is_file() or "backend" in (ROOT / path).read_text()


def right(result: dict[str, Any]) -> bool:
    """pytest came to its end, none failed, every file that tests backends was there, and most tests were not skipped.

    (They are where the backend is missing, and those that need none pass all the same.)
    """
    missing = [path for path in result["not collected"] if names_a_backend(path)]
    ran = result["exit status"] in (0, 1) and result["passed"] > sum(result["skipped"].values())
    return ran and result["failed"] == 0 and not missing


def main() -> int:
    path, until, backend = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
    again, paths = "--failed" in sys.argv[4:], [word for word in sys.argv[4:] if word != "--failed"]
    if again:
        paths = json.loads(FAILED.read_text()) if FAILED.exists() else []
        if not paths:
            print(f"{FAILED.relative_to(ROOT)} names no test that has failed: run the part `tests` first")
            return 1
    with tempfile.TemporaryDirectory() as directory:
        record = Path(directory, "record")
        record.touch()
        code = run(command(backend, record, paths), until)
        whole_lines = record.read_text().rpartition("\n")[0].splitlines()  # pytest may have been stopped in the last
        result = counts(map(json.loads, whole_lines)) | {"exit status": code}
    write_json(path, result)
    if not again:
        FAILED.parent.mkdir(parents=True, exist_ok=True)
        write_json(FAILED, result["again"])
    print("stopped: out of time" if code is None else f"pytest: exit status {code}")
    print({key: result[key] for key in ("passed", "failed", "skipped", "not collected")})
    return 0 if right(result) else 1


if __name__ == "__main__":
    sys.exit(main())
