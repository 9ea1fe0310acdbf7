"""One run, from its key to its record; and the file that records are kept in."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .arms import ARMS, Setting
from .evaluation import hypervolumes, losses_of
from .problems import PROBLEMS

CHECKPOINTS = 20
OPTIONS = {"batch4": {"batch": 4}, "cosine": {"cosine": True}, "shared": {"shared": True}}


class Key(NamedTuple):
    """What a run is known by; `options` are names of OPTIONS, joined by "+"."""

    problem: str
    arm: str
    lr: float
    seed: int
    steps: int
    options: str = ""


@dataclass
class Record:
    """A finished run.

    Attributes:
        spent, taken: gradient evaluations and sequential steps at each checkpoint.
        validation: hypervolumes there, by `hypervolumes`' names.
        test: hypervolumes at the end; front: losses [K, T] at the end, on test data.
        average: which of the arm's running averages this is.
        seconds: of training, evaluation left out; on a machine that may have done other things as well.
    """

    key: Key
    spent: list[int]
    taken: list[int]
    validation: dict[str, list[float]]
    test: dict[str, float]
    front: list[list[float]]
    average: int
    seconds: float

    def line(self) -> str:
        return json.dumps({**asdict(self), "key": list(self.key)}, separators=(",", ":"))

    @classmethod
    def of(cls, line: str) -> Record:
        values: dict[str, Any] = json.loads(line)
        return cls(**{**values, "key": Key(*values["key"])})


def short(number: float) -> float:
    """Five significant digits."""
    return float(f"{number:.5g}")


def checkpoints(budget: int) -> list[int]:
    """In gradient evaluations, closer together at the beginning: from 1/30 of the budget."""
    ratio = 30 ** (1 / (CHECKPOINTS - 1))
    return [round(budget / ratio**index) for index in reversed(range(CHECKPOINTS))]


def run(key: Key) -> Record:
    """Trains; the same key gives the same record, but for the seconds."""
    options = {name: value for each in key.options.split("+") if each for name, value in OPTIONS[each].items()}
    problem = PROBLEMS[key.problem]
    setting = Setting(problem, key.lr, key.seed, key.steps, **options)  # type: ignore[arg-type]
    arm = ARMS[key.arm].make(setting)
    marks, spent, taken, seconds = checkpoints(setting.budget), [], [], 0.0
    curves: list[list[dict[str, float]]] = [[] for _ in arm.fronts()]
    while marks:
        begin = time.perf_counter()
        while arm.spent < marks[0]:
            arm.step()
        seconds += time.perf_counter() - begin
        marks = [mark for mark in marks if mark > arm.spent]
        spent.append(arm.spent)
        taken.append(arm.steps)
        fronts = arm.fronts()
        for index, curve in enumerate(curves):  # an arm may keep fewer averages at first
            losses = losses_of(problem, fronts[min(index, len(fronts) - 1)], "validation")
            curve.append(hypervolumes(problem, losses))
    best = max(range(len(curves)), key=lambda index: curves[index][-1]["main"])
    losses = losses_of(problem, arm.fronts()[best], "test")
    return Record(
        key,
        spent,
        taken,
        {name: [short(each[name]) for each in curves[best]] for name in ("main", "tight", "inner")},
        {name: short(value) for name, value in hypervolumes(problem, losses).items()},
        [[short(loss) for loss in row] for row in losses.tolist()],
        best,
        round(seconds, 2),
    )


class Records:
    """Records in files of one line each, a file for each problem, which several processes may append to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.by_key: dict[Key, Record] = {}
        for path in sorted(folder.glob("*.jsonl")):
            for record in self._read(path):
                self.by_key.setdefault(record.key, record)

    @staticmethod
    def _read(path: Path) -> Iterable[Record]:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            try:
                yield Record.of(line)
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"expected a record in line {number} of {path}, got {line[:60]!r}: delete it ({error})"
                ) from error

    def add(self, record: Record) -> None:
        """Writes it at once."""
        self.by_key.setdefault(record.key, record)
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / f"{record.key.problem}.jsonl", "a") as file:
            file.write(record.line() + "\n")

    def tidy(self, problems: Iterable[str]) -> None:
        """Sorts the lines of these problems' files; for when nothing else writes them."""
        for path in (self.folder / f"{problem}.jsonl" for problem in problems):
            if path.exists():
                found = {record.key: record for record in reversed(list(self._read(path)))}
                temporary = path.with_suffix(".new")
                temporary.write_text("".join(found[key].line() + "\n" for key in sorted(found)))
                os.replace(temporary, path)
