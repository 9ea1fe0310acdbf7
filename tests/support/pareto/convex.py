"""The convex front (t^2, (1 - t)^2) of ten numbers, and loops that learn it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from mt2o_ext.pareto.learned import LearnedFront, PreferenceNetwork

# The largest hypervolumes that K = 10, 20 and infinitely many models can have, from the reference (1, 1).
BEST_OF_10, BEST_OF_20, BEST_OF_ALL = 0.8014, 0.8175, 5.0 / 6.0


class Point(nn.Module):
    """Ten parameters, far from the front, and no inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.full((10,), 3.0))

    def forward(self) -> Tensor:
        return self.x


class Made(nn.Module):
    """The ten numbers from one constant feature and two of the preference."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1 + 2, 50), nn.ReLU(), nn.Linear(50, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def losses_of(x: Tensor) -> Tensor:
    return torch.stack([x.square().mean(), (1.0 - x).square().mean()])


def inputs_of(network: nn.Module) -> tuple[Tensor, ...]:
    return () if isinstance(network, PreferenceNetwork) else (torch.ones(1, 1),)


def loss_of(network: LearnedFront, generator: torch.Generator) -> Tensor:
    """The loss of a step, for a preference that is drawn."""
    preference = network.sample(generator)
    if isinstance(network, PreferenceNetwork) and network.solver == "epo":
        weights = network.generate(preference)
        return network.loss(losses_of(network.call(weights)), preference, weights=weights)
    return network.loss(losses_of(network(*inputs_of(network), preference=preference)), preference)


def trained(
    network: LearnedFront,
    optimizer: torch.optim.Optimizer,
    steps: int,
    generator: torch.Generator | None = None,
) -> Iterator[float]:
    """The losses of steps that are made as the iterator goes on."""
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(network, generator)
        loss.backward()
        optimizer.step()
        yield loss.item()


def evaluation(network: LearnedFront) -> Callable[[nn.Module], Tensor]:
    return lambda model: losses_of(model(*inputs_of(network)))
