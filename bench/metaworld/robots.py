"""The robots: ten tasks of MetaWorld, their scripted experts, and episodes of many tasks side by side."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

GOALS = 50
"""Places of things and goals that MetaWorld's MT10 has for each task."""

LIMIT = 200
"""Steps of an episode; experts take 30 to 180."""


class World(Protocol):
    """Tasks, each with numbered goals, and an expert for each; the tests have a small one of their own."""

    names: tuple[str, ...]

    def reset(self, task: int, goal: int) -> Tensor:
        """Begin an episode; return the observation, float32."""
        ...

    def step(self, task: int, action: Tensor) -> tuple[Tensor, bool]:
        """Act; return the observation and whether the task is done."""
        ...

    def expert(self, task: int, observation: Tensor) -> Tensor:
        """Return the action of the expert, in [-1, 1]."""
        ...


class MetaWorld:
    """MT10 of the package metaworld, seed 0: observations of 39 numbers that show the goal, actions of 4.

    Raises:
        SystemExit: where the package is missing, with the way to get it.
    """

    def __init__(self) -> None:
        if importlib.util.find_spec("metaworld") is None:
            raise SystemExit("expected the package metaworld: run `make metaworld`, which keeps it beside the results")
        import metaworld
        from metaworld.policies import ENV_POLICY_MAP

        warnings.filterwarnings("ignore", message="Constant.s. may be too high")
        benchmark = metaworld.MT10(seed=0)
        self.names = tuple(benchmark.train_classes)
        self._goals = {name: [each for each in benchmark.train_tasks if each.env_name == name] for name in self.names}
        self._environments: list[Any] = [made() for made in benchmark.train_classes.values()]
        self._experts: list[Any] = [ENV_POLICY_MAP[name]() for name in self.names]

    def reset(self, task: int, goal: int) -> Tensor:
        self._environments[task].set_task(self._goals[self.names[task]][goal])
        observation, _ = self._environments[task].reset()
        return torch.from_numpy(observation).float()

    def step(self, task: int, action: Tensor) -> tuple[Tensor, bool]:
        observation, *_, info = self._environments[task].step(action.numpy())
        return torch.from_numpy(observation).float(), info["success"] > 0

    def expert(self, task: int, observation: Tensor) -> Tensor:
        return torch.as_tensor(self._experts[task].get_action(observation.double().numpy())).float().clamp(-1, 1)


Policy = Callable[[Tensor], Tensor]
"""Observations [T, D], one of each task, to actions [T, A]."""


@torch.no_grad()
def successes(world: World, policy: Policy, goals: Sequence[int], limit: int = LIMIT) -> list[int]:
    """The number of goals that each task reaches, [T]: at any step of an episode, as MetaWorld counts.

    All tasks act side by side, so that the policy is asked once for all of them.
    """
    tasks = range(len(world.names))
    reached = [0 for _ in tasks]
    for goal in goals:
        observations = torch.stack([world.reset(task, goal) for task in tasks])
        running = set(tasks)
        for _ in range(limit):
            actions = policy(observations).clamp(-1, 1)
            for task in tuple(running):
                observations[task], done = world.step(task, actions[task])
                if done:
                    reached[task] += 1
                    running.remove(task)
            if not running:
                break
    return reached
