"""The report of the demo, in words and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..pareto import ParetoFront
from .search import Scores
from .training import REFERENCE, Run

__all__ = ["TARGET", "Result", "conclusion", "summary", "table"]

TARGET = 0.99
"""Both arms are timed to this share of the independent runs' final hypervolume, on validation data."""


@dataclass(frozen=True)
class Result:
    """One arm, judged on test data."""

    run: Run
    rates: Scores
    """The validation hypervolumes that its learning rate was chosen by."""
    front: ParetoFront
    accuracies: Tensor
    """[K, 2]"""
    steps_to_target: float | None
    """None: not reached."""


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


def conclusion(transfer: Result, independent: Result, seed: int) -> str:
    """Say in words what came out, whichever arm is the better one."""
    return " ".join(
        [
            _fronts(transfer, independent),
            _speeds(transfer, independent),
            f"Seed {seed} is one seed; see with --seed how much another one changes.",
        ]
    )


def _fronts(transfer: Result, independent: Result) -> str:
    better, other = transfer, independent
    if better.front.hypervolume() < other.front.hypervolume():
        better, other = other, better
    high, low = better.front.hypervolume(), other.front.hypervolume()
    if high == low:
        return f"Both arms reached the same hypervolume on test data, {high:.4f}."
    more = f" ({high / low - 1:.1%} more)" if low > 0 else ""
    return f"Hypervolume on test data: {better.run.arm.label} {high:.4f}{more}, {other.run.arm.label} {low:.4f}."


def _speeds(transfer: Result, independent: Result) -> str:
    ours, theirs = transfer.steps_to_target, independent.steps_to_target
    if theirs is None:
        return "On validation data, no independent run got beyond the reference point: train longer to compare speeds."
    label = independent.run.arm.label
    goal = f"{TARGET:.0%} of the final hypervolume of {label} on validation data took them {theirs:.0f} steps"
    if ours is None:
        return f"{goal}; {transfer.run.arm.label} did not reach it in {transfer.run.steps[-1]}."
    return f"{goal}, {transfer.run.arm.label} {ours:.0f}, a factor of {theirs / ours:.2f}."


def summary(results: Sequence[Result], options: dict[str, Any], text: str) -> dict[str, Any]:
    """Everything, ready for JSON."""
    return {
        "options": options,
        "reference": REFERENCE,
        "arms": [_arm(result) for result in results],
        "conclusion": text,
    }


def _arm(result: Result) -> dict[str, Any]:
    run, front = result.run, result.front
    return {
        "label": run.arm.label,
        "learning_rate": run.lr,
        "validation_hypervolume_by_learning_rate": {f"{lr:g}": result.rates[lr] for lr in sorted(result.rates)},
        "steps": run.steps,
        "validation_hypervolume": run.hypervolumes,
        "steps_to_target": result.steps_to_target,
        "preferences": front.preferences.tolist(),
        "test_losses": front.losses.tolist(),
        "test_accuracies": result.accuracies.tolist(),
        "test_hypervolume": front.hypervolume(),
        "training_seconds": run.seconds,
        "optimizer_seconds": run.step_seconds,
    }
