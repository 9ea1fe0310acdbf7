"""Several processes of one gloo group, which go through a list of checks together.

One new process imports what the checks need, and is then forked into the ranks: importing torch and other libraries is
more work than most checks are, and would be done by every rank.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import distributed as dist

LIMIT = 240.0  # seconds that a world may take
SILENCE = timedelta(seconds=60)  # that a rank waits for another one: more is a hang

Check = Callable[[int, int], Any]  # of rank and number of ranks


def world(checks: dict[str, Check], ranks: int) -> list[dict[str, Any]]:
    """For each rank what each check has returned, or the exception that it has raised.

    Raises torch.multiprocessing.ProcessRaisedException, from a TimeoutError, where they do not come to an end.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_forked, (ranks, folder, checks))
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(ranks)]


def once(folder: Path, name: str, make: Callable[[], Any]) -> Any:
    """What ``make`` gives, made by the first of pytest's workers that asks, for all that have this folder."""
    file = folder / f"{name}.pt"
    try:
        (folder / name).mkdir()
    except FileExistsError:
        end = time.monotonic() + 2 * LIMIT
        while not file.exists():
            if time.monotonic() > end:
                raise TimeoutError(f"another worker did not make {name}") from None
            time.sleep(0.1)
        return torch.load(file, weights_only=False)
    try:
        made = make()
    except Exception as error:
        made = error
    torch.save(made, folder / name / "made.pt")
    (folder / name / "made.pt").rename(file)
    return made


def _forked(_: int, ranks: int, folder: str, checks: dict[str, Check]) -> None:
    """Has the checks, and with them all that they need, and becomes the parent of the ranks."""
    context = mp.start_processes(_rank, (ranks, folder, checks), nprocs=ranks, join=False, start_method="fork")
    end = time.monotonic() + LIMIT
    while not context.join(timeout=1.0):
        if time.monotonic() > end:
            for process in context.processes:
                process.kill()
            raise TimeoutError(f"{ranks} ranks did not get through their checks in {LIMIT} seconds")


def _rank(rank: int, ranks: int, folder: str, checks: dict[str, Check]) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks, timeout=SILENCE)
    results: dict[str, Any] = {}
    for name, check in checks.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            begin = time.monotonic()
            try:
                results[name] = check(rank, ranks)
            except Exception as error:  # the tests look at it
                results[name] = error
        results[f"{name}: warnings"] = [str(warning.message) for warning in caught]
        results[f"{name}: seconds"] = time.monotonic() - begin
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
