"""Processes side by side that make the runs of a plan, one after another, until none is missing."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .plan import Plan, expected_seconds
from .runs import Key, Record, Records, run


def prepare() -> None:
    """One thread for each process: nets are small, and processes side by side use the cores."""
    import warnings

    import torch

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="grad and param do not obey")


def timed(key: Key) -> tuple[Record, float]:
    begin = time.perf_counter()
    record = run(key)
    return record, time.perf_counter() - begin


class OneByOne(Executor):
    """In this process, at once."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*args, **options))
        return future


def executor(workers: int) -> Executor:
    if not workers:
        return OneByOne()
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=prepare)


def drive(plan: Plan, folder: Path, workers: int, until: Callable[[], bool] = lambda: False) -> Records:
    """Makes what is missing; `until` says when to start no further run. Records are written as they come.

    `workers` processes side by side; 0: in this one.
    """
    records = Records(folder)
    workers, pool = max(1, workers), executor(workers)
    durations: list[tuple[Key, float]] = []
    running: dict[Future[tuple[Record, float]], Key] = {}
    with pool, tqdm(unit="run", dynamic_ncols=True, smoothing=0) as bar:
        while True:
            for key in [] if until() else plan.runnable(records.by_key):
                if len(running) >= workers:
                    break
                if key not in running.values():
                    running[pool.submit(timed, key)] = key
            if not running:
                records.tidy(plan.problems)
                return records
            show(bar, plan, records, durations, workers)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                del running[future]
                record, seconds = future.result()
                records.add(record)
                durations.append((record.key, seconds))


def show(bar: tqdm[None], plan: Plan, records: Records, durations: list[tuple[Key, float]], workers: int) -> None:
    missing = plan.missing(records.by_key)
    left = expected_seconds(durations, missing) / workers
    bar.total, bar.n = len(durations) + sum(missing.values()), len(durations)
    last = "" if not durations else "{0.problem} {0.arm} {0.lr:g} seed {0.seed}".format(durations[-1][0])
    bar.set_postfix_str(f"{last}; about {left / 60:.0f} min left" if durations else "")
