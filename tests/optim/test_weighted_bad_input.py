"""Bad input to WeightedFused: a clear error, and nothing changed before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mt2o_ext import WeightedFused
from mt2o_ext.weighting import CAGrad, GradVac, MoDo, PerSegment, SDMGrad
from support.optim.bad_losses import LOSSES
from support.optim.problems import assert_same
from support.optim.towers import Towers, batch_of, run, values, weighted


def make(groups: Any = None, **options: Any) -> WeightedFused:
    groups = Towers().groups() if groups is None else groups
    return WeightedFused(groups, **{"num_tasks": 3, "weighting": CAGrad(), **options})


def head(task: Any) -> list[dict[str, Any]]:
    model = Towers()
    return [{"params": model.trunk.parameters()}, {"params": model.heads[0].parameters(), "task": task}]


CONSTRUCTION: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no task": (lambda: make(num_tasks=0), ValueError, "num_tasks >= 1"),
    "heads": (lambda: make(heads="own"), ValueError, "heads"),
    "collect": (lambda: make(collect="vmap"), ValueError, "collect"),
    "heads of each tensor": (
        lambda: make(weighting=PerSegment(GradVac()), heads="weighted"),
        ValueError,
        "one for each tensor",
    ),
    "class": (lambda: make(weighting=CAGrad), TypeError, "instance"),
    "name": (lambda: make(weighting="best"), ValueError, "name of a weighting"),
    "two batches": (lambda: make(weighting=MoDo()), NotImplementedError, "two mini-batches"),
    "two batches, too": (lambda: make(weighting=SDMGrad(two_batches=True)), NotImplementedError, "two mini-batches"),
    "generator": (lambda: make(generator=0), TypeError, "generator"),
    "process group": (lambda: make(process_group=True), RuntimeError, "init_process_group"),
    "kind of process group": (lambda: make(process_group=0), TypeError, "process_group as a ProcessGroup"),
    "preferences": (lambda: make(preferences=[0.5, 0.5]), ValueError, "one column for each task"),
    "preferences off the simplex": (lambda: make(preferences=[1.0, 1.0, 1.0]), ValueError, "sum to 1"),
    "task too large": (lambda: make(head(3)), ValueError, "task in 0 .. 2, got 3"),
    "negative task": (lambda: make(head(-1)), ValueError, "task in 0 .. 2"),
    "task of another type": (lambda: make(head("a")), TypeError, "number of a task"),
    "true task": (lambda: make(head(True)), TypeError, "number of a task"),
    "no preferences": (lambda: make(preferences=0.5), TypeError, "expected preferences as a list.*got float"),
    "word for show_grad": (lambda: make(show_grad="no"), TypeError, "expected show_grad as True or False, got 'no'"),
    "number for accumulate": (lambda: make(accumulate=4), TypeError, "expected accumulate as True or False, got 4"),
    "word for ema": (lambda: make(ema="0.9"), TypeError, "expected ema as a float"),
    "no closure": (lambda: make().step([]), TypeError, "expected closure as a function, got list"),
    "ema": (lambda: make(ema=1.0), ValueError, "expected ema < 1"),
    "base": (lambda: make(base="lamb"), ValueError, "expected base as"),
    "no parameter": (lambda: make([]), ValueError, "empty parameter list"),
}


@pytest.mark.parametrize("name", CONSTRUCTION)
def test_construction(name: str) -> None:
    function, error, text = CONSTRUCTION[name]
    with pytest.raises(error, match=text):
        function()


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str) -> None:
    function, error, text = LOSSES[name]
    two_outputs = torch.nn.Linear(7, 2)
    optimizer = WeightedFused(two_outputs.parameters(), num_tasks=2, weighting=CAGrad())
    before = [values(two_outputs), optimizer.state_dict()]
    with pytest.raises(error, match=text):
        optimizer.backward(function(two_outputs))
    if name == "nothing":  # a closure may say so that it has done backward itself
        error, text = RuntimeError, "needs gradients"
    with pytest.raises(error, match=text):
        optimizer.step(lambda: function(two_outputs))
    assert_same([values(two_outputs), optimizer.state_dict()], before)
    assert all(p.grad is None for p in two_outputs.parameters())


def test_a_group_that_does_not_fit_changes_nothing() -> None:
    model = Towers()
    optimizer = weighted(model, CAGrad())
    run(optimizer, model, range(2))
    before = [values(model), optimizer.state_dict()]
    extra = torch.nn.Parameter(torch.ones(2))
    for group in ({"params": [extra], "task": 5}, {"params": [model.trunk[0].weight], "task": 1}):
        with pytest.raises(ValueError, match=r"expected task in|more than one parameter group"):
            optimizer.add_param_group(group)
    assert_same([values(model), optimizer.state_dict()], before)
    optimizer.backward(model.losses(batch_of(3)))
    optimizer.step()
