"""Four tasks that contradict each other in one network without heads: masks of tasks keep them apart.

Each task has its own names for the ten digits. With masks (HarmoDT, docs/masks.md) a task is known by its part of the
network alone.  `TaskMasks` around another optimizer (docs/masks.md) gives the same.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from problem import CLASSES, digits
from torch import Tensor, nn

from mt2o_ext import HarmonyFused
from mt2o_ext.masks import CosineBudget

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

    def outputs(task: int, pictures: Tensor) -> Tensor:
        logits: Tensor = heads[task % len(heads)](trunk(pictures))
        return logits

    def loss_of(task: int) -> Tensor:
        batch = order[torch.randint(TRAIN, (64,), generator=generator)]
        return nn.functional.cross_entropy(outputs(task, x[batch]), names[task][y[batch]])

    masked: HarmonyFused | None = None
    if method in METHODS[2:]:
        changes = {"budget": CosineBudget(steps, high=100), "interval": 50} if method == METHODS[3] else {}
        named = model.named_parameters()
        masked = HarmonyFused(named, num_tasks=TASKS, density=density, generator=generator, lr=1e-3, **changes)
    optimizer = masked or torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(steps):
        if masked:
            masked.step(loss_of)
            continue
        loss_of(step % TASKS).backward()
        optimizer.step()
        optimizer.zero_grad()
    test, right = order[TRAIN:], []
    for task in range(TASKS):
        with torch.no_grad(), masked.shown(task) if masked else nullcontext():
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
