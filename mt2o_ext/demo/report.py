"""The report of the demo, in words and numbers.  Among the results of a seed, independent runs are the last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..pareto import ParetoFront
from .search import Scores
from .training import REFERENCE, Run

__all__ = ["TARGET", "Result", "clocks", "conclusion", "of_seed", "over_seeds", "summary", "table"]

TARGET = 0.99
"""All arms are timed to this share of the independent runs' final hypervolume, on validation data."""


@dataclass(frozen=True)
class Result:
    """One arm, judged on test data."""

    run: Run
    rates: Scores
    """The validation hypervolumes that its learning rate was chosen by."""
    front: ParetoFront
    accuracies: Tensor
    """[K, 2]"""
    evaluations_to_target: float | None
    """Gradient evaluations; None: not reached."""
    steps_to_target: float | None
    """Sequential steps; None: not reached."""


def table(result: Result) -> str:
    """One line for each subproblem: preference, test losses, test accuracies."""
    front = result.front
    lines = [
        f"{result.run.arm.label}, learning rate {result.run.lr:g}: test hypervolume {front.hypervolume():.4f}",
        "      preference         loss         accuracy",
        " k" + "   left  right" * 3,
    ]
    numbers = torch.cat([front.preferences, front.losses], dim=1).tolist()
    for k, (row, accuracy) in enumerate(zip(numbers, result.accuracies.tolist(), strict=True)):
        lines.append(f"{k:2}" + "".join(f"{x:7.3f}" for x in row) + "".join(f"{x:7.1%}" for x in accuracy))
    return "\n".join(lines)


def clocks(results: Sequence[Result]) -> str:
    """Gradient evaluations and sequential steps to the target, and how many times fewer than independent runs."""
    last = results[-1]
    lines = [
        f"To {TARGET:.0%} of what {last.run.arm.label} end with, on validation data:",
        f"{'':22}{'gradient evaluations':>26}{'sequential steps':>26}",
    ]
    for result in results:
        base = (None, None) if result is last else (last.evaluations_to_target, last.steps_to_target)
        cells = [_clock(result.evaluations_to_target, base[0]), _clock(result.steps_to_target, base[1])]
        lines.append(f"{result.run.arm.label:22}" + "".join(f"{cell:>26}" for cell in cells))
    return "\n".join(lines)


def _clock(ours: float | None, theirs: float | None) -> str:
    """A count; if there is another arm to compare with, how many times fewer it is."""
    if ours is None:
        return "not reached"
    if theirs is None:
        return f"{ours:.0f}"
    times = f"{theirs / ours:.2f} times fewer" if theirs >= ours else f"{ours / theirs:.2f} times more"
    return f"{ours:.0f} ({times})"


def conclusion(results: Sequence[Result], seed: int) -> str:
    """The outcome in words, whichever arm is the best one."""
    base = results[-1].front.hypervolume()
    parts = []
    for result in results:
        volume = result.front.hypervolume()
        change = f" ({volume / base - 1:+.1%})" if base > 0 and result is not results[-1] else ""
        parts.append(f"{result.run.arm.label} {volume:.4f}{change}")
    text = f"Hypervolume on test data: {'; '.join(parts)}."
    if results[-1].steps_to_target is None:
        text += (
            " On validation data, no independent run got beyond the reference point: train longer to compare speeds."
        )
    return f"{text} Seed {seed} is one seed; see with --seeds how much others change."


def of_seed(results: Sequence[Result], seed: int) -> dict[str, Any]:
    """The numbers of one seed, arm by arm, ready for JSON."""
    return {
        "seed": seed,
        "test_hypervolume": [result.front.hypervolume() for result in results],
        "evaluations_to_target": [result.evaluations_to_target for result in results],
        "steps_to_target": [result.steps_to_target for result in results],
    }


def over_seeds(labels: Sequence[str], seeds: Sequence[dict[str, Any]]) -> str:
    """A line for each arm and seed: test hypervolume, both clocks."""
    lines = [f"seed  {'':22}{'hypervolume':>12}{'evaluations':>26}{'steps':>26}"]
    for seed in seeds:
        clocks = (seed["evaluations_to_target"], seed["steps_to_target"])
        for arm, label in enumerate(labels):
            is_last = arm == len(labels) - 1
            cells = "".join(f"{_clock(clock[arm], None if is_last else clock[-1]):>26}" for clock in clocks)
            lines.append(f"{seed['seed']:4}  {label:22}{seed['test_hypervolume'][arm]:12.4f}{cells}")
    return "\n".join(lines)


def summary(
    results: Sequence[Result], seeds: Sequence[dict[str, Any]], options: dict[str, Any], text: str
) -> dict[str, Any]:
    """Everything, ready for JSON: the first seed in full, and the main numbers of all seeds."""
    return {
        "options": options,
        "reference": REFERENCE,
        "arms": [_arm(result) for result in results],
        "conclusion": text,
        "seeds": list(seeds),
    }


def _arm(result: Result) -> dict[str, Any]:
    run, front = result.run, result.front
    return {
        "label": run.arm.label,
        "learning_rate": run.lr,
        "validation_hypervolume_by_learning_rate": {f"{lr:g}": result.rates[lr] for lr in sorted(result.rates)},
        "evaluations": run.evaluations,
        "steps": run.steps,
        "validation_hypervolume": run.hypervolumes,
        "preferences": front.preferences.tolist(),
        "test_losses": front.losses.tolist(),
        "test_accuracies": result.accuracies.tolist(),
        "training_seconds": run.seconds,
        "optimizer_seconds": run.step_seconds,
    }
