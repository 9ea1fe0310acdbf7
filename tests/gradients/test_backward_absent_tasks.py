"""WeightedBackward in a loop over tasks, and with tasks that have no data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mt2o_ext import WeightedBackward
from mt2o_ext.weighting import FAMO, PerSegment, UPGrad

T = 3


class Net(nn.Module):
    def __init__(self, tasks: Sequence[int] = range(T)) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.trunk = nn.Linear(5, 6)
        heads = [nn.Linear(6, 2) for _ in range(T)]
        self.heads = nn.ModuleList(heads[task] for task in tasks)
        self.double()

    def features(self, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return self.trunk(torch.randn(7, 5, dtype=torch.float64, generator=generator)).tanh()

    def loss(self, head: int, seed: int = 0, z: Tensor | None = None) -> Tensor:
        return (self.heads[head](self.features(seed) if z is None else z) - 1.0 - seed).square().mean()

    def grads(self) -> list[Tensor | None]:
        return [p.grad for p in self.parameters()]


def made(model: Net, weighting: Any = "upgrad", **options: Any) -> WeightedBackward:
    groups = [{"params": model.trunk.parameters()}]
    groups += [{"params": head.parameters(), "task": task} for task, head in enumerate(model.heads)]
    torch.manual_seed(0)
    return WeightedBackward(groups, num_tasks=len(model.heads), weighting=weighting, **options)


def same(one: Sequence[Tensor | None], other: Sequence[Tensor | None]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all((a is None) == (b is None) and (a is None or b is None or torch.equal(a, b)) for a, b in pairs)


@pytest.mark.parametrize("weighting", ["upgrad", "moco", "gradnorm", "per segment"])
def test_a_loop_is_a_call_with_all_losses(weighting: str) -> None:
    one, other = Net(), Net()
    make = (lambda: PerSegment(UPGrad())) if weighting == "per segment" else (lambda: weighting)
    looping, calling = made(one, make()), made(other, make())
    for step in range(2):
        one.zero_grad()
        other.zero_grad()
        for task in looping.tasks():
            value = looping(one.loss(task, 3 * step + task))
            assert value.dim() == 0 and not value.requires_grad
        weights = calling([other.loss(task, 3 * step + task) for task in range(T)])
        assert looping.weights is not None and torch.equal(looping.weights, weights)
        assert same(one.grads(), other.grads())


@pytest.mark.parametrize("way", ["stored", "not stored", "features", "of losses"])
@pytest.mark.parametrize("absent", ["None", "a constant"])
@pytest.mark.parametrize("heads", ["plain", "weighted"])
def test_the_others_do_as_if_there_were_none(way: str, absent: str, heads: str) -> None:
    model, smaller = Net(), Net([0, 2])
    weighting = "uw" if way == "of losses" else "cagrad"
    some = made(model, weighting, store=way != "not stored", preferences=[0.1, 0.5, 0.4], heads=heads)
    alone = made(smaller, weighting, store=way != "not stored", preferences=[0.2, 0.8], heads=heads)
    for _ in range(2):
        z, other = model.features(), smaller.features()
        gone = None if absent == "None" else torch.zeros((), dtype=torch.float64)
        features = {"features": z} if way == "features" else {}
        others = {"features": other} if way == "features" else {}
        weights = some([model.loss(0, 0, z), gone, model.loss(2, 2, z)], **features)
        expected = alone([smaller.loss(0, 0, other), smaller.loss(1, 2, other)], **others)
        assert weights[1] == 0
        torch.testing.assert_close(weights[[0, 2]], expected, rtol=1e-10, atol=1e-12)
    assert all(p.grad is None for p in model.heads[1].parameters())
    for one, two in (
        (model.trunk, smaller.trunk),
        (model.heads[0], smaller.heads[0]),
        (model.heads[2], smaller.heads[1]),
    ):
        for p, q in zip(one.parameters(), two.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-10, atol=1e-12)


def test_feedback_of_the_tasks_that_were_there() -> None:
    model = Net()
    backward = made(model, FAMO())
    backward([model.loss(0), None, model.loss(2)])
    backward.feedback([0.5 * model.loss(0), None, model.loss(2)])
    logits = backward.state_dict()["weighting"]["logits"][0]
    assert logits[0] != 0 and logits[1] == 0


def test_a_loop_that_is_left_leaves_nothing() -> None:
    model, other = Net(), Net()
    backward, plain = made(model), made(other)
    rounds = backward.tasks()
    for task in (0, 1):
        assert next(rounds) == task
        backward(model.loss(task, 50))
    with pytest.warns(UserWarning, match="nothing was combined"):
        rounds.close()  # type: ignore[attr-defined]
    assert all(grad is None for grad in model.grads()) and backward.weights is None
    for task in backward.tasks():
        backward(None if task == 1 else model.loss(task, task))
    plain([other.loss(0, 0), None, other.loss(2, 2)])
    assert same(model.grads(), other.grads())


def test_mistakes_are_named() -> None:
    model = Net()
    backward = made(model)
    for task in backward.tasks():
        with pytest.raises(RuntimeError, match="one loop over tasks"):
            next(backward.tasks())
        with pytest.raises(TypeError, match=f"the loss of task {task} as a tensor, got list"):
            backward([model.loss(0)])  # type: ignore[list-item]
        with pytest.raises(ValueError, match="no features= inside of tasks"):
            backward(model.loss(task), features=model.features())
        backward(model.loss(task))
    for other in (made(model, "uw"), made(model, store=False)):
        with pytest.raises(RuntimeError, match=r"weighting of stored gradients for tasks\(\), got"):
            next(other.tasks())
    with pytest.raises(TypeError, match="got None: it stands for one task"):
        backward(None)
