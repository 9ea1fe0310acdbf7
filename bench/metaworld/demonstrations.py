"""Demonstrations of the experts: made once, kept in a file, and drawn for each run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .robots import LIMIT, World

NOISE = 0.1
"""Deviation of what is added to the experts' actions, so that runs also show the way back."""

POOL, HELD_OUT, EVALUATION = range(20), range(20, 30), range(30, 40)
"""Goals: of the demonstrations that runs draw from, of the held-out loss, of the episodes."""

SCALE_FLOOR = 0.01
"""Least deviation of an observation that is standardised: a centimetre. Some numbers never change."""


@dataclass(frozen=True)
class Episode:
    """Observations [L, D], and the experts' actions there [L, A], without the noise."""

    goal: int
    observations: Tensor
    actions: Tensor


Demonstrations = list[list[Episode]]
"""Of each task: the episodes in which the expert got there in spite of the noise."""


def episode(world: World, task: int, goal: int, generator: torch.Generator, noise: float) -> Episode | None:
    """One of an expert, or None if it does not get there."""
    observation = world.reset(task, goal)
    observations, actions = [], []
    for _ in range(LIMIT):
        action = world.expert(task, observation)
        observations.append(observation)
        actions.append(action)
        pushed = (action + noise * torch.randn(action.shape, generator=generator)).clamp(-1, 1)
        observation, done = world.step(task, pushed)
        if done:
            return Episode(goal, torch.stack(observations), torch.stack(actions))
    return None


def make(world: World, goals: Sequence[int] = (*POOL, *HELD_OUT), noise: float = NOISE) -> Demonstrations:
    """One episode of each task and goal."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for task in range(len(world.names)):
        episodes = (episode(world, task, goal, generator, noise) for goal in goals)
        found.append([each for each in episodes if each is not None])
    return found


def save(demonstrations: Demonstrations, path: Path) -> None:
    """As a file that `torch.load` reads with `weights_only`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save([[(each.goal, each.observations, each.actions) for each in task] for task in demonstrations], path)


def load(path: Path) -> Demonstrations:
    """What `save` has written.

    Raises:
        SystemExit: where there is no such file.
    """
    if not path.exists():
        raise SystemExit(f"expected demonstrations in {path}, got none: make them by `python -m bench.metaworld run`")
    return [[Episode(*each) for each in task] for task in torch.load(path, weights_only=True)]


@dataclass(frozen=True)
class Data:
    """Observations and actions of one run, for each task; observations are standardised when a policy is asked."""

    train: list[tuple[Tensor, Tensor]]
    held_out: list[tuple[Tensor, Tensor]]
    mean: Tensor
    scale: Tensor

    def standardised(self, observations: Tensor) -> Tensor:
        return (observations - self.mean) / self.scale


def drawn(demonstrations: Demonstrations, count: int, seed: int) -> Data:
    """`count` demonstrations of each task from the pool; the held-out ones are the same for every seed.

    Raises:
        ValueError: for a task with fewer demonstrations.
    """
    generator = torch.Generator().manual_seed(seed)
    train, held_out = [], []
    for task, episodes in enumerate(demonstrations):
        pool = [each for each in episodes if each.goal in POOL]
        if len(pool) < count:
            raise ValueError(f"expected {count} demonstrations of task {task}, got {len(pool)}: ask for fewer")
        chosen = torch.randperm(len(pool), generator=generator)[:count].tolist()
        train.append(_joined([pool[index] for index in chosen]))
        held_out.append(_joined([each for each in episodes if each.goal in HELD_OUT]))
    everything = torch.cat([observations for observations, _ in train])
    return Data(train, held_out, everything.mean(0), everything.std(0).clamp(min=SCALE_FLOOR))


def _joined(episodes: list[Episode]) -> tuple[Tensor, Tensor]:
    return torch.cat([each.observations for each in episodes]), torch.cat([each.actions for each in episodes])
