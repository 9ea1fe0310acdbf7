"""Two and four processes with all checks of sharded models, which several test modules look at."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from support import sharded_checkpoints, sharded_optimizers, sharded_runs
from support.worlds import Check, once, world

Results = list[dict[str, Any]]


def results_of(ranks: int, request: pytest.FixtureRequest, factory: pytest.TempPathFactory) -> tuple[Results, Path]:
    """For each rank what each check has returned; and the folder of checkpoints."""
    folder = factory.getbasetemp()
    if hasattr(request.config, "workerinput"):  # of pytest-xdist, whose workers have one folder in common
        folder = folder.parent
    checks: dict[str, Check] = {**sharded_runs.checks_of(ranks), **sharded_optimizers.checks_of(ranks)}
    if ranks == 4:
        for kind in sharded_checkpoints.OPTIMIZERS:
            checks[f"checkpoint: {kind}"] = partial(sharded_checkpoints.saved_and_resumed, folder=folder, kind=kind)
    found: Results | Exception = once(folder, f"sharded{ranks}", lambda: world(checks, ranks))
    if isinstance(found, Exception):
        raise found
    return found, folder


def of_all_ranks(results: Results, name: str) -> list[Any]:
    """What a check has returned on each rank.

    Raises:
        AssertionError: from the exception that it has raised on one of them.
    """
    for rank, result in enumerate(results):
        if isinstance(result[name], Exception):
            raise AssertionError(f"{name} failed on rank {rank}") from result[name]
    return [result[name] for result in results]
