"""The user's parameters are the truth: what is replaced, moved, loaded, frozen or tied between steps is seen."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mt2o_ext.base import SGD
from support.optim.problems import (
    Batches,
    Single,
    Twin,
    assert_same,
    make_model,
    parameters,
    rows,
    set_gradients,
    several,
    train,
)


@pytest.mark.parametrize("base", ["adamw", "momentum"])
def test_replaced_data_is_what_gets_updated(base: str, twins: dict[str, Twin]) -> None:
    ours, theirs = parameters(20, 5), parameters(20, 5)
    optimizers = [twins[base].ours(ours), twins[base].torch(theirs)]
    stale = ours[0].data
    for step in range(4):
        for p, optimizer in zip((ours, theirs), optimizers, strict=True):
            if step == 2:
                p[0].data = torch.linspace(-1, 1, 20)
                p[1].data.mul_(2)
            set_gradients(p, step)
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert stale.data_ptr() == ours[0].data_ptr()  # a view into the buffer again


def test_the_same_memory_in_another_order_is_a_replacement(single: Single) -> None:
    p = nn.Parameter(torch.arange(9.0).reshape(3, 3))
    optimizer = single([p], base=SGD(), lr=1.0)
    p.data = p.data.T
    p.grad = torch.zeros(3, 3).index_fill_(0, torch.tensor([0]), 1.0)
    optimizer.step()
    assert_same(p.detach().contiguous(), torch.arange(9.0).reshape(3, 3).T - p.grad)


@pytest.mark.parametrize("num_subproblems", [1, 3])
@pytest.mark.parametrize(
    "path", [[torch.float32, torch.float64], [torch.float32, torch.bfloat16], [torch.bfloat16, torch.float32]], ids=str
)
def test_a_model_moved_to_another_dtype_keeps_rows_and_moments(
    num_subproblems: int, path: list[torch.dtype], front: str
) -> None:
    model = make_model(path[0])
    optimizer = several(model, num_subproblems=num_subproblems, ema=0.9, front=front)
    train(optimizer, model, Batches(dtype=path[0]), 3)
    before, moments = rows(optimizer, model), [optimizer.state[p]["exp_avg"].clone() for p in model.parameters()]
    model.to(path[1])
    train(optimizer, model, Batches(dtype=path[1]), 1)
    assert all(p.dtype == path[1] for p in model.parameters())
    for row, old_row in zip(rows(optimizer, model), before, strict=True):
        for p, old in zip(row, old_row, strict=True):
            assert 0 < (p.double() - old.double()).abs().max() < 0.05
    for p, old in zip(model.parameters(), moments, strict=True):
        state = optimizer.state[p]
        assert (state["step"] == 4).all()
        assert state["exp_avg"].dtype == (torch.float64 if path[1] == torch.float64 else torch.float32)
        torch.testing.assert_close(state["exp_avg"].double(), old.double(), rtol=0, atol=1.0)
        assert state["exp_avg"].abs().sum() > 0


def test_values_loaded_into_the_model_count() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = make_model(dtype)
        optimizer = several(model, base=SGD(), lr=0.0)
        train(optimizer, model, Batches(dtype=dtype), 1)
        new = make_model(dtype, seed=7)
        with optimizer.subproblem(1):
            model.load_state_dict(new.state_dict())
        model.load_state_dict(make_model(dtype, seed=8).state_dict())
        train(optimizer, model, Batches(dtype=dtype), 1)
        expected = [make_model(dtype, seed=8), new, make_model(dtype)]
        assert_same(rows(optimizer, model), [[p.detach() for p in one.parameters()] for one in expected])


def test_frozen_between_steps(front: str) -> None:
    model = make_model()
    optimizer = several(model, front=front)
    train(optimizer, model, Batches(), 2)
    frozen = next(model.parameters())
    frozen.requires_grad_(False)
    before = rows(optimizer, model)
    train(optimizer, model, Batches(1), 2)
    for row, old_row in zip(rows(optimizer, model), before, strict=True):
        assert_same(row[0], old_row[0])
        assert not torch.equal(row[1], old_row[1])
    assert (optimizer.state[frozen]["step"] == 2).all()


def test_tied_weights_are_one_parameter(single: Single) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    optimizer = single(model.parameters())
    model(torch.randn(3, 4)).square().sum().backward()
    optimizer.step()
    assert model[2].weight is model[0].weight
    assert len(optimizer.state) == 3
