"""Four tasks that contradict each other in one network without heads: masks of tasks keep them apart.

Each task has its own names for the ten digits. With masks (HarmoDT, docs/masks.md) a task is known by its part of the
network alone.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from problem import CLASSES, digits
from torch import Tensor, nn

from mt2o_ext.masks import CosineBudget, Harmony, TaskMasks

TASKS, TRAIN = 4, 1200
METHODS = ("no masks", "own heads", "random masks", "masks that change")


def accuracy(method: str, seed: int, steps: int, density: float) -> float:
    """The mean over the tasks, on test data."""
    x, y = digits()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=generator)
    names = [torch.randperm(CLASSES, generator=generator) for _ in range(TASKS)]
    torch.manual_seed(seed)
    heads = [nn.Linear(64, CLASSES) for _ in range(TASKS if method == "own heads" else 1)]
    trunk = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    model = nn.ModuleList([trunk, *heads])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    masked = method in METHODS[2:]
    masks = TaskMasks(model.named_parameters(), TASKS, density=density, generator=generator) if masked else None
    harmony, budget = Harmony(), CosineBudget(steps, high=100)

    def outputs(task: int, pictures: Tensor) -> Tensor:
        logits: Tensor = heads[task % len(heads)](trunk(pictures))
        return logits

    def loss_of(task: int) -> Tensor:
        batch = order[torch.randint(TRAIN, (64,), generator=generator)]
        return nn.functional.cross_entropy(outputs(task, x[batch]), names[task][y[batch]])

    for step in range(steps):
        task = step % TASKS
        with masks.shown(task) if masks else nullcontext():
            loss_of(task).backward()
        with masks.held(task, optimizer) if masks else nullcontext():
            optimizer.step()
        optimizer.zero_grad()
        if masks and method == "masks that change" and step % 50 == 49:
            harmony.update(masks, loss_of, budget(step))
    test, right = order[TRAIN:], []
    for task in range(TASKS):
        with torch.no_grad(), masks.shown(task) if masks else nullcontext():
            right.append((outputs(task, x[test]).argmax(1) == names[task][y[test]]).float().mean())
    return torch.stack(right).mean().item()


def main(steps: int = 1500, seeds: int = 3, density: float = 0.8) -> dict[str, float]:
    """The mean accuracy over the seeds."""
    found = {}
    for method in METHODS:
        found[method] = sum(accuracy(method, seed, steps, density) for seed in range(seeds)) / seeds
        print(f"{method}: {found[method]:.3f}")
    return found


if __name__ == "__main__":
    main()
