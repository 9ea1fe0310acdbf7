"""torch.distributed.checkpoint's state-dict API carries all state of every optimizer, also before the first step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from mt2o_ext import MT2OFused, WeightedFused
from mt2o_ext.base import SGD, AdamW
from mt2o_ext.transfer import DistanceDecrease
from mt2o_ext.weighting import FAMO, MoCo
from support.optim import priority_model
from support.optim.problems import Batches, assert_same, make_model, seeded, task_losses
from support.optim.towers import Towers, batch_of, weighted

Made = tuple[nn.Module, Any, Callable[[int], object]]  # model, optimizer, one step on the batch of a seed


def weighted_case(weighting: Any) -> Made:
    model = Towers()
    optimizer = weighted(model, weighting(), ema=0.9)
    return model, optimizer, lambda seed: optimizer.step(lambda: model.losses(batch_of(seed)))


def mt2o_case(**options: Any) -> Made:
    model = make_model(norm=True)
    optimizer = MT2OFused(model.parameters(), num_tasks=2, ema=0.9, buffers=model.buffers(), **seeded(**options))

    def step(seed: int) -> object:
        batches = Batches(seed)
        return optimizer.step(lambda: (lambda x, y: task_losses(model(x), y))(*next(batches)))

    return model, optimizer, step


def connection_case() -> Made:
    model = priority_model.network()
    optimizer = priority_model.optimizer_of(model, shuffle=True, schedule=lambda progress: 0.5)
    return model, optimizer, lambda seed: optimizer.step(priority_model.Batches(seed).loss(model))


def single_case(kind: Any, base: Any) -> Made:
    model = Towers(1)
    given = {"num_subproblems": 1} if kind is MT2OFused else {}
    optimizer = kind(model.parameters(), num_tasks=1, base=base, lr=1e-2, **given)
    return model, optimizer, lambda seed: optimizer.step(lambda: model.losses(batch_of(seed)))


CASES: dict[str, Callable[[], Made]] = {
    "weighted, memory": lambda: weighted_case(MoCo),
    "weighted, losses": lambda: weighted_case(FAMO),
    "mt2o": lambda: mt2o_case(front="rows"),
    "mt2o, vertices": lambda: mt2o_case(front="vertices"),
    "mt2o, vertices, weighting": lambda: mt2o_case(front="vertices", weighting="PCGrad", history=3),
    "mt2o, rule with a state": lambda: mt2o_case(transfer=DistanceDecrease(every=2), weighting="PCGrad"),
    "connection strength": connection_case,
    "one task": lambda: single_case(WeightedFused, AdamW()),
    "one task, momentum": lambda: single_case(WeightedFused, SGD(momentum=0.9)),
    "one task, no state": lambda: single_case(WeightedFused, SGD()),
    "one subproblem": lambda: single_case(MT2OFused, AdamW()),
}


@pytest.mark.parametrize("case", CASES)
def test_round_trip_goes_on_bit_for_bit(case: str) -> None:
    model, optimizer, step = CASES[case]()
    for seed in range(4):
        step(seed)
    saved = get_optimizer_state_dict(model, optimizer)
    other_model, other, other_step = CASES[case]()
    other_model.load_state_dict(model.state_dict())
    set_optimizer_state_dict(other_model, other, saved)
    assert_same(other.state_dict(), optimizer.state_dict())
    for seed in range(4, 7):
        step(seed)
        other_step(seed)
    assert_same(other.state_dict(), optimizer.state_dict())
    assert_same(dict(other_model.named_parameters()), dict(model.named_parameters()))


@pytest.mark.parametrize("case", CASES)
def test_before_the_first_step_nothing_is_trained_and_all_state_is_there(case: str) -> None:
    model, optimizer, step = CASES[case]()
    fresh_model, _, fresh_step = CASES[case]()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    saved = get_optimizer_state_dict(model, optimizer)
    assert_same(dict(model.state_dict()), before)
    assert all(group["lr"] > 0 for group in optimizer.param_groups)
    assert all(p.grad is None for p in model.parameters())
    set_optimizer_state_dict(model, optimizer, saved)
    step(0)
    fresh_step(0)
    assert_same(dict(model.named_parameters()), dict(fresh_model.named_parameters()))  # as if nobody had asked
    trained = get_optimizer_state_dict(model, optimizer)
    for name, state in trained["state"].items():
        assert saved["state"][name].keys() == state.keys()


def test_a_step_without_gradients_is_still_an_error_where_it_would_train() -> None:
    _, optimizer, _ = weighted_case(MoCo)
    with pytest.raises(RuntimeError, match="step\\(\\) needs gradients"):
        optimizer.step()
    assert optimizer.state_dict()["state"] == {}
