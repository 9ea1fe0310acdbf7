"""Backward reaches every parameter that torch's own would, and re-points none while a graph may be alive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mt2o_ext import MT2OFused, WeightedBackward, WeightedFused
from mt2o_ext.base import SGD
from support.optim.problems import seeded

WEIGHTINGS = ("ls", "upgrad", "cagrad", "gls", "moco")


class Towers(nn.Module):
    """A trunk that may be checkpointed, and two heads."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.trunk = nn.Linear(4, 6), nn.Sequential(nn.Linear(6, 6), nn.Tanh())
        self.heads = nn.ModuleList([nn.Linear(6, 1), nn.Linear(6, 1)])
        self.how = how

    def forward(self, x: Tensor) -> list[Tensor]:
        z = self.first(x)
        if self.how == "plain":
            z = self.trunk(z)
        elif self.how == "function":
            z = Closes.apply(z, self.trunk)
        else:
            z = checkpoint(self.trunk, z, use_reentrant=self.how == "reentrant")
        return [1 + head(z).square().mean() for head in self.heads]

    def groups(self) -> list[dict[str, Any]]:
        shared = {"params": [*self.first.parameters(), *self.trunk.parameters()]}
        return [shared, *({"params": head.parameters(), "task": task} for task, head in enumerate(self.heads))]


class Closes(torch.autograd.Function):
    """A function whose backward makes the gradients of parameters that it does not name as inputs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: nn.Module) -> Tensor:
        ctx.module = module
        ctx.save_for_backward(x)
        return module(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None]:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            ctx.module(x).backward(grad)
        return x.grad, None


def values(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def trained(how: str, make: Callable[[Towers], Callable[[Tensor], None]]) -> list[Tensor]:
    model = Towers(how)
    step = make(model)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        step(torch.randn(5, 4, generator=generator))
    return values(model)


def by_weighted(weighting: str, **options: Any) -> Callable[[Towers], Callable[[Tensor], None]]:
    def make(model: Towers) -> Callable[[Tensor], None]:
        optimizer = WeightedFused(model.groups(), num_tasks=2, weighting=weighting, base=SGD(), lr=0.1, **options)

        def step(x: Tensor) -> None:
            optimizer.backward(model(x))
            optimizer.step()

        return step

    return make


def by_backward(weighting: str, **options: Any) -> Callable[[Towers], Callable[[Tensor], None]]:
    def make(model: Towers) -> Callable[[Tensor], None]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        backward = WeightedBackward(model.groups(), num_tasks=2, weighting=weighting, **options)

        def step(x: Tensor) -> None:
            optimizer.zero_grad()
            backward(model(x))
            optimizer.step()

        return step

    return make


def by_mt2o(weighting: str | None, front: str = "rows") -> Callable[[Towers], Callable[[Tensor], None]]:
    def make(model: Towers) -> Callable[[Tensor], None]:
        optimizer = MT2OFused(
            model.groups() if weighting else model.parameters(),
            **seeded(
                num_tasks=2, num_subproblems=3, transfer=None, weighting=weighting, base=SGD(), lr=0.1, front=front
            ),
        )

        def step(x: Tensor) -> None:
            for _ in optimizer.subproblems():
                optimizer.backward(model(x))
            optimizer.step()
            optimizer.zero_grad()

        return step

    return make


EVERY_WAY = {
    **{f"WeightedFused {name}": by_weighted(name) for name in WEIGHTINGS},
    "WeightedFused weighted heads": by_weighted("gls", heads="weighted"),
    **{f"WeightedBackward {name}": by_backward(name) for name in WEIGHTINGS},
    "MT2OFused": by_mt2o(None),
    "MT2OFused upgrad": by_mt2o("upgrad"),
}


@pytest.mark.parametrize("how", ["reentrant", "non-reentrant", "function"])
@pytest.mark.parametrize("way", EVERY_WAY)
def test_checkpointed_layers_are_trained(way: str, how: str) -> None:
    plain, other = (trained(each, EVERY_WAY[way]) for each in ("plain", how))
    start = values(Towers("plain"))
    for p, q, before in zip(plain, other, start, strict=True):
        torch.testing.assert_close(q, p, rtol=1e-5, atol=1e-6)
        assert not torch.equal(p, before)


CHANGES: dict[str, Callable[[nn.Module], None]] = {
    "data": lambda model: [setattr(p, "data", p.data.clone()) for p in model.parameters()],
    "vector": lambda model: nn.utils.vector_to_parameters(
        nn.utils.parameters_to_vector(model.parameters()).detach(), model.parameters()
    ),
    "shared memory": lambda model: model.share_memory(),
    "strides": lambda model: [setattr(p, "data", p.data.T.contiguous().T) for p in model.parameters() if p.dim() == 2],
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("way", [*EVERY_WAY])
def test_parameters_replaced_before_the_forward_pass(way: str, change: str) -> None:
    """As recurrent layers do in every forward pass on a GPU, and averaging or SAM codes before it."""
    model, other = Towers("plain"), Towers("plain")
    step, plain = EVERY_WAY[way](model), EVERY_WAY[way](other)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        x = torch.randn(5, 4, generator=generator)
        CHANGES[change](model)
        step(x)
        plain(x)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("weighting", ["ls", "upgrad"])
def test_parameters_converted_before_the_forward_pass(weighting: str) -> None:
    model = Towers("plain")
    optimizer = WeightedFused(model.groups(), num_tasks=2, weighting=weighting, base=SGD(), lr=0.1)
    optimizer.step(lambda: model(torch.ones(5, 4)))
    model.double()
    before = values(model)
    expected = torch.autograd.grad(sum(model(torch.ones(5, 4).double())), list(model.heads.parameters()))
    optimizer.backward(model(torch.ones(5, 4).double()))
    optimizer.step()
    moved = [q - p.detach() for p, q in zip(model.parameters(), before, strict=True)]
    assert all(p.dtype == torch.float64 for p in model.parameters())
    for own, grad in zip(moved[-4:], expected, strict=True):
        torch.testing.assert_close(own, 0.1 * grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weighting", ["ls", "upgrad"])
def test_two_optimizers_train_one_model_by_turns(weighting: str) -> None:
    model = Towers("plain")
    optimizers = [
        WeightedFused(model.groups(), num_tasks=2, weighting=weighting, base=SGD(), lr=0.05) for _ in range(2)
    ]
    other = Towers("plain")
    alone = WeightedFused(other.groups(), num_tasks=2, weighting=weighting, base=SGD(), lr=0.05)
    for turn in range(6):
        x = torch.full((5, 4), 0.1 * turn)
        optimizers[turn % 2].backward(model(x))
        optimizers[turn % 2].step()
        alone.backward(other(x))
        alone.step()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
