"""The loops of the pages, each written once: on the optimizer itself, and on whatever a library makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mt2o_ext import ConnectionStrengthFused, MT2OFused, WeightedBackward, WeightedFused
from mt2o_ext.priority import TaskBatchNorm, find_connections, select_task
from support.optim.problems import seeded

K = 5
STEPS, BATCH = 8, 6
LR = 0.02

Compute = Callable[[], list[Tensor]]


class Net(nn.Module):
    """A trunk and two heads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh())
        self.heads = nn.ModuleList([nn.Linear(6, 1), nn.Linear(6, 1)])

    def forward(self, x: Tensor) -> Tensor:
        z = self.trunk(x)
        return torch.cat([head(z) for head in self.heads], 1)


def data() -> TensorDataset:
    x = torch.randn(STEPS * BATCH, 5, generator=torch.Generator().manual_seed(1))
    return TensorDataset(x, torch.stack([x.sum(1).sin(), x[:, 0] * x[:, 1]], 1))


def loader(batch: int = BATCH) -> DataLoader[Any]:
    return DataLoader(data(), batch_size=batch)


def losses(model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    """Two, which pull in different directions."""
    out = model(x)
    return [(out[:, 0] - y[:, 0]).square().mean(), 3 * (out[:, 1] + out[:, 0] - y[:, 1]).square().mean()]


class Loop:
    """An optimizer of a model, and what a page says about a step of it.

    Attributes:
        optimizer: ours; to be given to a library.
        model: trained.
    """

    optimizer: torch.optim.Optimizer

    def __init__(self, model: nn.Module, **options: Any) -> None:
        self.model = model
        self.optimizer = self.make(**{"lr": LR, **options})

    def make(self, **options: Any) -> torch.optim.Optimizer:
        raise NotImplementedError

    def backward(self, optimizer: Any, compute: Compute) -> None:
        """optimizer: ours, or what a library made of it."""
        optimizer.backward(compute())

    def step(self, optimizer: Any, compute: Compute) -> None:
        self.backward(optimizer, compute)
        optimizer.step()
        optimizer.zero_grad()


class Weighted(Loop):
    weighting = "upgrad"

    def make(self, **options: Any) -> torch.optim.Optimizer:
        return WeightedFused(self.groups(), num_tasks=2, weighting=self.weighting, **options)

    def groups(self) -> Any:
        return self.model.parameters()


class Heads(Weighted):
    def groups(self) -> Any:
        model: Any = self.model
        heads = [{"params": list(head.parameters()), "task": task} for task, head in enumerate(model.heads)]
        return [{"params": list(model.trunk.parameters())}, *heads]


class OfLosses(Weighted):
    weighting = "uw"


class Closure(Weighted):
    def step(self, optimizer: Any, compute: Compute) -> None:
        optimizer.step(compute)


class Subproblems(Loop):
    inner: str | None = None
    front = "rows"

    def make(self, **options: Any) -> torch.optim.Optimizer:
        given = {"num_subproblems": K, "weighting": self.inner, "front": self.front, **options}
        return MT2OFused(self.model.parameters(), num_tasks=2, **seeded(**given))

    def backward(self, optimizer: Any, compute: Compute) -> None:
        for _ in optimizer.subproblems():
            optimizer.backward(compute())


class InnerWeighting(Subproblems):
    inner = "cagrad"


class SubproblemsClosure(Subproblems):
    def step(self, optimizer: Any, compute: Compute) -> None:
        optimizer.step(compute)


class Vertices(Subproblems):
    front = "vertices"


class VerticesClosure(SubproblemsClosure):
    front = "vertices"


class Priority(Loop):
    def make(self, **options: Any) -> torch.optim.Optimizer:
        model: Any = self.model
        model.trunk = TaskBatchNorm.convert(
            nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 6)), num_tasks=2
        )
        torch.manual_seed(2)
        for p in model.parameters():
            nn.init.normal_(p, std=0.5)
        self.made = ConnectionStrengthFused(
            model.named_parameters(), connections=find_connections(model), num_tasks=2, total_steps=2 * STEPS,
            mode="general", **options,
        )  # fmt: skip
        return self.made

    def step(self, optimizer: Any, compute: Compute) -> None:
        def loss(task: int | None = None) -> Tensor:
            task = self.made.task if task is None else task  # trainers hand on closures without arguments
            with select_task(self.model, task):
                return compute()[task]

        optimizer.step(loss)


class PriorityLoop(Priority):
    def backward(self, optimizer: Any, compute: Compute) -> None:
        for task in optimizer.tasks():
            with select_task(self.model, task):
                optimizer.backward(compute()[task])

    step = Loop.step


class AnyOptimizer(Loop):
    """WeightedBackward in front of torch's AdamW."""

    def make(self, **options: Any) -> torch.optim.Optimizer:
        backward = options.pop("backward", None)
        self.weigh = WeightedBackward(self.model.parameters(), num_tasks=2, weighting="upgrad", backward=backward)
        return torch.optim.AdamW(self.model.parameters(), **options)

    def backward(self, optimizer: Any, compute: Compute) -> None:
        optimizer.zero_grad()
        self.weigh(compute())


class OneTask(Loop):
    """Used as any optimizer of torch."""

    def make(self, **options: Any) -> torch.optim.Optimizer:
        return WeightedFused(self.model.parameters(), num_tasks=1, **options)

    def backward(self, optimizer: Any, compute: Compute) -> None:
        sum(compute()).backward()


class OneSubproblem(OneTask):
    def make(self, **options: Any) -> torch.optim.Optimizer:
        return MT2OFused(self.model.parameters(), num_tasks=1, num_subproblems=1, **options)


LOOPS: dict[str, type[Loop]] = {
    "weighted": Weighted,
    "heads": Heads,
    "weighting of losses": OfLosses,
    "weighted, closure": Closure,
    "mt2o": Subproblems,
    "mt2o, weighting": InnerWeighting,
    "mt2o, closure": SubproblemsClosure,
    "vertices": Vertices,
    "vertices, closure": VerticesClosure,
    "connection strength": Priority,
    "connection strength, loop": PriorityLoop,
    "weighted backward": AnyOptimizer,
    "one task": OneTask,
    "one subproblem": OneSubproblem,
}


def run(name: str, steps: int = STEPS, batch: int = BATCH, **options: Any) -> dict[str, Tensor]:
    """What the plain loop, without any library, comes to."""
    loop = LOOPS[name](Net(), **options)
    for x, y in islice(loader(batch), steps):
        loop.step(loop.optimizer, lambda x=x, y=y: losses(loop.model, x, y))
    return everything(loop)


def everything(loop: Loop) -> dict[str, Tensor]:
    """The parameters, all subproblems, moments and counters, by name."""
    found = {f"model.{key}": value.detach().clone() for key, value in loop.model.state_dict().items()}
    return {**found, **dict(_tensors("optimizer", loop.optimizer.state_dict()))}


def _tensors(path: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value.detach().clone()
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(f"{path}.{key}", item)
    elif isinstance(value, (list, tuple)):
        for key, item in enumerate(value):
            yield from _tensors(f"{path}.{key}", item)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 0.0) -> None:
    """Bit for bit, or within a tolerance, absolute and relative."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )


def moved(found: dict[str, Tensor]) -> float:
    """How far the parameters are from where they started."""
    start = Net().state_dict()
    return max(float((found[f"model.{key}"] - value).abs().max()) for key, value in start.items())
