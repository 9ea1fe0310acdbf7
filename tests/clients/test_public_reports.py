"""What users of other packages reported or asked for, tried here: tasks without data, hooks, heads, options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mt2o_ext import ConnectionStrengthFused, MT2OFused, SubproblemBank, WeightedBackward, WeightedFused
from mt2o_ext.weighting import MoCo
from support.clients.loops import Net, data, losses

X, Y = data().tensors


def weighted(model: nn.Module, **options: Any) -> WeightedFused:
    return WeightedFused(model.parameters(), **{"num_tasks": 2, "weighting": "upgrad", "lr": 0.02, **options})


def by_task(model: Any, tasks: tuple[int, int] = (0, 1)) -> list[dict[str, Any]]:
    heads = [{"params": head.parameters(), "task": task} for head, task in zip(model.heads, tasks, strict=True)]
    return [{"params": model.trunk.parameters()}, *heads]


# ---------------------------------------------------------------- a task without data in this batch
ABSENT = {"a constant": lambda: torch.zeros(()), "None": lambda: None}


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


@pytest.mark.parametrize(
    ("options", "hook"),
    [
        ({}, in_place),
        ({"weighting": "uw"}, in_place),
        ({}, replaced),
        ({"weighting": "uw"}, replaced),
        ({"collect": "batched"}, in_place),
        ({"collect": "batched"}, replaced),
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


@pytest.mark.parametrize("weighting", [None, "cagrad"])
def test_masks_by_hook_in_subproblems(weighting: str | None) -> None:
    model: Any = Net()
    optimizer = MT2OFused(model.parameters(), num_tasks=2, base="sgd", transfer=None, weighting=weighting)
    weight = model.trunk[0].weight
    weight.register_post_accumulate_grad_hook(replaced)
    before = weight.detach().clone()
    optimizer.step(lambda: losses(model, X, Y))
    assert torch.equal(weight, before)


# ---------------------------------------------------------------- calls that do something else than they seem to
def test_a_bank_takes_keywords_as_positions() -> None:
    bank = SubproblemBank(nn.Linear(3, 2), num_subproblems=4)
    x = torch.randn(4, 5, 3)
    assert torch.equal(bank(input=x), bank(x))


def test_heads_that_never_learn_are_told_of() -> None:
    model = Net()
    optimizer = WeightedFused(by_task(model, (1, 0)), num_tasks=2, weighting="upgrad")
    with pytest.warns(UserWarning, match=r"no loss has a gradient for .*\(of a group with task="):
        optimizer.step(lambda: losses(model, X, Y))


def test_preferences_can_be_set() -> None:
    model = Net()
    optimizer = weighted(model, weighting=None, base="sgd")
    optimizer.preferences = [0.2, 0.8]
    optimizer.step(lambda: losses(model, X, Y))
    assert optimizer.weights is not None and optimizer.weights.tolist() == [[0.2, 0.8]]
    other = weighted(Net(), weighting=None)
    other.load_state_dict(optimizer.state_dict())
    assert other.preferences.tolist() == [0.2, 0.8]
    with pytest.raises(ValueError, match="preferences"):
        optimizer.preferences = [0.2, 0.9]


def test_a_weighting_belongs_to_one_optimizer() -> None:
    weighting, model = MoCo(), Net()
    first = weighted(model, weighting=weighting)
    first.step(lambda: losses(model, X, Y))
    weighted(Net(), weighting=weighting)
    with pytest.raises(RuntimeError, match="MoCo was given to another optimizer"):
        first.step(lambda: losses(model, X, Y))


# ---------------------------------------------------------------- what torch.optim takes, or refuses
@pytest.mark.parametrize(
    ("option", "advice"),
    [
        ("fused", "leave it out, because every step is fused"),
        ("foreach", "leave it out"),
        ("capturable", "leave it out, because no step needs it"),
        ("differentiable", "leave it out"),
        ("weight_decay", r"write base=mt2o_ext\.base\.AdamW\(weight_decay=\.\.\.\)"),
        ("momentum", r"write base=mt2o_ext\.base\.SGD\(momentum=\.\.\.\)"),
        ("num_task", "did you mean num_tasks="),
        ("zzz", "its arguments are params, num_tasks"),
    ],
)
@pytest.mark.parametrize("optimizer", [WeightedFused, MT2OFused, ConnectionStrengthFused])
def test_unknown_options_come_back_with_advice(optimizer: type, option: str, advice: str) -> None:
    """Whoever goes over from torch.optim keeps the options that he had there."""
    if optimizer is ConnectionStrengthFused and option == "zzz":
        advice = "its arguments are params, connections"
    with pytest.raises(TypeError, match=f"{optimizer.__name__} has no argument {option}=: .*{advice}"):
        optimizer(Net().parameters(), **{option: True})


def test_differentiable_is_refused() -> None:
    with pytest.raises((TypeError, ValueError), match="differentiable"):
        WeightedFused([{"params": list(Net().parameters()), "differentiable": True}], num_tasks=2)


def test_expanded_parameters_are_refused() -> None:
    """They cannot be written to, says torch."""
    with pytest.raises((RuntimeError, ValueError), match=r"expand|memory"):
        WeightedFused([nn.Parameter(torch.ones(1).expand(4))], num_tasks=1)


def test_weighted_backward_takes_named_parameters() -> None:
    model = Net()
    WeightedBackward(model.named_parameters(), num_tasks=2)(losses(model, X, Y))


def test_weighted_backward_of_nothing_says_so() -> None:
    with pytest.raises(ValueError, match="expected parameters, got none"):
        WeightedBackward([], num_tasks=2)


# ---------------------------------------------------------------- what people pass first
FIRST: dict[str, tuple[Callable[[Net], Any], str]] = {
    "a module": (lambda model: WeightedFused(model, num_tasks=2), r"got the module Net: pass its \.parameters\(\)"),
    "a module, by a name": (lambda model: MT2OFused(params=model, num_tasks=2), r"pass its \.parameters\(\)"),
    "a module, without optimizer": (lambda model: WeightedBackward(model, num_tasks=2), r"pass its \.parameters\(\)"),
    "one tensor": (
        lambda model: WeightedFused(model.trunk[0].weight, num_tasks=2),
        "got one tensor: put it into a list",
    ),
    "a number as text": (lambda model: weighted(model, num_tasks="2"), "expected num_tasks as an int, got '2'"),
    "a class": (lambda model: weighted(model, weighting=MoCo), r"got the class MoCo: pass an instance such as MoCo\("),
    "a dict": (lambda model: weighted(model).backward({"a": model(X).sum()}), r"pass list\(losses\.values\(\)\)"),
    "a generator": (lambda model: weighted(model).backward(loss for loss in [X]), "pass them as a list"),
    "numbers": (lambda model: weighted(model).backward([1.0, 2.0]), "leave no graph behind"),
}


@pytest.mark.parametrize("case", FIRST)
def test_what_people_pass_first_is_answered_with_what_to_pass(case: str) -> None:
    make, advice = FIRST[case]
    with pytest.raises(TypeError, match=advice):
        make(Net())
