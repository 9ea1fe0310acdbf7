"""Tests that need a GPU are left out where there is none, and one line says how many and why."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_one_line_instead_of_a_skip_for_each() -> None:
    """Also where pytest-xdist is, whose workers collect and whose first process reports."""
    workers = ["-n", "1"] if find_spec("xdist") else []
    selection = ["tests/ops/test_finite.py", "-k", "cuda and not emulated"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *workers, *selection],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, check=False,
    )  # fmt: skip
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED, done.stdout + done.stderr
    [line] = [line for line in done.stdout.splitlines() if "left out" in line]
    number, rest = line.split(maxsplit=1)
    assert int(number) > 10 and "skipped" not in done.stdout
    assert rest.startswith("tests marked `gpu` were left out (no GPU: torch.cuda.is_available() is False)")
