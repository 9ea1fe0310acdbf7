"""Frozen parameters: nothing is kept for them, whatever their dtype; they are trained once they are thawed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mt2o_ext import MT2OFused, WeightedFused
from mt2o_ext.optim.base import FlatOptimizer
from support.optim.problems import seeded


class Adapted(nn.Module):
    """A frozen base with a trained adapter beside it, and something quantised."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.base = nn.Linear(32, 32).requires_grad_(False)
        self.adapter = nn.Linear(32, 2)
        self.quantised = nn.Parameter(torch.randint(0, 255, (64,), dtype=torch.uint8), requires_grad=False)
        self.small = nn.Parameter(torch.ones(3).to(torch.float8_e4m3fn), requires_grad=False)

    def losses(self, x: Tensor) -> list[Tensor]:
        y = self.adapter(torch.tanh(self.base(x)))
        return [(y[:, 0] - 1).square().mean(), (y[:, 1] + 1).square().mean()]


def mt2o(params: list[nn.Parameter], front: str, **options: Any) -> MT2OFused:
    return MT2OFused(params, **seeded(num_tasks=2, num_subproblems=5, front=front, **options))


MAKE: dict[str, Callable[[list[nn.Parameter]], FlatOptimizer]] = {
    "weighted": lambda params: WeightedFused(params, num_tasks=2, weighting="upgrad"),
    "sum": lambda params: WeightedFused(params, num_tasks=2),
    "mt2o": lambda params: mt2o(params, "rows", ema=0.9),
    "mt2o, weighting": lambda params: mt2o(params, "rows", weighting="cagrad"),
    "vertices": lambda params: mt2o(params, "vertices", ema=0.9),
    "vertices, weighting": lambda params: mt2o(params, "vertices", weighting="cagrad"),
}
EVERY = pytest.mark.parametrize("name", MAKE)


def run(optimizer: FlatOptimizer, model: Adapted, steps: int = 3) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.step(lambda: model.losses(torch.randn(8, 32, generator=generator)))  # type: ignore[arg-type]


def numbers(state: object) -> int:
    if isinstance(state, Tensor):
        return state.numel()
    values = state.values() if isinstance(state, dict) else state if isinstance(state, (list, tuple)) else ()
    return sum(map(numbers, values))


@EVERY
def test_all_parameters_given_is_the_trained_ones_given(name: str) -> None:
    results = []
    for all_given in (True, False):
        model = Adapted()
        before = [p.detach().clone() for p in model.parameters()]
        optimizer = MAKE[name]([p for p in model.parameters() if all_given or p.requires_grad])
        run(optimizer, model)
        frozen = [i for i, p in enumerate(model.parameters()) if not p.requires_grad]
        assert all(torch.equal(list(model.parameters())[i], before[i]) for i in frozen)
        held = sum(flat.theta.numel() for flat in optimizer._buffers.flats)
        results.append(
            ([*map(torch.clone, model.adapter.parameters())], held, numbers(optimizer.state_dict()["state"]))
        )
    assert all(map(torch.equal, results[0][0], results[1][0])) and results[0][1:] == results[1][1:]


def trained(optimizer: FlatOptimizer, p: nn.Parameter) -> Tensor:
    """What a step may move: the parameter itself, or the vertices whose random points it shows."""
    return optimizer.state[p].get("vertices", p).detach().clone()


@EVERY
def test_a_thawed_parameter_is_trained_from_then_on(name: str) -> None:
    model = Adapted()
    optimizer = MAKE[name](list(model.parameters()))
    run(optimizer, model)
    before = model.base.weight.detach().clone()
    moments = optimizer.state[model.adapter.weight]["exp_avg"].clone()
    model.base.requires_grad_(True)
    run(optimizer, model, 1)
    assert not torch.equal(model.base.weight, before)
    assert model.base.weight in optimizer.state and not torch.equal(
        optimizer.state[model.adapter.weight]["exp_avg"], torch.zeros_like(moments)
    )
    model.base.requires_grad_(False)  # frozen again: it keeps its moments, as with torch, and does not move
    before = trained(optimizer, model.base.weight)
    run(optimizer, model, 1)
    assert torch.equal(trained(optimizer, model.base.weight), before)
    assert "exp_avg" in optimizer.state[model.base.weight]


@EVERY
def test_checkpoints_of_frozen_and_of_thawed_parameters(name: str) -> None:
    for thawed in (False, True):
        model = Adapted()
        model.base.requires_grad_(thawed)
        optimizer = MAKE[name](list(model.parameters()))
        run(optimizer, model)
        saved, weights = optimizer.state_dict(), {k: v.clone() for k, v in model.state_dict().items()}
        run(optimizer, model, 2)
        other = Adapted()
        other.load_state_dict(weights)
        resumed = MAKE[name](list(other.parameters()))
        resumed.load_state_dict(saved)  # of a parameter that is frozen now, what it was trained with comes along
        other.base.requires_grad_(thawed)
        generator = torch.Generator().manual_seed(1)
        for _ in range(2):
            resumed.step(lambda: other.losses(torch.randn(8, 32, generator=generator)))  # type: ignore[arg-type]  # noqa: B023
        assert all(map(torch.equal, other.parameters(), model.parameters()))


def test_nothing_trainable_is_a_step_of_nothing() -> None:
    model = Adapted().requires_grad_(False)
    for name in ("sum", "mt2o", "vertices"):
        optimizer = MAKE[name](list(model.parameters()))
        optimizer.state_dict()
        assert not optimizer._buffers.flats


def test_the_dtype_of_a_thawed_parameter_is_checked() -> None:
    p, quantised = nn.Parameter(torch.ones(3)), torch.ones(4, dtype=torch.complex64)
    optimizer = WeightedFused([p, quantised], num_tasks=1)
    quantised.requires_grad_(True)
    p.grad = torch.ones(3)
    with pytest.raises(TypeError, match="complex64"):
        optimizer.step()
    assert torch.equal(p, torch.ones(3))


def test_parameters_in_shared_memory_stay_there() -> None:
    """Where other processes look for them."""
    for name in MAKE:
        model, plain = Adapted(), Adapted()
        model.share_memory()
        there = [p.detach() for p in model.parameters()]
        optimizer, other = MAKE[name](list(model.parameters())), MAKE[name](list(plain.parameters()))
        for one, own in ((optimizer, model), (other, plain)):
            run(one, own)
            if isinstance(one, MT2OFused):
                one.front(lambda: own.losses(torch.ones(2, 32)))  # noqa: B023
            run(one, own)
        assert all(p.is_shared() for p in model.parameters())
        assert all(p.data_ptr() == q.data_ptr() for p, q in zip(model.parameters(), there, strict=True))
        assert all(map(torch.equal, there, plain.parameters())), name
