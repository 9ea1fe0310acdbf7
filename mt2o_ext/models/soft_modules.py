"""Soft modularization: layers of modules, with routes between them that depend on the task and the input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_count

__all__ = ["SoftModules"]


class SoftModules(nn.Module):
    """Layers of m modules each, joined by routes for each task and input (Yang, Xu, Wu and Wang, NeurIPS 2020).

    With f = F x [D], e = f * z_task (elementwise) and all modules linear:

    * p^0 = W_0 relu(e), p^l = W_l relu(e * U_l [hat p^0, ..., hat p^(l-1)]), hat p^l = softmax over each row, [m, m];
      the last one is a vector [m].
    * Module i of the layer l + 1 sees relu(sum_j hat p^l_ij o_j), where o_j is what module j of layer l gives; the
      modules of the first layer see relu(f).
    * The output is V relu(sum_j hat p_j o_j) of the last layer.

    From arXiv 2003.13661 the structure: modules, a routing network from the task and the input, probabilities by a
    softmax. The published code is read for the rest: the condition on *all* earlier routes, relu behind the sum. The
    paper's own equations are not compared. Inferred: D, and the width of the routing network, are `width`, too. Ours:
    one linear layer from the input and a vector for each task where the code has small networks, torch's default start,
    neither BatchNorm nor a choice of activations. The weights of the losses that belong to it are
    `mt2o_ext.weighting.InverseTemperature`.

    Args:
        in_features: of the input.
        out_features: of the output.
        layers: L, at least 2. The paper's two sizes are 2 layers of 2 modules of width 256, and 4, 4, 128.
        modules: m.
        width: of the modules and of the routing network, D.
        num_tasks: T.

    Raises:
        TypeError: or ValueError for a size that is no whole number, or too small.

    Example:
        >>> network = SoftModules(12, 4, layers=2, modules=2, width=16, num_tasks=3)
        >>> network(torch.ones(5, 12), 1).shape  # of task 1
        torch.Size([5, 4])
        >>> network(torch.ones(5, 12), torch.tensor([0, 1, 2, 0, 1])).shape  # each sample of its own task
        torch.Size([5, 4])
        >>> routes = network.routes(torch.ones(5, 12), 1)
        >>> [tuple(route.shape) for route in routes]
        [(5, 2, 2), (5, 2)]
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        layers: int = 2,
        modules: int = 2,
        width: int = 256,
        *,
        num_tasks: int,
    ) -> None:
        super().__init__()
        sizes = {"in_features": in_features, "out_features": out_features, "modules": modules, "width": width}
        for name, size in {**sizes, "num_tasks": num_tasks}.items():
            check_count(name, size)
        check_count("layers", layers, 2)
        self.num_modules = modules
        self.num_tasks = num_tasks
        self.features = nn.Linear(in_features, width)
        self.tasks = nn.Embedding(num_tasks, width)
        self.layers = nn.ModuleList(
            nn.ModuleList(nn.Linear(width, width) for _ in range(modules)) for _ in range(layers)
        )
        square = modules * modules
        # hat p^0 has no routes before it, and the last one leads to the output: a vector.
        self.conditions = nn.ModuleList(nn.Linear(before * square, width) for before in range(1, layers))
        self.logits = nn.ModuleList(
            nn.Linear(width, square if layer < layers - 1 else modules) for layer in range(layers)
        )
        self.last = nn.Linear(width, out_features)

    def forward(self, x: Tensor, task: int | Tensor) -> Tensor:
        """Return [..., out_features].

        Args:
            x: [..., in_features].
            task: one for all, or int64 [...] for each sample.
        """
        features = self.features(x)
        routes = self._routes(features, task)
        layers: list[Any] = list(self.layers)
        outputs = torch.stack([module(torch.relu(features)) for module in layers[0]], -2)
        for layer, route in zip(layers[1:], routes[:-1], strict=True):
            inputs = torch.relu(route @ outputs)  # [..., m, D]
            outputs = torch.stack([module(each) for module, each in zip(layer, inputs.unbind(-2), strict=True)], -2)
        joined: Tensor = self.last(torch.relu((routes[-1].unsqueeze(-2) @ outputs).squeeze(-2)))
        return joined

    def routes(self, x: Tensor, task: int | Tensor) -> list[Tensor]:
        """Return the probabilities: L - 1 of shape [..., m, m] from modules (last) to modules, then [..., m]."""
        return self._routes(self.features(x), task)

    def _routes(self, features: Tensor, task: int | Tensor) -> list[Tensor]:
        condition = features * self._task_vectors(task, features)
        found: list[Tensor] = []
        hidden = condition
        for layer, logits in enumerate(self.logits):
            if layer > 0:
                before = torch.cat([route.flatten(-2) for route in found], -1)
                hidden = condition * self.conditions[layer - 1](before)
            shape = (self.num_modules, self.num_modules) if layer < len(self.logits) - 1 else (self.num_modules,)
            found.append(torch.softmax(logits(torch.relu(hidden)).unflatten(-1, shape), -1))
        return found

    def _task_vectors(self, task: int | Tensor, features: Tensor) -> Tensor:
        if isinstance(task, int):
            if not 0 <= task < self.num_tasks:
                raise IndexError(f"expected a task 0 .. {self.num_tasks - 1}, got {task}: take one of them")
            return self.tasks.weight[task]
        if task.shape != features.shape[:-1]:
            raise ValueError(
                f"expected the tasks of samples {tuple(features.shape[:-1])}, got the shape {tuple(task.shape)}: give "
                "one for each, or an int for all"
            )
        vectors: Tensor = self.tasks(task)
        return vectors
