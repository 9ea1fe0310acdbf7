"""Ratios and their intervals, against what comes out by hand."""

from __future__ import annotations

import pytest

from bench.pareto.runs import Key, Record
from bench.pareto.statistics import compare, ratio, reach


def test_an_interval_is_that_of_the_hand() -> None:
    # Logarithms 0.0953102, 0.2623643, -0.1053605: mean 0.0841047, deviation 0.1841183, over sqrt(3) 0.1063007; times
    # Student's 4.303 (two degrees of freedom) 0.4574121.
    found = ratio([1.1, 1.3, 0.9])
    assert (found.mean, found.low, found.high) == pytest.approx((1.08774, 0.68845, 1.71861), rel=1e-4)
    assert found.wins == 2 and not found.clear
    assert ratio([2.0, 2.1, 1.9]).clear
    single = ratio([0.5])
    assert (single.mean, single.low, single.high, single.wins) == (0.5, None, None, 0) and not single.clear


def test_the_time_to_a_target_lies_on_the_straight_line() -> None:
    clock, curve = [10, 20, 40], [0.2, 0.4, 0.5]
    assert reach(clock, curve, 0.45) == (pytest.approx(30), True)
    assert reach(clock, curve, 0.1) == (pytest.approx(5), True)
    assert reach(clock, curve, 0.5) == (pytest.approx(40), True)
    assert reach(clock, curve, 0.6) == (40.0, False)
    assert reach(clock, [0.4, 0.1, 0.5], 0.3) == (pytest.approx(7.5), True)  # the first time counts


def run(curve: list[float], final: float, taken: tuple[int, int] = (1, 2)) -> Record:
    key = Key("zdt1", "ind", 1e-3, 0, 2)
    return Record(key, [100, 200], list(taken), {"main": curve}, {"main": final}, [], 0, 1.0)


def test_arms_are_compared_seed_by_seed() -> None:
    control = {0: run([0.0, 1.0], 1.0), 1: run([0.0, 2.0], 2.0), 2: run([0.0, 0.0], 0.0), 3: run([0.1, 0.2], 0.2)}
    arm = {0: run([0.99, 1.0], 1.1, (10, 20)), 1: run([1.0, 1.5], 1.8, (10, 20)), 2: run([0.1, 0.2], 0.2)}
    found = compare(arm, control)
    assert found is not None
    assert found.final.each == pytest.approx((1.1, 0.9)) and found.final.wins == 1
    assert found.never == 1 and found.hopeless == 1  # seed 1 never got to 1.98; seed 2 has nothing to compare with
    assert found.sooner.each == pytest.approx((1.99, 0.995))
    assert found.sooner_steps.each == pytest.approx((0.199, 0.0995))
    assert compare({5: run([0.1, 0.2], 0.2)}, control) is None
