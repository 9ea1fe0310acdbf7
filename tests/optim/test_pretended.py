"""Whole optimizers on a pretended GPU: see pretended.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mt2o_ext import _native

HERE = Path(__file__).parent


@pytest.mark.skipif(_native.C is None, reason=f"the compiled part was not loaded: {_native.load_error}")
def test_no_step_waits_for_the_device_or_mixes_it_with_the_cpu() -> None:
    path = os.pathsep.join([str(HERE), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, str(HERE / "pretended.py")],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    wrong = [line for line in done.stdout.splitlines() if not line.startswith("ok: ")]
    assert not wrong and done.returncode == 0, "\n".join([*wrong, done.stderr])
    assert len(done.stdout.splitlines()) > 30
