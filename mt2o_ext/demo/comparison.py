"""The arms of the demo, their learning rates, and what they reach."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..transfer import Hat, Mean, Neighbours, Spectral
from .report import TARGET, Result
from .search import Scores, best_rate, search_rates
from .training import Arm, Run, Setting, train

__all__ = ["METHODS", "arms_of", "judged", "searched"]

METHODS: dict[str, Callable[[], dict[str, Any]]] = {
    "vertices": lambda: {"front": "vertices"},
    "spectral": lambda: {"transfer": Spectral()},
    "hat": lambda: {"transfer": Hat()},
    "neighbours": lambda: {"transfer": Neighbours(rate=0.1, width=0.25)},
    "mean": lambda: {"transfer": Mean(rate=0.1)},
}
TRUNK = 0.25


def arms_of(method: str) -> tuple[Arm, Arm, Arm]:
    """The method, and what it is compared with; independent runs are the last."""

    def alone() -> dict[str, Any]:
        return {"transfer": None}

    label = "front on vertices" if method == "vertices" else f"transfer by {method}"
    return (
        Arm(method, label, METHODS[method]),
        Arm("copies", "one net, then copies", alone, trunk=TRUNK),
        Arm("independent", "independent runs", alone),
    )


def searched(arms: Sequence[Arm], setting: Setting, seed: int) -> list[Scores]:
    """Validation hypervolumes of each arm by learning rate, printed, from runs whose seed is not used again."""

    def score(arm: Arm, lr: float) -> float:
        return _train("search", arm, lr, setting, [setting.budget], seed).hypervolumes[-1]

    scores = search_rates(arms, score)
    print("validation hypervolume by learning rate:")
    for arm, known in zip(arms, scores, strict=True):
        print(f"{arm.label:>20}  " + "  ".join(f"{lr:g}: {known[lr]:.4f}" for lr in sorted(known)))
    return scores


def judged(arms: Sequence[Arm], scores: Sequence[Scores], setting: Setting, seed: int) -> list[Result]:
    """Each arm at its best learning rate; test data come last."""
    checkpoints = _checkpoints(setting.budget)
    runs = [
        _train(f"seed {seed}", arm, best_rate(known), setting, checkpoints, seed)
        for arm, known in zip(arms, scores, strict=True)
    ]
    goal = TARGET * runs[-1].hypervolumes[-1]
    test = setting.data.test
    return [
        Result(
            run,
            known,
            run.front(test),
            run.accuracies(test),
            run.reached(goal, run.evaluations),
            run.reached(goal, run.steps),
        )
        for run, known in zip(runs, scores, strict=True)
    ]


def _train(what: str, arm: Arm, lr: float, setting: Setting, checkpoints: Sequence[int], seed: int) -> Run:
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError('the demo needs tqdm: pip install "mt2o_ext[demo]"') from error
    with tqdm(
        total=setting.budget, desc=f"{what}, {arm.label}, learning rate {lr:g}", unit="grad", leave=what != "search"
    ) as bar:
        return train(arm, lr, setting, checkpoints, seed, bar.update)


def _checkpoints(budget: int) -> list[int]:
    """Up to 25, evenly spaced on a logarithmic scale from a twelfth of the budget on."""
    return sorted({max(1, round(budget * 12 ** (i / 24 - 1))) for i in range(25)})
