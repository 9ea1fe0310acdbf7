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


def test_the_running_average_goes_on() -> None:
    model = make_model()
    trunk = single(model.parameters(), ema=0.9)
    train_one(model, trunk, Batches(), 5)
    averages = [trunk.state[p]["ema"].clone() for p in model.parameters()]
    optimizer = MT2OFused.branch_from(trunk, num_tasks=2, num_subproblems=K, ema=0.9)
    for p, average in zip(model.parameters(), averages, strict=True):
        assert_same(optimizer.state[p]["ema"].clone(), average.expand(K, *p.shape).clone())


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
    several = MT2OFused(model.parameters(), num_tasks=2, num_subproblems=K)
    with pytest.raises(ValueError, match="4 subproblems"):
        MT2OFused.branch_from(several, num_tasks=2)
    with pytest.raises(TypeError, match="optimizer"):
        MT2OFused.branch_from(model, num_tasks=2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="RMSprop"):
        MT2OFused.branch_from(torch.optim.RMSprop(model.parameters()), num_tasks=2)
    bank = SubproblemBank(model, K)
    with pytest.raises(ValueError, match="stacked=False"):
        MT2OFused.branch_from(torch.optim.SGD(bank.parameters()), num_tasks=2, num_subproblems=K, stacked=True)
