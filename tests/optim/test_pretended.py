"""Whole optimizers on a pretended GPU: see support/optim/pretended.py."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mt2o_ext import _native


@pytest.mark.skipif(_native.C is None, reason=f"the compiled part was not loaded: {_native.load_error}")
def test_no_step_waits_for_the_device_or_mixes_it_with_the_cpu() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "support.optim.pretended"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    wrong = [line for line in done.stdout.splitlines() if not line.startswith("ok: ")]
    assert not wrong and done.returncode == 0, "\n".join([*wrong, done.stderr])
    assert len(done.stdout.splitlines()) > 30
