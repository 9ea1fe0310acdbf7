"""How things are timed on a GPU, what its memory can do, and the report of it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.gpu_cases import Case, Run
from tools.gpu_check.runner import write_json

ROUNDS = 30
FEWEST = 3
LONGEST = 0.3  # seconds for the rounds of one thing, as long as they are not too few
BUFFER = 1 << 30  # bytes of each buffer whose bandwidth is the ceiling
SPIN = 5_000_000  # cycles, a few milliseconds: the host gets ahead, so that events time the device alone


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def on_the_clock(run: Run, device: torch.device) -> float:
    """Seconds of a call until the device is done, by the host's clock."""
    wait(device)
    begin = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - begin


def seconds_of(run: Run, device: torch.device) -> float:
    """The median time of a call on the device, after a warm-up; of a CPU, by the host's clock."""
    run()
    once = on_the_clock(run, device)
    rounds = max(FEWEST, min(ROUNDS, int(LONGEST / once)))
    if device.type != "cuda":
        return statistics.median(on_the_clock(run, device) for _ in range(rounds))
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(rounds)]
    torch.cuda._sleep(SPIN)
    for begin, end in events:
        begin.record()
        run()
        end.record()
    torch.cuda.synchronize(device)
    return statistics.median(begin.elapsed_time(end) for begin, end in events) / 1e3


def ceilings(device: torch.device, num_bytes: int = BUFFER) -> dict[str, float]:
    """Bytes per second of a copy (read and write together), of reading alone and of writing alone."""
    source, target = (torch.ones(num_bytes // 4, device=device) for _ in range(2))
    copy = 2 * num_bytes / seconds_of(lambda: target.copy_(source), device)
    read = num_bytes / seconds_of(source.sum, device)
    write = num_bytes / seconds_of(lambda: target.fill_(2.0), device)
    return {"copy": copy, "read": read, "write": write}


def timed(case: Case, device: torch.device, limits: dict[str, float]) -> dict[str, Any]:
    """A row: what it took, and which part of the bandwidth that its kind of traffic can have."""
    ours = seconds_of(case.ours(), device)
    rate = case.num_bytes / ours
    row: dict[str, Any] = {"family": case.family, "dtype": str(case.dtype).removeprefix("torch."), **case.shape}
    row |= {"ms": round(ours * 1e3, 4), "GB/s": round(rate / 1e9)}
    return row | {"of": case.ceiling, "x ceiling": round(rate / limits[case.ceiling], 3)}


def release(device: torch.device) -> None:
    """Gives back what nobody holds any more; without a garbage collection, which takes longer than a case."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


class Report:
    """What was measured so far: on disk after each entry, since the whole may be stopped."""

    def __init__(self, path: Path | None, until: float, notes: str, kinds: Sequence[str] = ()) -> None:
        self.path, self.until = path, until
        self.content: dict[str, Any] = {"notes": notes, **{kind: [] for kind in ("rows", *kinds)}}
        self.content |= {"errors": [], "left out": []}

    def write(self, **values: Any) -> None:
        self.content |= values
        if self.path:
            write_json(self.path, self.content)

    def add(self, what: str, make: Callable[[], dict[str, Any]], kind: str = "rows") -> None:
        """Adds what ``make`` gives, or its error; without asking it, if the time is over."""
        if time.time() > self.until:
            self.content["left out"].append(what)
        else:
            try:
                self.content[kind].append(make())
            except Exception as error:  # in the report, and in what `whole` says: the other rows stand
                self.content["errors"].append(f"{what}: {type(error).__name__}: {error}"[:500])
        self.write()

    @property
    def whole(self) -> bool:
        return not self.content["errors"] and not self.content["left out"]


def add_cases(
    report: Report,
    makers: Iterable[Any],
    device: torch.device,
    measure: Callable[[Case], dict[str, Any]],
    kind: str = "rows",
) -> None:
    """Makes, measures and releases each case in turn."""
    for make in makers:

        def row(make: Any = make) -> dict[str, Any]:
            release(device)
            return measure(make(device=device))

        report.add(f"{make.func.__name__}{make.args}", row, kind)
