"""What is done to ``optimizer.state`` counts at the next step, as with torch.optim."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mt2o_ext import MT2OFused
from mt2o_ext.base import SGD
from support.optim.priority_model import Batches as PriorityBatches
from support.optim.priority_model import network, optimizer_of
from support.optim.problems import (
    Batches,
    Twin,
    assert_same,
    make_model,
    parameters,
    rows,
    set_gradients,
    several,
    snapshot,
    train,
)
from support.optim.towers import Towers, run, values, weighted

Change = Callable[[torch.optim.Optimizer, list[nn.Parameter]], object]


def replace_state(optimizer: torch.optim.Optimizer, _: Any) -> None:
    optimizer.state = defaultdict(dict)


def of_one(optimizer: torch.optim.Optimizer, p: list[nn.Parameter]) -> None:
    optimizer.state[p[0]] = {}


def forget_one(optimizer: torch.optim.Optimizer, p: list[nn.Parameter]) -> None:
    del optimizer.state[p[0]]


def other_moment(optimizer: torch.optim.Optimizer, p: list[nn.Parameter]) -> None:
    state = optimizer.state[p[1]]
    key = "exp_avg" if "exp_avg" in state else "momentum_buffer"
    state[key] = torch.full_like(state[key], 0.5)


def in_place(optimizer: torch.optim.Optimizer, p: list[nn.Parameter]) -> None:
    for value in optimizer.state[p[1]].values():
        value.mul_(2)


def other_step(optimizer: torch.optim.Optimizer, p: list[nn.Parameter]) -> None:
    if "step" in optimizer.state[p[0]]:
        optimizer.state[p[0]]["step"] = torch.tensor(0.0)


def exchanged(optimizer: torch.optim.Optimizer, p: list[nn.Parameter]) -> None:
    """The tensors of one parameter under the other, as codes do that put a new parameter in the place of an old one."""
    optimizer.state[p[0]], optimizer.state[p[2]] = optimizer.state[p[2]], optimizer.state[p[0]]


CHANGES: list[Change] = [
    lambda optimizer, _: optimizer.state.clear(),
    replace_state,
    forget_one,
    of_one,
    other_moment,
    in_place,
    other_step,
    exchanged,
]
NAMES = ["clear", "defaultdict", "del", "{}", "other moment", "in place", "step = 0", "exchanged"]


@pytest.mark.parametrize("base", ["adamw", "amsgrad", "nesterov", "dampening", "lion"])
@pytest.mark.parametrize("change", CHANGES, ids=NAMES)
def test_as_in_torch(change: Change, base: str, twins: dict[str, Twin]) -> None:
    ours, theirs = parameters(20, 5, 20), parameters(20, 5, 20)
    optimizers = [twins[base].ours(ours), twins[base].torch(theirs)]
    for step in range(6):
        for p, optimizer in zip((ours, theirs), optimizers, strict=True):
            if step in (2, 3):
                change(optimizer, p)
            set_gradients(p, step)
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    mine, other = (optimizer.state_dict()["state"] for optimizer in optimizers)
    assert {i: set(state) for i, state in mine.items()} == {i: set(state) for i, state in other.items()}
    for i, state in other.items():
        torch.testing.assert_close(mine[i], state, rtol=1e-5, atol=1e-6)


def test_a_state_of_our_own_hand_is_taken_in_before_the_first_step(twins: dict[str, Twin]) -> None:
    ours, theirs = parameters(20), parameters(20)
    for p, optimizer in ((ours, twins["adamw"].ours(ours)), (theirs, twins["adamw"].torch(theirs))):
        warm = {"step": torch.tensor(7.0), "exp_avg": torch.ones(20), "exp_avg_sq": torch.full((20,), 2.0)}
        optimizer.state[p[0]] = warm
        set_gradients(p, 0)
        optimizer.step()
        assert optimizer.state[p[0]]["step"] == 8
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("change", CHANGES[:2], ids=NAMES[:2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_models_of_all_subproblems_stay(change: Change, dtype: torch.dtype, front: str) -> None:
    model, key = make_model(dtype), "subproblems" if front == "rows" else "vertices"
    optimizer = several(model, ema=0.5, lr=0.1, front=front)
    train(optimizer, model, Batches(dtype=dtype), 3)
    before = rows(optimizer, model)
    change(optimizer, list(model.parameters()))
    assert_same(rows(optimizer, model), before)
    saved = optimizer.state_dict()
    for i, p in enumerate(model.parameters()):
        assert set(saved["state"][i]) == {"step", "exp_avg", "exp_avg_sq", key, "ema"}
        assert not any(saved["state"][i][name].any() for name in ("step", "exp_avg", "exp_avg_sq"))
        assert_same(saved["state"][i]["ema"], saved["state"][i][key])  # begins anew where the rows are
        if front == "rows":
            assert_same([row[i] for row in before], list(saved["state"][i]["subproblems"].to(dtype)))
        assert p in optimizer.state
    fresh_model = make_model(dtype, seed=1)
    fresh = several(fresh_model, ema=0.5, lr=0.1, front=front)
    fresh.load_state_dict(saved)
    for one, own in ((optimizer, model), (fresh, fresh_model)):
        train(one, own, Batches(1, dtype=dtype), 2)
    for name in ("exp_avg", "step", "ema", key):
        for p, q in zip(model.parameters(), fresh_model.parameters(), strict=True):
            assert_same(optimizer.state[p][name], fresh.state[q][name])


def test_other_rows_of_the_subproblems_are_taken_in() -> None:
    model = make_model()
    optimizer = several(model, base=SGD(), lr=0.0)
    train(optimizer, model, Batches(), 1)
    p = next(model.parameters())
    new = torch.randn(3, *p.shape)
    optimizer.state[p]["subproblems"] = new
    train(optimizer, model, Batches(), 1)
    assert_same([row[0] for row in rows(optimizer, model)], list(new))
    assert_same(p.detach(), new[0])


def test_a_master_that_is_missing_begins_with_the_parameter(twins: dict[str, Twin]) -> None:
    [p] = parameters(20, dtype=torch.bfloat16)
    optimizer = twins["sgd"].ours([p], lr=0.0)
    set_gradients([p], 0)
    optimizer.step()
    optimizer.state[p]["master"].add_(1e-6)
    del optimizer.state[p]["master"]
    optimizer.step()
    assert_same(optimizer.state[p]["master"], p.detach().float())


@pytest.mark.parametrize("change", CHANGES[:2], ids=NAMES[:2])
def test_weighted_optimizers_start_anew(change: Change) -> None:
    model, other = Towers(), Towers()
    optimizer = weighted(model, "UPGrad")
    run(optimizer, model, range(3))
    change(optimizer, [])
    other.load_state_dict(model.state_dict())
    fresh = weighted(other, "UPGrad")
    for one, own in ((optimizer, model), (fresh, other)):
        run(one, own, range(3, 5))
        assert len(one.state_dict()["state"][0]) == 3
    assert_same(values(model), values(other))


def test_connection_strength_starts_anew() -> None:
    model = network()
    optimizer, batches = optimizer_of(model), PriorityBatches()
    optimizer.step(batches.loss(model))
    optimizer.state.clear()
    copied = copy.deepcopy(model)
    fresh = optimizer_of(copied)
    optimizer.step(batches.loss(model))
    fresh.step(batches.loss(copied))
    assert_same([p.detach() for p in model.parameters()], [p.detach() for p in copied.parameters()])


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (torch.zeros(3), ValueError),
        (torch.zeros(20, dtype=torch.complex64), TypeError),
        (torch.full((20,), torch.nan), ValueError),
        (torch.zeros(20, device="meta"), ValueError),
        ("text", TypeError),
    ],
    ids=["shape", "complex", "nan", "meta", "text"],
)
def test_what_does_not_fit_is_refused_with_nothing_changed(value: Any, error: type[Exception]) -> None:
    [p, q] = parameters(20, 5)
    optimizer = MT2OFused([p, q], num_tasks=1, num_subproblems=1)
    set_gradients([p, q], 0)
    optimizer.step()
    before = snapshot(optimizer)
    right = optimizer.state[p]["exp_avg"]
    optimizer.state[q]["exp_avg"] = torch.ones(5)
    optimizer.state[p]["exp_avg"] = value
    for call in (optimizer.step, optimizer.state_dict):
        with pytest.raises(error, match="`exp_avg` of a parameter of shape"):
            call()
    optimizer.state[p]["exp_avg"] = right
    optimizer.state[q]["exp_avg"] = optimizer.state_dict()["state"][1]["exp_avg"]
    after = snapshot(optimizer)
    assert_same(after["parameters"], before["parameters"])
    assert_same(after["state"]["state"][0], before["state"]["state"][0])
    assert_same(after["state"]["state"][1]["exp_avg"], torch.ones(5))  # what fits counts


@pytest.mark.parametrize("state", [None, []], ids=str)
def test_a_state_that_is_no_dict_is_refused(state: Any, twins: dict[str, Twin]) -> None:
    p = parameters(20)
    optimizer = twins["adamw"].ours(p)
    set_gradients(p, 0)
    optimizer.step()
    optimizer.state[p[0]] = state
    with pytest.raises(TypeError, match=r"optimizer.state\[p\] as a dict"):
        optimizer.step()
    optimizer.state = state
    with pytest.raises(TypeError, match=r"optimizer\.state as a dict"):
        optimizer.step()


def test_entries_of_others_stay(twins: dict[str, Twin]) -> None:
    [p] = parameters(20)
    optimizer = twins["adamw"].ours([p])
    optimizer.state[p]["mine"] = "text"
    set_gradients([p], 0)
    for _ in range(3):
        optimizer.step()
    assert optimizer.state[p]["mine"] == "text" and optimizer.state[p]["step"] == 3


def test_nothing_is_copied_where_nothing_was_changed(twins: dict[str, Twin]) -> None:
    p = parameters(20, 5)
    optimizer = twins["adamw"].ours(p)
    for seed in range(2):
        set_gradients(p, seed)
        optimizer.step()
    shown: list[Tensor] = [value for state in optimizer.state.values() for value in state.values()]
    optimizer.step()
    optimizer.state_dict()
    again = [value for state in optimizer.state.values() for value in state.values()]
    assert len(shown) == 6 and all(one is other for one, other in zip(again, shown, strict=True))
