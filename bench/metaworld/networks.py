"""The policies: modules with routes, and plain networks that have as many parameters."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mt2o_ext.models import SoftModules

LAYERS, MODULES, WIDTH = 2, 2, 128
"""Of SoftModules: the smaller of the paper's two sizes, with half of its width."""

TOLERANCE = 0.02
"""By which the numbers of parameters may differ."""


def perceptron(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """Three hidden layers, as deep as the modules with the layer before them."""
    hidden = [each for size in (inputs, width, width) for each in (nn.Linear(size, width), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(width, outputs))


class Plain(nn.Module):
    """One network; the task is joined to the input as T numbers, of which one is 1."""

    def __init__(self, inputs: int, outputs: int, num_tasks: int, width: int) -> None:
        super().__init__()
        self.net = perceptron(inputs + num_tasks, width, outputs)
        self.num_tasks = num_tasks

    def forward(self, x: Tensor, task: int | Tensor) -> Tensor:
        tasks = torch.as_tensor(task).expand(len(x))
        outputs: Tensor = self.net(torch.cat([x, nn.functional.one_hot(tasks, self.num_tasks).to(x)], 1))
        return outputs


class Heads(nn.Module):
    """One trunk, and a last layer of its own for each task."""

    def __init__(self, inputs: int, outputs: int, num_tasks: int, width: int) -> None:
        super().__init__()
        self.trunk = perceptron(inputs, width, outputs)[:-1]
        self.heads = nn.ModuleList(nn.Linear(width, outputs) for _ in range(num_tasks))

    def forward(self, x: Tensor, task: int | Tensor) -> Tensor:
        features = self.trunk(x)
        if isinstance(task, int):
            outputs: Tensor = self.heads[task](features)
            return outputs
        return torch.stack([head(features) for head in self.heads])[task, torch.arange(len(x))]


class Separate(nn.Module):
    """A network for each task; nothing is shared."""

    def __init__(self, inputs: int, outputs: int, num_tasks: int, width: int) -> None:
        super().__init__()
        self.nets = nn.ModuleList(perceptron(inputs, width, outputs) for _ in range(num_tasks))

    def forward(self, x: Tensor, task: int | Tensor) -> Tensor:
        if isinstance(task, int):
            outputs: Tensor = self.nets[task](x)
            return outputs
        return torch.cat([self.nets[each](x[row : row + 1]) for row, each in enumerate(task.tolist())])


def modules(inputs: int, outputs: int, num_tasks: int) -> nn.Module:
    return SoftModules(inputs, outputs, LAYERS, MODULES, WIDTH, num_tasks=num_tasks)


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def matched(kind: Callable[[int, int, int, int], nn.Module]) -> Callable[[int, int, int], nn.Module]:
    """Networks of this kind, of that width which has as many parameters as the modules."""

    def make(inputs: int, outputs: int, num_tasks: int) -> nn.Module:
        def count(width: int) -> int:
            with torch.device("meta"):
                return parameters(kind(inputs, outputs, num_tasks, width))

        with torch.device("meta"):
            wanted = parameters(modules(inputs, outputs, num_tasks))
        above = bisect_left(range(1, 8 * WIDTH), wanted, key=count) + 1
        width = min(above, max(above - 1, 1), key=lambda each: abs(count(each) - wanted))
        if abs(count(width) - wanted) > TOLERANCE * wanted:
            raise ValueError(f"expected {wanted} parameters within 2 %, got {count(width)}: no width has as many")
        return kind(inputs, outputs, num_tasks, width)

    return make


@dataclass(frozen=True)
class Network:
    """A way to share, and what the tables say of it."""

    text: str
    make: Callable[[int, int, int], nn.Module]
    shares: bool = True
    """Whether weightings of the tasks' gradients make a difference."""

    def groups(self, net: nn.Module) -> list[dict[str, Any]]:
        """Parameter groups; heads belong to their tasks."""
        if isinstance(net, Heads):
            heads = [{"params": list(head.parameters()), "task": task} for task, head in enumerate(net.heads)]
            return [{"params": list(net.trunk.parameters())}, *heads]
        return [{"params": list(net.parameters())}]


NETWORKS = {
    "modules": Network(f"`SoftModules`, {LAYERS} layers of {MODULES} modules {WIDTH} wide", modules),
    "plain": Network("a perceptron whose input also names the task", matched(Plain)),
    "heads": Network("a perceptron with a last layer for each task", matched(Heads)),
    "separate": Network("a perceptron for each task, all of them together as large", matched(Separate), shares=False),
}
WEIGHTINGS = {"sum": None, "PCGrad": "pcgrad", "UPGrad": "upgrad"}
ARMS = [
    (network, weighting) for network, kind in NETWORKS.items() for weighting in WEIGHTINGS
    if kind.shares or weighting == "sum"
]  # fmt: skip
