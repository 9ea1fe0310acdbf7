"""One policy for three robot tasks, cloned from a scripted expert that shows each of them five times.

The policy is a network of modules with routes; which of them a task uses is learned. The simulator is metaworld.
"""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import torch
from torch import Tensor

from mt2o_ext import WeightedFused
from mt2o_ext.models import SoftModules

NAMES = ("reach-v3", "drawer-close-v3", "window-close-v3")
LIMIT = 150  # steps of an episode


def tasks() -> list[tuple[Any, Any, list[Any]]]:
    """An environment, its expert and 50 goals, for each name."""
    if importlib.util.find_spec("metaworld") is None:
        raise SystemExit("expected the package metaworld: pip install metaworld==3.1.1 mujoco==3.3.0")
    import metaworld
    from metaworld.policies import ENV_POLICY_MAP

    kinds = {name: metaworld.MT1(name, seed=0) for name in NAMES}
    return [(kind.train_classes[name](), ENV_POLICY_MAP[name](), kind.train_tasks) for name, kind in kinds.items()]


def episode(environment: Any, goal: Any, act: Any) -> tuple[Tensor, Tensor, bool]:
    """Observations [L, 39] and actions [L, 4] on the way, and whether the goal was reached."""
    environment.set_task(goal)
    observation, _ = environment.reset()
    observations, actions, success = [], [], 0.0
    while len(actions) < LIMIT and not success:
        observations.append(torch.from_numpy(observation).float())
        actions.append(torch.as_tensor(act(observation)).float().clamp(-1, 1))
        observation, *_, info = environment.step(actions[-1].numpy())
        success = info["success"]
    return torch.stack(observations), torch.stack(actions), bool(success)


def main(steps: int = 500, episodes: int = 5, seed: int = 0) -> list[float]:
    """The share of new goals that the policy reaches, of each task."""
    warnings.filterwarnings("ignore", message="Constant.s. may be too high")  # the expert's own
    torch.manual_seed(seed)
    robots, shown = tasks(), []
    for environment, expert, goals in robots:
        parts = [episode(environment, goal, expert.get_action) for goal in goals[:5]]
        shown.append((torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])))
    everything = torch.cat([observations for observations, _ in shown])
    mean, scale = everything.mean(0), everything.std(0).clamp(min=0.01)
    policy = SoftModules(39, 4, layers=2, modules=2, width=64, num_tasks=len(NAMES))
    optimizer = WeightedFused(policy.parameters(), num_tasks=len(NAMES), weighting="upgrad", lr=3e-3)
    for _ in range(steps):
        losses = []
        for task, (observations, actions) in enumerate(shown):
            rows = torch.randint(len(observations), (64,))
            error = policy((observations[rows] - mean) / scale, task) - actions[rows]
            losses.append(error.square().mean())
        optimizer.backward(losses)
        optimizer.step()
    found = []
    for task, (environment, _, goals) in enumerate(robots):
        with torch.no_grad():
            act = lambda seen, task=task: policy((torch.from_numpy(seen).float() - mean) / scale, task)  # noqa: E731
            reached = [episode(environment, goal, act)[2] for goal in goals[-episodes:]]
        found.append(sum(reached) / episodes)
        print(f"{NAMES[task]}: {found[-1]:.0%} of {episodes} new goals")
    return found


if __name__ == "__main__":
    main()
