"""What users of other packages reported or asked for, tried here: tasks without data, hooks, heads, options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from loops import Net, data, losses
from torch import Tensor, nn

from mt2o_ext import MT2OFused, SubproblemBank, WeightedBackward, WeightedFused
from mt2o_ext.weighting import MoCo

X, Y = data().tensors


def known(reason: str) -> pytest.MarkDecorator:
    return pytest.mark.xfail(strict=True, reason=reason)


def weighted(model: nn.Module, **options: Any) -> WeightedFused:
    return WeightedFused(model.parameters(), **{"num_tasks": 2, "weighting": "upgrad", "lr": 0.02, **options})


def by_task(model: Any, tasks: tuple[int, int] = (0, 1)) -> list[dict[str, Any]]:
    heads = [{"params": head.parameters(), "task": task} for head, task in zip(model.heads, tasks, strict=True)]
    return [{"params": model.trunk.parameters()}, *heads]


# ---------------------------------------------------------------- a task without data in this batch
ABSENT = {"a constant": lambda: torch.zeros(()), "None": lambda: None}


@known("a loss without graph is torch's RuntimeError, None a TypeError")
@pytest.mark.parametrize("absent", ABSENT)
@pytest.mark.parametrize("weighting", ["upgrad", "cagrad", "uw"])
def test_a_task_without_data_moves_nothing_of_its_own(weighting: str, absent: str) -> None:
    """Its head stays where it is, and the trunk has the other task's gradient."""
    model: Any = Net()
    optimizer = WeightedFused(by_task(model), num_tasks=2, weighting=weighting, base="sgd", lr=0.02)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.backward([losses(model, X, Y)[0], ABSENT[absent]()])
    optimizer.step()
    after = dict(zip(model.state_dict(), before, strict=True))
    assert torch.equal(model.heads[1].weight, after["heads.1.weight"])
    assert not torch.equal(model.heads[0].weight, after["heads.0.weight"])
    assert not torch.equal(model.trunk[0].weight, after["trunk.0.weight"])


# ---------------------------------------------------------------- hooks
def replaced(p: Tensor) -> None:
    p.grad = torch.zeros_like(p)


def in_place(p: Tensor) -> None:
    assert p.grad is not None
    p.grad.zero_()


BLIND = known("what a post-accumulate hook makes of .grad is not read back")


@pytest.mark.parametrize(
    ("options", "hook"),
    [
        ({}, in_place),
        ({"weighting": "uw"}, in_place),
        pytest.param({}, replaced, marks=BLIND),
        pytest.param({"weighting": "uw"}, replaced, marks=BLIND),
        pytest.param({"collect": "batched"}, in_place, marks=BLIND),
        pytest.param({"collect": "batched"}, replaced, marks=BLIND),
    ],
)
def test_masks_by_hook_keep_weights_where_they_are(options: Any, hook: Callable[[Tensor], None]) -> None:
    """Pruned weights stay zero under a mask of their gradients, as in torch.optim."""
    model: Any = Net()
    optimizer = weighted(model, base="sgd", **options)
    weight = model.trunk[0].weight
    weight.register_post_accumulate_grad_hook(hook)
    before = weight.detach().clone()
    optimizer.backward(losses(model, X, Y))
    optimizer.step()
    assert torch.equal(weight, before)


@pytest.mark.parametrize("weighting", [None, pytest.param("cagrad", marks=BLIND)])
def test_masks_by_hook_in_subproblems(weighting: str | None) -> None:
    model: Any = Net()
    optimizer = MT2OFused(model.parameters(), num_tasks=2, base="sgd", transfer=None, weighting=weighting)
    weight = model.trunk[0].weight
    weight.register_post_accumulate_grad_hook(replaced)
    before = weight.detach().clone()
    optimizer.step(lambda: losses(model, X, Y))
    assert torch.equal(weight, before)


# ---------------------------------------------------------------- calls that do something else than they seem to
@known("keyword tensors are given whole to each of the K models")
def test_a_bank_takes_keywords_as_positions() -> None:
    bank = SubproblemBank(nn.Linear(3, 2), num_subproblems=4)
    x = torch.randn(4, 5, 3)
    assert torch.equal(bank(input=x), bank(x))


@known("heads of swapped tasks have no gradient, and nobody says so")
def test_heads_that_never_learn_are_told_of() -> None:
    model = Net()
    optimizer = WeightedFused(by_task(model, (1, 0)), num_tasks=2, weighting="upgrad")
    optimizer.step(lambda: losses(model, X, Y))
    with pytest.warns(UserWarning, match="task"):
        optimizer.step(lambda: losses(model, X, Y))


@known("any attribute can be set on an optimizer")
def test_preferences_can_be_set_or_are_refused() -> None:
    optimizer: Any = weighted(Net())
    with pytest.raises((AttributeError, TypeError, ValueError), match="preferences"):
        optimizer.preferences = [0.2, 0.8]


@known("the second optimizer takes the state of the first one's weighting away")
def test_a_weighting_belongs_to_one_optimizer() -> None:
    weighting = MoCo()
    weighted(Net(), weighting=weighting)
    with pytest.raises((RuntimeError, ValueError), match="MoCo"):
        weighted(Net(), weighting=weighting)


# ---------------------------------------------------------------- what torch.optim takes, or refuses
@known("flags of torch.optim are unknown to the constructors")
@pytest.mark.parametrize("flag", ["fused", "foreach", "capturable"])
def test_flags_of_torch_are_taken(flag: str) -> None:
    weighted(Net(), **{flag: True})


@known("what a step cannot do is accepted as an option of a group")
def test_differentiable_is_refused() -> None:
    with pytest.raises((TypeError, ValueError), match="differentiable"):
        WeightedFused([{"params": list(Net().parameters()), "differentiable": True}], num_tasks=2)


@known("the parameter is given memory of its own, without a word")
def test_expanded_parameters_are_refused() -> None:
    """They cannot be written to, says torch."""
    with pytest.raises((RuntimeError, ValueError), match=r"expand|memory"):
        WeightedFused([nn.Parameter(torch.ones(1).expand(4))], num_tasks=1)


@known("names are not taken off")
def test_weighted_backward_takes_named_parameters() -> None:
    model = Net()
    WeightedBackward(model.named_parameters(), num_tasks=2)(losses(model, X, Y))


@known("the message is about heads")
def test_weighted_backward_of_nothing_says_so() -> None:
    with pytest.raises(ValueError, match=r"empty|no parameters"):
        WeightedBackward([], num_tasks=2)
