"""Subproblems that go on from one model, or from a front on vertices."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from mt2o_ext import MT2OFused, SubproblemBank, WeightedFused
from mt2o_ext.base import SGD, Lion
from support.optim.problems import Batches, assert_same, make_model, rows, single, task_losses

K = 4
EQUAL = [[0.5, 0.5]] * K

TRUNKS: dict[str, Any] = {
    "torch AdamW": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1),
    "torch SGD": lambda model: torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9),
    "torch amsgrad": lambda model: torch.optim.Adam(model.parameters(), lr=1e-2, amsgrad=True),
    "MT2OFused": lambda model: single(model.parameters(), ema=0.9),
    "WeightedFused": lambda model: WeightedFused(model.parameters(), num_tasks=1, lr=1e-2, base=SGD(momentum=0.9)),
    "Lion": lambda model: single(model.parameters(), base=Lion(), lr=1e-3),
}


def train_one(model: nn.Module, optimizer: torch.optim.Optimizer, batches: Batches, steps: int) -> None:
    for _ in range(steps):
        x, y = next(batches)
        optimizer.zero_grad()
        task_losses(model(x), y).mean().backward()
        optimizer.step()


@pytest.mark.parametrize("front", ["rows", "vertices"])
@pytest.mark.parametrize("name", TRUNKS)
def test_each_goes_on_as_the_one_model_would(name: str, front: str) -> None:
    """With equal preferences and the same mini-batches there is no difference, moments and counts included."""
    model = make_model(torch.float64)
    trunk = TRUNKS[name](model)
    train_one(model, trunk, Batches(dtype=torch.float64), 5)
    alone = copy.deepcopy((model, trunk))
    options = {"warm_up": 9} if front == "vertices" else {"transfer": None}
    optimizer = MT2OFused.branch_from(trunk, num_tasks=2, num_subproblems=K, preferences=EQUAL, front=front, **options)
    assert optimizer.param_groups[0]["lr"] == trunk.param_groups[0]["lr"]
    batches, same = Batches(3, torch.float64), Batches(3, torch.float64)
    for _ in range(4):
        x, y = next(batches)
        for _ in optimizer.subproblems():
            optimizer.backward(task_losses(model(x), y))
        optimizer.step()
    train_one(*alone, same, 4)
    expected = [p.detach() for p in alone[0].parameters()]
    for row in rows(optimizer, model):
        torch.testing.assert_close(row, expected, rtol=1e-9, atol=1e-12)


def test_the_running_average_goes_on(front: str) -> None:
    model = make_model()
    trunk = single(model.parameters(), ema=0.9)
    train_one(model, trunk, Batches(), 5)
    averages = [trunk.state[p]["ema"].clone() for p in model.parameters()]
    optimizer = MT2OFused.branch_from(trunk, num_tasks=2, num_subproblems=K, ema=0.9, front=front)
    trained = K if front == "rows" else 2
    for p, average in zip(model.parameters(), averages, strict=True):
        assert_same(optimizer.state[p]["ema"].clone(), average.expand(trained, *p.shape).clone())


@pytest.mark.parametrize("way", ["at", "subproblem", "loop"])
def test_inside_of_a_context_nothing_branches(way: str) -> None:
    """At its end the old optimizer would put its own parameters back."""
    model = make_model()
    front = MT2OFused(model.parameters(), num_tasks=2)
    before = copy.deepcopy(front.state_dict())
    contexts = {"at": lambda: front.at([0.5, 0.5]), "subproblem": lambda: front.subproblem(1)}
    if way == "loop":
        loop = front.subproblems()
        next(loop)
        with pytest.raises(RuntimeError, match="outside of its at"):
            MT2OFused.branch_from(front, num_tasks=2)
        loop.close()
    else:
        with contexts[way](), pytest.raises(RuntimeError, match="outside of its at"):
            MT2OFused.branch_from(front, num_tasks=2)
    assert_same(front.state_dict(), before)
    MT2OFused.branch_from(front, num_tasks=2)


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_points_of_a_front_are_set_free(ema: float | None, dtype: torch.dtype) -> None:
    model = make_model(dtype)
    front = MT2OFused(model.parameters(), num_tasks=2, num_subproblems=5, front="vertices", points=1, lr=1e-2, ema=ema)
    for _ in range(5):
        x, y = next(Batches(dtype=dtype))
        front.backward(task_losses(model(x), y))
        front.step()
    expected = []
    for k in range(5):
        with front.subproblem(k, ema=ema is not None):
            expected.append([p.detach().clone() for p in model.parameters()])
    optimizer = MT2OFused.branch_from(front, num_tasks=2, num_subproblems=5, transfer="spectral", ema=0.5)
    torch.testing.assert_close(rows(optimizer, model), expected)
    for p in model.parameters():
        assert "exp_avg" not in optimizer.state[p] or not optimizer.state[p]["exp_avg"].any()
        assert_same(optimizer.state[p]["ema"].clone(), optimizer.state[p]["subproblems"].clone())
    for _ in optimizer.subproblems():
        x, y = next(Batches(dtype=dtype))
        optimizer.backward(task_losses(model(x), y))
    optimizer.step()
    assert rows(optimizer, model)[0][0].isfinite().all()


def test_options_given_count_more_than_those_of_the_groups() -> None:
    model = make_model()
    trunk = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    scheduler = torch.optim.lr_scheduler.StepLR(trunk, 1)
    train_one(model, trunk, Batches(), 2)
    scheduler.step()
    optimizer = MT2OFused.branch_from(trunk, num_tasks=2, num_subproblems=K, lr=0.5, base="sgd")
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert "fused" not in optimizer.param_groups[0]
    kept = MT2OFused.branch_from(trunk, num_tasks=2, num_subproblems=K)
    assert kept.param_groups[0]["lr"] == 1e-3 and kept.param_groups[0]["initial_lr"] == 1e-2


def test_what_cannot_be_branched_from() -> None:
    model = make_model()
    several = MT2OFused(model.parameters(), num_tasks=2, num_subproblems=K, front="rows")
    with pytest.raises(ValueError, match="4 subproblems"):
        MT2OFused.branch_from(several, num_tasks=2)
    with pytest.raises(TypeError, match="optimizer"):
        MT2OFused.branch_from(model, num_tasks=2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="RMSprop"):
        MT2OFused.branch_from(torch.optim.RMSprop(model.parameters()), num_tasks=2)
    bank = SubproblemBank(model, K)
    with pytest.raises(ValueError, match="stacked=False"):
        MT2OFused.branch_from(torch.optim.SGD(bank.parameters()), num_tasks=2, num_subproblems=K, stacked=True)


@pytest.mark.parametrize("ema", [None, 0.9])
def test_vertices_go_on_as_vertices(ema: float | None) -> None:
    """Learning rate and points may change; the front, its moments and its averages stay."""
    model = make_model(torch.float64)
    options: dict[str, Any] = {"num_tasks": 2, "front": "vertices", "ema": ema}
    front = MT2OFused(model.parameters(), points=1, lr=1e-2, **options)
    options.pop("front")  # unless somebody asks for rows, vertices go on as what they are
    for x, y in (next(Batches(seed, torch.float64)) for seed in range(5)):
        front.backward(task_losses(model(x), y))
        front.step()
    kept = {name: {k: v.clone() for k, v in front.state[p].items()} for name, p in model.named_parameters()}
    assert any(not torch.equal(*state["vertices"]) for state in kept.values())
    optimizer = MT2OFused.branch_from(front, points=3, lr=0.1, **options)
    for name, p in model.named_parameters():
        assert_same({k: optimizer.state[p][k].clone() for k in kept[name]}, kept[name])
    averaged = MT2OFused.branch_from(optimizer, points=3, **{**options, "ema": 0.5})
    for name, p in model.named_parameters():
        expected = kept[name]["vertices" if ema is None else "ema"]
        assert_same(averaged.state[p]["ema"].clone(), expected)
    for given in ({}, {"front": "vertices"}):
        with pytest.raises(ValueError, match="expected num_tasks=2"):
            MT2OFused.branch_from(averaged, num_tasks=3, **given)


def test_heads_go_on_without_a_weighting() -> None:
    model = make_model()
    first, *others = model.parameters()
    trunk = WeightedFused([{"params": [first]}, {"params": others, "task": 0}], num_tasks=2, weighting="upgrad", lr=0.1)
    assert all("task" not in group for group in MT2OFused.branch_from(trunk, num_tasks=2).param_groups)
    kept = MT2OFused.branch_from(trunk, num_tasks=2, weighting="upgrad").param_groups
    assert [group.get("task") for group in kept] == [None, 0]


def test_a_rate_that_is_given_is_where_a_new_schedule_begins() -> None:
    model = make_model()
    trunk = torch.optim.SGD(model.parameters(), lr=1e-2)
    torch.optim.lr_scheduler.StepLR(trunk, 1)
    optimizer = MT2OFused.branch_from(trunk, num_tasks=2, lr=0.5)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_the_count_of_steps_starts_anew_with_the_moments() -> None:
    """Else the first moments of the new rule would be corrected as if they were those of many steps."""
    model = make_model(torch.float64)
    trunk = torch.optim.RMSprop(model.parameters(), lr=1e-2)
    train_one(model, trunk, Batches(dtype=torch.float64), 5)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = MT2OFused.branch_from(trunk, num_tasks=2, num_subproblems=K, transfer=None, base="adamw")
    for _ in optimizer.subproblems():
        x, y = next(Batches(3, torch.float64))
        optimizer.backward(task_losses(model(x), y))
    optimizer.step()
    for p, old in zip(model.parameters(), before, strict=True):  # Adam's first step is lr * sign(gradient)
        torch.testing.assert_close((p.detach() - old).abs(), torch.full_like(old, 1e-2), rtol=1e-3, atol=0)
