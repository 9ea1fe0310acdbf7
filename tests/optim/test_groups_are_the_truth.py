"""What is done to the lists in ``optimizer.param_groups`` counts at the next step, as with torch.optim."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from mt2o_ext import WeightedFused
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
from support.optim.towers import Towers, batch_of, values, weighted

Optimizer = torch.optim.Optimizer


def remove(optimizer: Optimizer, p: list[nn.Parameter]) -> None:
    del optimizer.param_groups[0]["params"][0]
    optimizer.state.pop(p[0], None)  # as torch wants it: its state_dict fails with a state of nobody


def remove_and_keep(optimizer: Optimizer, p: list[nn.Parameter]) -> None:
    optimizer.param_groups[0]["params"] = p[1:3]


def put_in(optimizer: Optimizer, p: list[nn.Parameter]) -> None:
    optimizer.param_groups[0]["params"].append(p[3])


def replace(optimizer: Optimizer, p: list[nn.Parameter]) -> None:
    optimizer.state.pop(p[1])
    optimizer.param_groups[0]["params"][1] = p[3]


def replace_with_state(optimizer: Optimizer, p: list[nn.Parameter]) -> None:
    """As splatting codes do it: the new parameter takes the state of the old one over."""
    optimizer.state[p[3]] = optimizer.state.pop(p[1])
    optimizer.param_groups[0]["params"][1] = p[3]


def append(optimizer: Optimizer, p: list[nn.Parameter]) -> None:
    optimizer.param_groups.append({**optimizer.param_groups[0], "params": [p[3]], "lr": 0.03})


def pop(optimizer: Optimizer, p: list[nn.Parameter]) -> None:
    optimizer.add_param_group({"params": [p[3]], "lr": 0.5})
    optimizer.param_groups.pop()


def move(optimizer: Optimizer, p: list[nn.Parameter]) -> None:
    """A parameter goes on in a group of its own, with its moments."""
    first = optimizer.param_groups[0]
    first["params"].pop(2)
    optimizer.add_param_group({"params": [p[2]], "lr": 0.03})


@pytest.mark.parametrize("base", ["momentum", "adamw", "dampening", "lion"])
@pytest.mark.parametrize(
    "change",
    [remove, remove_and_keep, put_in, replace, replace_with_state, append, pop, move],
    ids=lambda f: f.__name__,
)
def test_as_in_torch(change: Callable[..., None], base: str, twins: dict[str, Twin]) -> None:
    ours, theirs = parameters(20, 7, 3, 7), parameters(20, 7, 3, 7)
    made = [twins[base].ours(ours[:3]), twins[base].torch(theirs[:3])]
    for p, optimizer in zip((ours, theirs), made, strict=True):
        for step in range(5):
            if step == 2:
                change(optimizer, p)
            set_gradients(p, step)
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    mine = made[0].state_dict()
    assert sum(len(group["params"]) for group in mine["param_groups"]) >= len(mine["state"])
    fresh = copy.deepcopy(made[0])
    fresh.load_state_dict(mine)
    assert_same(fresh.state_dict(), mine)


def test_who_comes_back_goes_on_with_its_state(twins: dict[str, Twin]) -> None:
    ours, theirs = parameters(20, 7), parameters(20, 7)
    for p, optimizer in ((ours, twins["adamw"].ours(ours)), (theirs, twins["adamw"].torch(theirs))):
        for step in range(6):
            optimizer.param_groups[0]["params"] = p if step not in (2, 3) else p[:1]
            set_gradients(p, step)
            optimizer.step()
        assert optimizer.state[p[1]]["step"] == 4
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_who_leaves_keeps_nothing_of_the_buffers(twins: dict[str, Twin]) -> None:
    p = parameters(20, 7)
    optimizer = twins["adamw"].ours(p)
    for step in range(2):
        set_gradients(p, step)
        optimizer.step()
        optimizer.param_groups[0]["params"] = p[:1]
    optimizer.step()
    for tensor in (p[1].data, *optimizer.state[p[1]].values()):
        assert tensor.untyped_storage().nbytes() == tensor.numel() * 4
    assert set(optimizer.state_dict()["state"]) == {0}


def test_rows_of_subproblems_leave_and_come_back() -> None:
    model = make_model()
    optimizer = several(model, lr=0.1, ema=0.9)
    train(optimizer, model, Batches(), 2)
    *others, last = model.parameters()
    before = rows(optimizer, model)
    optimizer.param_groups[0]["params"] = others
    train(optimizer, model, Batches(1), 1)
    for row, old in zip(rows(optimizer, model), before, strict=True):
        assert_same(row[-1], before[0][-1])  # no row of its own now: as the model shows it
        assert not torch.equal(row[0], old[0])
    optimizer.param_groups[0]["params"] = [*others, last]
    optimizer.param_groups[0]["lr"] = 0.0
    train(optimizer, model, Batches(2), 1)
    assert_same([row[-1] for row in rows(optimizer, model)], [old[-1] for old in before])


@pytest.mark.filterwarnings("ignore:the state of the weighting starts anew")
@pytest.mark.parametrize("weighting", ["UPGrad", "MoCo", None])
@pytest.mark.parametrize("collect", ["sequential", "batched"])
def test_weighted_optimizers_see_it_in_backward(weighting: str | None, collect: str) -> None:
    """With a graph that is alive when it is seen."""
    model = Towers()
    optimizer = weighted(model, weighting, collect=collect)
    optimizer.step(lambda: model.losses(batch_of(0)))
    [gone, new] = [model.trunk[0].weight, nn.Parameter(torch.zeros(6))]
    del optimizer.param_groups[0]["params"][0]
    optimizer.param_groups[1]["params"].append(new)
    before = values(model)
    optimizer.backward([loss + new.sum() for loss in model.losses(batch_of(1))])
    optimizer.step()
    assert_same(gone.detach(), before[0])
    assert (new != 0).all()
    assert all(not torch.equal(p, old) for p, old in zip(list(model.parameters())[1:], before[1:], strict=True))


def test_what_a_weighting_remembers_of_each_element_starts_anew() -> None:
    model = Towers()
    optimizer = weighted(model, "MoCo")
    optimizer.step(lambda: model.losses(batch_of(0)))
    with pytest.warns(UserWarning, match="MoCo remembers each element"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(6))]})
    optimizer.step(lambda: model.losses(batch_of(1)))


def test_a_group_that_becomes_a_head() -> None:
    model, other = Towers(), Towers()
    optimizer, expected = weighted(model, "UPGrad", heads=False), weighted(other, "UPGrad")
    trunk, heads = model.groups()[0], model.groups()[1:]
    optimizer.param_groups[0]["params"] = trunk["params"]
    for head in heads:
        optimizer.param_groups.append(head)
    for one, own in ((optimizer, model), (expected, other)):
        one.step(lambda: own.losses(batch_of(0)))  # noqa: B023
    assert_same(values(model), values(other))


def test_connection_strength() -> None:
    model = network()
    optimizer, batches = optimizer_of(model, base=SGD()), PriorityBatches()
    optimizer.step(batches.loss(model))
    bias = model.trunk[7].bias
    optimizer.param_groups[0]["params"] = [p for p in model.parameters() if p is not bias]
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step(batches.loss(model))
    same = [torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True)]
    of_names = dict(zip([name for name, _ in model.named_parameters()], same, strict=True))
    assert of_names["trunk.7.bias"] and not of_names["trunk.7.weight"] and not of_names["trunk.0.weight"]


FAULTS: dict[str, tuple[Callable[[Any, list[nn.Parameter]], object], type[Exception], str]] = {
    "twice": (lambda o, p: o.param_groups[0]["params"].append(p[0]), ValueError, "once"),
    "in two groups": (lambda o, p: o.param_groups.append({"params": [p[0]]}), ValueError, "once"),
    "no tensor": (lambda o, p: o.param_groups[0]["params"].append("w"), TypeError, "expected tensors"),
    "no dict": (lambda o, p: o.param_groups.append(p), TypeError, "as a dict"),
    "no params": (lambda o, p: o.param_groups.append({"lr": 1.0}), TypeError, '"params"'),
    "meta": (
        lambda o, p: o.param_groups[0]["params"].append(nn.Parameter(torch.zeros(2, device="meta"))),
        ValueError,
        "one device",
    ),
    "shared memory": (lambda o, p: o.param_groups[0]["params"].append(p[0][:3]), ValueError, "share memory"),
    "negative lr": (
        lambda o, p: o.param_groups.append({"params": [p[2]], "lr": -1.0}),
        ValueError,
        "expected lr finite",
    ),
    "complex": (
        lambda o, p: o.param_groups[0]["params"].append(nn.Parameter(torch.zeros(2, dtype=torch.cfloat))),
        TypeError,
        "complex64",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_is_refused_with_nothing_changed(fault: str) -> None:
    p = parameters(20, 7, 3)
    optimizer = WeightedFused(p[:2], num_tasks=1)
    set_gradients(p, 0)
    optimizer.step()
    before = snapshot(optimizer)
    groups = [{**group, "params": list(group["params"])} for group in optimizer.param_groups]
    change, error, text = FAULTS[fault]
    change(optimizer, p)
    for call in (optimizer.step, optimizer.state_dict):
        with pytest.raises(error, match=text):
            call()
    optimizer.param_groups[:] = groups
    assert_same(snapshot(optimizer), before)
    optimizer.step()
