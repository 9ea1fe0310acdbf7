""".ci/run: stages run alone or all together, and one that fails stops no other but fails the whole."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

RUN = Path(__file__).parents[1] / ".ci" / "run"
MAKE = '#!/bin/sh\necho "make $*"\n[ "$1" != "$FAILS" ]\n'


@pytest.fixture
def stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``stages(names, fails)``: the exit status, and what was made, with a make whose target `fails` fails."""
    (tmp_path / "make").write_text(MAKE)
    (tmp_path / "make").chmod(0o755)

    def run(*names: str, fails: str = "") -> tuple[int, list[str]]:
        path = f"{tmp_path}:{os.environ['PATH']}"
        done = subprocess.run([RUN, *names], env={"PATH": path, "FAILS": fails}, capture_output=True, text=True)
        return done.returncode, [line for line in done.stdout.splitlines() if line.startswith("make ")]

    return run


def test_stages_run_alone(stages) -> None:
    assert stages("lint") == (0, ["make lint", "make test-docs"])
    assert stages("python") == (0, ["make test"])


def test_a_whole_run_tests_the_pages_once(stages) -> None:
    assert stages("lint", "python") == (0, ["make lint", "make test"])


@pytest.mark.parametrize("fails", ["lint", "test"])
def test_a_stage_that_fails_stops_no_other_and_fails_the_whole(stages, fails: str) -> None:
    assert stages("lint", "python", fails=fails) == (1, ["make lint", "make test"])


def test_a_stage_that_fails_ends_itself(stages) -> None:
    assert stages("lint", fails="lint") == (1, ["make lint"])


def test_an_unknown_stage_is_refused_before_any_runs(stages) -> None:
    assert stages("lint", "nonsense") == (2, [])
