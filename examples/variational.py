"""Digits in four postures, each a task with one picture of each digit: variational layers beside plain ways to share.

Each task's head is a distribution whose prior is made of the other tasks' heads (VMTL, docs/variational.md).
"""

from __future__ import annotations

import math

import torch
from problem import CLASSES, digits
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample

from mt2o_ext import WeightedFused
from mt2o_ext.variational import MeanField, MixturePrior

ANGLES = (-20, -7, 7, 20)
TASKS = len(ANGLES)
METHODS = ("a model for each task", "shared layers, own heads", "one model for all", "shared layers, variational heads")
Data = list[tuple[Tensor, Tensor]]


def turned(x: Tensor, degrees: float) -> Tensor:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    grid = affine_grid(torch.tensor([[cos, sin, 0.0], [-sin, cos, 0.0]]).expand(len(x), 2, 3), [len(x), 1, 8, 8], False)
    return grid_sample(x.view(-1, 1, 8, 8), grid, align_corners=False).flatten(1)


def data(per_class: int, seed: int) -> tuple[Data, Data]:
    """For each task pictures and labels: training data of its own, and all that nobody trains on, turned."""
    x, y = digits()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    members = torch.stack([order[y[order] == c][: TASKS * per_class] for c in range(CLASSES)])  # [classes, all tasks']
    rest = order[~torch.isin(order, members)]
    own = [part.flatten() for part in members.split(per_class, 1)]
    train = [(turned(x[i], angle), y[i]) for i, angle in zip(own, ANGLES, strict=True)]
    return train, [(turned(x[rest], angle), y[rest]) for angle in ANGLES]


def accuracy(method: str, per_class: int, seed: int, steps: int) -> float:
    """The mean over the tasks, on test data."""
    train, test = data(per_class, seed)
    torch.manual_seed(seed)
    variational = method == METHODS[3]
    trunks = [nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in ANGLES]
    heads: list[nn.Module] = [nn.Linear(64, CLASSES) for _ in ANGLES]
    trunks = trunks if method == METHODS[0] else trunks[:1] * TASKS
    heads = heads[:1] * TASKS if method == METHODS[2] else [MeanField(h) if variational else h for h in heads]
    prior = MixturePrior(TASKS, cooling=math.log(2) / steps)
    everything = nn.ModuleList([*trunks, *heads, *[prior] * variational])
    optimizer = WeightedFused(everything.parameters(), num_tasks=TASKS, lr=3e-3)  # parameters() has each once

    def losses() -> Tensor:
        own = [cross_entropy(h(t(x)), y) for h, t, (x, y) in zip(heads, trunks, train, strict=True)]
        return torch.stack(own) + (1e-3 * prior(heads) if variational else 0.0)  # type: ignore[arg-type]

    for _ in range(steps):
        optimizer.step(losses)
    right = []
    with torch.no_grad():
        for head, trunk, (x, y) in zip(heads, trunks, test, strict=True):
            logits = head.outputs(trunk(x)) if isinstance(head, MeanField) else head(trunk(x))[None]
            right.append((logits.softmax(-1).mean(0).argmax(1) == y).float().mean())
    return torch.stack(right).mean().item()


def main(steps: int = 300, seeds: int = 3, pictures: tuple[int, ...] = (1, 2, 5)) -> list[list[float]]:
    """The mean accuracy over the seeds of each method (columns), for each number of pictures of a digit and task."""
    found = []
    for per_class in pictures:
        found.append([sum(accuracy(name, per_class, s, steps) for s in range(seeds)) / seeds for name in METHODS])
        print(f"{per_class} of each digit:", ", ".join(f"{n} {a:.3f}" for n, a in zip(METHODS, found[-1], strict=True)))
    return found


if __name__ == "__main__":
    main()
