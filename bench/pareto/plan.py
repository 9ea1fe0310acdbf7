"""The runs that are wanted, and which of them can be made now, the most informative first.

Rates are searched on seeds of their own, from one grid for every arm that grows while its edge is best; the reported
seeds are run at the rate that was best there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from .arms import ARMS
from .problems import PROBLEMS
from .runs import Key, Record

GRID = (2e-3, 4e-3, 8e-3)
MOST_RATES = 7
SEARCH_SEEDS = (100, 101)
FIRST_SEEDS = 5
"""So many seeds of every arm and problem come before the others."""


@dataclass(frozen=True)
class Series:
    """One arm on one problem, with one set of options: its search, and its reported seeds."""

    problem: str
    arm: str
    steps: int
    options: str = ""

    def key(self, lr: float, seed: int) -> Key:
        return Key(self.problem, self.arm, lr, seed, self.steps, self.options)

    def scores(self, records: Mapping[Key, Record]) -> dict[float, float | None]:
        """The rates that the search has asked for so far, and their mean score, where it is known."""
        scores = {lr: self._score(lr, records) for lr in GRID}
        while len(scores) < MOST_RATES and None not in scores.values():
            best = best_of(scores)
            new = {max(scores): 2 * best, min(scores): best / 2}.get(best)
            if new is None:
                break
            scores[new] = self._score(new, records)
        return scores

    def _score(self, lr: float, records: Mapping[Key, Record]) -> float | None:
        found = [records.get(self.key(lr, seed)) for seed in SEARCH_SEEDS]
        finals = [record.validation["main"][-1] for record in found if record is not None]
        return sum(finals) / len(finals) if len(finals) == len(SEARCH_SEEDS) else None

    def rate(self, records: Mapping[Key, Record]) -> float | None:
        """The best rate, once the search is done."""
        scores = self.scores(records)
        return None if None in scores.values() else best_of(scores)


def best_of(scores: Mapping[float, float | None]) -> float:
    """Of equal ones the highest: where all hypervolumes are 0, nothing has been learned yet."""
    return max(sorted(scores, reverse=True), key=lambda lr: scores[lr] or 0.0)


@dataclass(frozen=True)
class Plan:
    """All series of some problems and arms, each with so many reported seeds."""

    problems: tuple[str, ...]
    arms: tuple[str, ...]
    seeds: int
    steps: Mapping[str, int] = field(default_factory=dict)
    """Of a problem, where not its own."""
    options: str = ""

    def series(self) -> list[Series]:
        return [
            Series(problem, arm, self.steps.get(problem, PROBLEMS[problem].steps), self.options)
            for problem in self.problems
            for arm in self.arms
            if PROBLEMS[problem].conditioned or not ARMS[arm].needs_inputs
        ]

    def runnable(self, records: Mapping[Key, Record]) -> list[Key]:
        """Runs that are missing and whose rate is known, in the order in which they should be made."""
        ranked = []
        for series in self.series():
            tier, place = ARMS[series.arm].tier, self.problems.index(series.problem)
            scores = series.scores(records)
            if None in scores.values():
                keys = [series.key(lr, seed) for lr in scores for seed in SEARCH_SEEDS]
                ranked += [((0, tier, place, 0), key) for key in keys if key not in records]
            else:
                keys = [series.key(best_of(scores), seed) for seed in range(self.seeds)]
                block = {key: key.seed // FIRST_SEEDS for key in keys}
                ranked += [((block[key], tier, place, 1 + key.seed), key) for key in keys if key not in records]
        return [key for _, key in sorted(ranked, key=lambda each: each[0])]

    def missing(self, records: Mapping[Key, Record]) -> dict[tuple[str, str], int]:
        """For each problem and arm: runs that are missing, as far as can be seen now (a grid may still grow)."""
        count = {}
        for series in self.series():
            scores = series.scores(records)
            search = {series.key(lr, seed) for lr in scores for seed in SEARCH_SEEDS} - records.keys()
            if search:
                seeds = self.seeds
            else:
                seeds = sum(series.key(best_of(scores), seed) not in records for seed in range(self.seeds))
            count[series.problem, series.arm] = len(search) + seeds
        return count


def expected_seconds(records: Collection[tuple[Key, float]], missing: Mapping[tuple[str, str], int]) -> float:
    """Seconds of one process for the missing runs, from those that were made (`records`: key, seconds)."""
    known: dict[object, list[float]] = {}
    for key, seconds in records:
        for group in ((key.problem, key.arm), key.problem, key.arm, None):
            known.setdefault(group, []).append(seconds)

    def each(problem: str, arm: str) -> float:
        for group in ((problem, arm), problem, arm, None):
            if group in known:
                return sum(known[group]) / len(known[group])
        return 10.0

    return sum(number * each(*name) for name, number in missing.items())
