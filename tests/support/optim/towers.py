"""A model with a trunk and a head for each task, and the optimizers that weight its task gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mt2o_ext import WeightedFused
from mt2o_ext.weighting import (
    DBMTL,
    DWA,
    FAMO,
    MGDA,
    RLW,
    CAGrad,
    Ema,
    Every,
    ExcessMTL,
    GradDrop,
    GradNorm,
    GradVac,
    LinearWeighting,
    MoCo,
    NashMTL,
    PCGrad,
    PerSegment,
    UncertaintyWeighting,
    UPGrad,
    Weighting,
)

# One of each kind of need, and all that remember something in another way.
WEIGHTINGS: dict[str, Callable[[], Weighting]] = {
    "sum": LinearWeighting,
    "random": RLW,
    "losses": UncertaintyWeighting,
    "epochs": DWA,
    "feedback": FAMO,
    "squares": GradNorm,
    "gram": CAGrad,
    "gram, dual cone": UPGrad,
    "gram, previous weights": NashMTL,
    "gram, random order": PCGrad,
    "gram, targets": GradVac,
    "rows": GradDrop,
    "rows, memory": MoCo,
    "rows, memory of lengths": DBMTL,
    "rows, squares": ExcessMTL,
    "each tensor": lambda: PerSegment(PCGrad()),
    "now and then": lambda: Every(NashMTL(), 3),
    "averaged": lambda: Ema(MGDA()),
}


class Towers(nn.Module):
    """T conflicting regressions with a common trunk."""

    def __init__(self, num_tasks: int = 3, dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.trunk = nn.Sequential(nn.Linear(7, 12), nn.Tanh(), nn.Linear(12, 6), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(6, 1) for _ in range(num_tasks))
        self.to(dtype)

    def losses(self, batch: Tensor) -> list[Tensor]:
        features = self.trunk(batch)
        return [
            (head(features)[:, 0] - (-1) ** task * (1 + task) * batch[:, 0]).square().mean() + 0.1
            for task, head in enumerate(self.heads)
        ]

    def groups(self) -> list[dict[str, Any]]:
        heads = [{"params": list(head.parameters()), "task": task} for task, head in enumerate(self.heads)]
        return [{"params": list(self.trunk.parameters())}, *heads]

    def gradients(self, batch: Tensor, parameters: Sequence[Tensor]) -> list[list[Tensor]]:
        """For each task, its gradients by these parameters, zero where there are none: the oracle."""
        rows = [
            torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True) for loss in self.losses(batch)
        ]
        return [[torch.zeros_like(p) if g is None else g for g, p in zip(row, parameters, strict=True)] for row in rows]


def batch_of(seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(16, 7, generator=torch.Generator().manual_seed(seed)).to(dtype)


def weighted(model: Towers, weighting: Weighting | str | None, *, heads: bool = True, **options: Any) -> WeightedFused:
    params = model.groups() if heads else model.parameters()
    generator = torch.Generator().manual_seed(7)
    given = {"num_tasks": len(model.heads), "lr": 1e-2, "generator": generator, **options}
    return WeightedFused(params, weighting=weighting, **given)


def run(optimizer: WeightedFused, model: Towers, seeds: range, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """A step on the batch of each seed, an epoch after every third; the losses [T] of each."""
    seen = []
    for seed in seeds:
        batch = batch_of(seed, dtype)
        seen.append(optimizer.step(lambda: model.losses(batch)))  # noqa: B023
        if seed % 3 == 2:
            optimizer.epoch_end()
    return seen  # type: ignore[return-value]


def values(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]
