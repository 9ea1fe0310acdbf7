"""Every operator once against float64, in seconds: does anything work at all?  JSON.

python -m tools.gpu_check.smoke FILE [--dry-run]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mt2o_ext
from mt2o_ext import _native
from mt2o_ext.ops import reference_solve
from mt2o_ext.self_check import CHECKS, Problem
from tools.gpu_check import problems
from tools.gpu_check.problems import CPU, CUDA, LAYOUT, Backend, Sampler
from tools.gpu_check.runner import ROOT, write_json

REFERENCE = Backend("reference", torch.device("cpu"), reference_solve)
SOLVED = 1e-11  # of the largest number of a solution, that float64 may differ by between two algorithms


def foreign(subject: Backend) -> str:
    """Why what would be checked is not the compiled part of this checkout, or ""."""
    if not Path(mt2o_ext.__file__).is_relative_to(ROOT):
        return f"mt2o_ext of this checkout was expected, {mt2o_ext.__file__} was imported"
    return "" if _native.available(subject.device) else f"no compiled operators: {_native.load_error}"


def sizes(tensors: list[Tensor], signed: bool) -> list[Tensor]:
    return [t.double() if signed else t.double().abs() for t in tensors]


def solver_error(call: problems.Call, subject: Backend) -> float:
    """The largest error of a solution, of its largest number; eigenvectors have either sign."""
    signed = call.operator != "eigen_"
    before, actual, expected = call.before(), call.after(subject), call.after(REFERENCE)
    written = [not torch.equal(b, e) for b, e in zip(before, expected, strict=True)]  # so not the workspace
    pairs = list(zip(sizes(actual, signed), sizes(expected, signed), written, strict=True))
    largest = max(float(e.max()) for _, e, is_result in pairs if is_result)
    errors = [float((a - e).abs().nan_to_num(nan=torch.inf).max()) for a, e, is_result in pairs if is_result]
    return max(errors) / largest


def checks(subject: Backend) -> Iterator[dict[str, Any]]:
    for name, check in CHECKS.items():
        error, allowed = check(Problem(subject.device))
        yield {"operator": name, "error": error, "allowed": allowed}
    for call in problems.solves(Sampler(LAYOUT, seed=3), tasks=3, batch=2):
        yield {"operator": call.operator, "error": solver_error(call, subject), "allowed": SOLVED}


def right(result: dict[str, Any]) -> bool:
    return all(entry["error"] <= entry["allowed"] for entry in result["checks"])  # no NaN is


def main() -> int:
    path, dry = Path(sys.argv[1]), "--dry-run" in sys.argv[2:]
    subject = CPU if dry else CUDA
    if reason := foreign(subject):
        print(reason)
        return 1
    result: dict[str, Any] = {"found": _native.backend_info(), "checks": []}
    for entry in checks(subject):
        result["checks"].append(entry)
        write_json(path, result)
        print(f"{entry['operator']:<18}error {entry['error']:8.1e}   allowed {entry['allowed']:8.1e}")
    return 0 if right(result) else 1


if __name__ == "__main__":
    sys.exit(main())
