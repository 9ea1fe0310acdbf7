"""The same numbers through the emulator, the GPU (twice) and the CPU's kernels, compared as bits; JSON.

python -m tools.gpu_check.bits FILE [--dry-run]

Emulated and real CUDA must agree everywhere.  CUDA and CPU must agree in the families that go column by column or
problem by problem; where sums are taken in another order (gram, priority, excess) what differs is recorded.

What is computed may be any NaN on one side where it is any NaN on the other: a GPU has one for the results of its
arithmetic, a CPU hands on the one that it was given.  What must not be touched, the padding, is compared as bits.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tools.gpu_check import problems
from tools.gpu_check.problems import CPU, CUDA, Backend, Call
from tools.gpu_check.runner import ROOT, write_json

ELEMENTS = {"track", "feed", "drop_signs", "draw"}
MASKS = {"mask", "harmony", "exchange"}
IN_ONE_ORDER = {"combine", "transfer", "step", "finite", *ELEMENTS, *MASKS, "judge", "settle", "count", "solve"}


def bits_of(tensor: Tensor) -> Tensor:
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.contiguous().view(integer)


def computed(tensor: Tensor) -> Tensor:
    """Where operators write: not in the padding of rows."""
    inside = problems.LAYOUT.inside
    return inside.expand_as(tensor) if tensor.shape[-1:] == inside.shape else torch.ones_like(tensor, dtype=torch.bool)


def unequal(actual: Tensor, expected: Tensor) -> Tensor:
    same_nan = actual.isnan() & expected.isnan() & computed(actual)
    return (bits_of(actual) != bits_of(expected)) & ~same_nan


def difference(actual: list[Tensor], expected: list[Tensor]) -> dict[str, Any] | None:
    """How many numbers differ, and by how much at most; None if none does."""
    pairs = [(a, e, unequal(a, e)) for a, e in zip(actual, expected, strict=True)]
    numbers = sum(int(wrong.sum()) for _, _, wrong in pairs)
    if not numbers:
        return None
    distances = [(a[wrong].double() - e[wrong].double()).abs() for a, e, wrong in pairs]
    return {"numbers": numbers, "largest": max(float(d.nan_to_num(nan=torch.inf).max()) for d in distances if len(d))}


def results(before: list[Tensor], after: list[Tensor]) -> int:
    """How many numbers, NaN not among them, an operator has written that were not there before."""
    return sum(int((unequal(a, b) & ~a.isnan()).sum()) for a, b in zip(after, before, strict=True))


def compare(subject: Backend, emulated: Backend, cpu: Backend, calls: list[Call]) -> dict[str, Any]:
    """What differs of ``subject`` from each other backend, by case; "must agree" names those that may not.

    "nothing compared": the cases in which ``subject`` has not written a number, so that agreement says nothing.
    """
    result: dict[str, Any] = {"cases": len(calls), "numbers": 0, "nothing compared": [], "must agree": [], "differ": {}}
    for call in calls:
        actual = call.after(subject)
        numbers = results(call.before(), actual)
        result["numbers"] += numbers
        if not numbers:
            result["nothing compared"].append(f"{call.family} {call.what}")
        others = {"itself": subject, emulated.name: emulated, cpu.name: cpu}
        for name, other in others.items():
            if found := difference(actual, call.after(other)):
                case = f"{call.family} {call.what}: {subject.name} and {name}"
                result["differ"][case] = found
                if other is not cpu or call.family in IN_ONE_ORDER:
                    result["must agree"].append(case)
    return result


def families() -> set[str]:
    """Those that have CUDA kernels."""
    declared = (ROOT / "csrc" / "cuda" / "kernels.h").read_text()
    return set(re.findall(r"^Problem (\w+)\(", declared, flags=re.MULTILINE))


def right(result: dict[str, Any]) -> bool:
    return result["cases"] > 0 and not result["must agree"] and not result["nothing compared"]


def main() -> int:
    path, dry = Path(sys.argv[1]), "--dry-run" in sys.argv[2:]
    emulated = problems.emulated()
    calls = [call for call in problems.calls() if call.family in families()]
    result = compare(emulated if dry else CUDA, emulated, CPU, calls)
    write_json(path, result)
    print(f"{result['cases']} cases, {result['numbers']} numbers, {len(result['differ'])} cases differ")
    for what in ("must agree", "nothing compared"):
        print(f"{what}: {len(result[what])}", *result[what], sep="\n  ")
    return 0 if right(result) else 1


if __name__ == "__main__":
    sys.exit(main())
