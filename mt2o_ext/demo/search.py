"""The learning rates of all arms, from one grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .training import Arm

__all__ = ["best_rate", "search_rates"]

Scores = dict[float, float]  # learning rate -> hypervolume

FIRST_RATES = (2e-3, 4e-3, 8e-3)
MOST_RATES = 6


def search_rates(arms: Sequence[Arm], score: Callable[[Arm, float], float]) -> list[Scores]:
    """``score(arm, lr)`` of every arm at every rate of one grid: all arms get the same trials.

    The grid grows by factors of 2 until no arm is best at its edge, or to ``MOST_RATES`` rates.
    """
    scores: list[Scores] = [{} for _ in arms]
    rates = sorted(FIRST_RATES)
    while True:
        for arm, known in zip(arms, scores, strict=True):
            for lr in rates:
                if lr not in known:
                    known[lr] = score(arm, lr)
        best = {best_rate(known) for known in scores}
        if len(rates) == MOST_RATES or not best & {rates[0], rates[-1]}:
            return scores
        rates = [*rates, 2 * rates[-1]] if rates[-1] in best else [rates[0] / 2, *rates]


def best_rate(scores: Scores) -> float:
    """The rate with the highest score, of equal ones that which was tried first."""
    return max(scores, key=scores.__getitem__)
