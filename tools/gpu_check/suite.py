"""The tests of one backend; counts and failures as JSON.

python -m tools.gpu_check.suite FILE BACKEND [PATH]...
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from tools.gpu_check.runner import ROOT

WORKERS = 8  # each has a CUDA context of its own
SHOWN = 40  # failures that are written out


def selection(backend: str) -> str:
    """pytest's -k for the tests of a backend: its name is in their ids."""
    return "cuda and not emulated" if backend == "cuda" else backend


def command(backend: str, report: Path, paths: list[str]) -> list[str]:
    xdist = importlib.util.find_spec("xdist") is not None
    workers = ["-n", str(min(WORKERS, os.cpu_count() or 1))] if xdist else []
    options = ["-q", "-p", "no:cacheprovider", "--continue-on-collection-errors", "-m", "not slow"]
    return [
        sys.executable, "-m", "pytest", *options, *workers, "-k", selection(backend), f"--junitxml={report}", *paths
    ]  # fmt: skip


def counts(report: Path) -> dict[str, Any]:
    """passed, failed, skipped (with how often for each reason), not collected (files), and the first failures."""
    result: dict[str, Any] = {"passed": 0, "failed": 0, "skipped": {}, "not collected": {}, "failures": {}}
    for case in ElementTree.parse(report).iter("testcase"):
        name = ".".join(filter(None, [case.get("classname"), case.get("name")]))
        problems = [child for child in case if child.tag in ("failure", "error")]
        skips = [child.get("message", "") for child in case if child.tag == "skipped"]
        message = " | ".join(child.get("message", "") for child in problems)[:500]
        if any(child.get("message") == "collection failure" for child in problems):
            result["not collected"][name] = (problems[0].text or "").strip().rpartition("\n")[2]
        elif problems:
            result["failed"] += 1
            if len(result["failures"]) < SHOWN:
                result["failures"][name] = message
        elif skips:
            result["skipped"][skips[0]] = result["skipped"].get(skips[0], 0) + 1
        else:
            result["passed"] += 1
    return result


def names_a_backend(module: str) -> bool:
    """False for test modules that have nothing to do with the choice of a backend (plots, the demo)."""
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    return not path.exists() or "backend" in path.read_text()


def right(result: dict[str, Any]) -> bool:
    """Some passed, none failed, and every module that tests backends was there."""
    missing = [module for module in result["not collected"] if names_a_backend(module)]
    return result["passed"] > 0 and result["failed"] == 0 and not missing


def main() -> int:
    path, backend, paths = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory, "report.xml")
        environment = os.environ | {"MT2O_REQUIRE_NATIVE": "1", "OMP_NUM_THREADS": "1"}
        code = subprocess.run(command(backend, report, paths), cwd=ROOT, env=environment).returncode
        if not report.exists():  # pytest itself could not begin
            return code or 1
        result = counts(report)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print({key: result[key] for key in ("passed", "failed", "skipped", "not collected")})
    return 0 if right(result) else 1


if __name__ == "__main__":
    sys.exit(main())
