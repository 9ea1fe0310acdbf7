"""A small network with per-task norms and three tasks, for the tests of connection strength."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mt2o_ext import ConnectionStrengthFused
from mt2o_ext.priority import TaskBatchNorm, find_connections, phase_two, select_task

TASKS = 3


class Network(nn.Module):
    """Two convolutions with norms and a plain layer, then a head for each task."""

    def __init__(self, num_tasks: int = TASKS) -> None:
        super().__init__()
        trunk = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
            nn.Conv2d(6, 8, 3, stride=2, groups=2), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Flatten(), nn.Linear(8 * 9, 10), nn.Tanh(),
        )  # fmt: skip
        self.trunk = TaskBatchNorm.convert(trunk, num_tasks)
        self.heads = nn.ModuleList(nn.Linear(10, 1) for _ in range(num_tasks))

    def forward(self, x: Tensor, task: int) -> Tensor:
        with select_task(self, task):
            output: Tensor = self.heads[task](self.trunk(x)).squeeze(1)
        return output


def network(
    seed: int = 0, *, num_tasks: int = TASKS, dtype: torch.dtype = torch.float32, apart: bool = True
) -> Network:
    """apart: the norms of the tasks differ, so that channels have owners from the first step."""
    torch.manual_seed(seed)
    model = Network(num_tasks).to(dtype)
    if apart:
        with torch.no_grad():
            for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
                norm.weight.uniform_(0.5, 1.5)
                norm.running_var.uniform_(0.5, 1.5)
    return model


class Batches:
    """Mini-batches and task losses: the same for the same seed."""

    def __init__(self, seed: int = 0, num_tasks: int = TASKS, dtype: torch.dtype = torch.float32) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.shape, self.num_tasks, self.dtype = (12, 1, 8, 8), num_tasks, dtype
        self.draw()

    def draw(self) -> Batches:
        self.x = torch.randn(self.shape, generator=self.generator, dtype=torch.float64).to(self.dtype)
        targets = torch.randn(self.num_tasks, len(self.x), generator=self.generator, dtype=torch.float64)
        self.targets = targets.to(self.dtype)
        return self

    def loss(self, model: nn.Module) -> Callable[[int], Tensor]:
        return lambda task: (model(self.x, task) - self.targets[task]).square().mean()


def optimizer_of(model: Network, **options: object) -> ConnectionStrengthFused:
    """Connection strength on all parameters; phase 2 only, where nothing else is asked for."""
    usual = {"num_tasks": len(model.heads), "total_steps": 10, "schedule": phase_two, "lr": 1e-2}
    connections = options.pop("connections", None) or find_connections(model)
    return ConnectionStrengthFused(model.named_parameters(), connections=connections, **{**usual, **options})


def same_parameters(first: nn.Module, second: nn.Module) -> bool:
    """Bit for bit, statistics too."""
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)
