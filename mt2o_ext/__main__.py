"""``python -m mt2o_ext``: facts about what was built, and a check of every kernel on every device; for bug reports."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch

from . import _native
from .self_check import CHECKS, Problem


def devices() -> Iterator[torch.device]:
    """The CPU, and every GPU that torch sees."""
    yield torch.device("cpu")
    yield from (torch.device("cuda", index) for index in range(torch.cuda.device_count()))


def self_check(device: torch.device) -> bool:
    """Prints a line for each family; True if all are right."""
    kind = "compiled" if _native.available(device) else "reference"
    all_right = True
    for name, check in CHECKS.items():
        error, allowed = check(Problem(device))
        right = error <= allowed
        all_right &= right
        verdict = "ok" if right else "WRONG"
        print(f"{name:<12}{device!s:<8}{kind:<11}error {error:8.2e}   allowed {allowed:8.2e}   {verdict}")
    return all_right


def main() -> int:
    """Prints all of it; returns 0 if every check passed, else 1."""
    for name, value in _native.backend_info().items():
        text = ", ".join(value) if isinstance(value, list) else "none" if value is None else value
        print(f"{name:<18}{text}")
    print()
    results = [self_check(device) for device in devices()]  # of all, also after a failure
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
