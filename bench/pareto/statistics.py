"""How two arms are compared: seed by seed, on the log scale, with t-intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from .runs import Record

T975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)
"""The 97.5% quantile of Student's t for 1, 2, ... degrees of freedom."""

SHARE = 0.99
"""Of the control's final validation hypervolume: the target of "sooner"."""


@dataclass(frozen=True)
class Ratio:
    """A geometric mean of paired ratios, with its 95% interval (None of a single pair)."""

    mean: float
    low: float | None
    high: float | None
    each: tuple[float, ...]

    @property
    def wins(self) -> int:
        return sum(ratio > 1 for ratio in self.each)

    @property
    def clear(self) -> bool:
        """Whether the interval leaves 1 out."""
        return self.low is not None and self.high is not None and not self.low <= 1 <= self.high


def ratio(each: Sequence[float]) -> Ratio:
    """Of positive numbers, 1 to 21 of them."""
    logs = [math.log(number) for number in each]
    mean = sum(logs) / len(logs)
    if len(logs) == 1:
        return Ratio(math.exp(mean), None, None, tuple(each))
    variance = sum((number - mean) ** 2 for number in logs) / (len(logs) - 1)
    half = T975[len(logs) - 2] * math.sqrt(variance / len(logs))
    return Ratio(math.exp(mean), math.exp(mean - half), math.exp(mean + half), tuple(each))


def reach(clock: Sequence[float], curve: Sequence[float], target: float) -> tuple[float, bool]:
    """The time at which the curve first has the target > 0, between checkpoints on a straight line, and True.

    The last time and False for one that never has it.
    """
    points = zip([0, *clock], [0.0, *curve], strict=True)
    for (before, low), (after, high) in pairwise(points):
        if high >= target > low:
            return before + (after - before) * (target - low) / (high - low), True
    return float(clock[-1]), False


@dataclass(frozen=True)
class Comparison:
    """An arm over another one, over the seeds that both have.

    Attributes:
        final: ratio of the final test hypervolumes.
        sooner, sooner_steps: ratio of gradient evaluations, and of sequential steps, to 99% of the other's final
            validation hypervolume. Runs that never got there count with their last checkpoint.
        never: how many these are.
        hopeless: seeds left out since the other arm's hypervolume is 0.
    """

    final: Ratio
    sooner: Ratio
    sooner_steps: Ratio
    never: int
    hopeless: int


def compare(runs: Mapping[int, Record], others: Mapping[int, Record], volume: str = "main") -> Comparison | None:
    """By seed; `volume` names one of the hypervolumes. None without a seed that says anything."""
    final, sooner, steps, never = [], [], [], 0
    seeds = sorted(runs.keys() & others.keys())
    for seed in seeds:
        run, other = runs[seed], others[seed]
        target = SHARE * other.validation[volume][-1]
        if target <= 0 or other.test[volume] <= 0:
            continue
        final.append(max(run.test[volume], 1e-3 * other.test[volume]) / other.test[volume])
        for clock, ratios in (("spent", sooner), ("taken", steps)):
            theirs, _ = reach(getattr(other, clock), other.validation[volume], target)
            ours, reached = reach(getattr(run, clock), run.validation[volume], target)
            ratios.append(theirs / ours)
        never += not reached
    if not final:
        return None
    return Comparison(ratio(final), ratio(sooner), ratio(steps), never, len(seeds) - len(final))
