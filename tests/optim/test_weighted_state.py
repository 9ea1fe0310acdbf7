"""The state of a weighting, of its random numbers and counters: resume, copies and skipped steps, bit for bit."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from mt2o_ext import WeightedFused
from mt2o_ext.base import Adam
from mt2o_ext.weighting import FAMO, CAGrad, GradVac, NashMTL, PCGrad, PerSegment
from support.optim.problems import assert_same
from support.optim.towers import WEIGHTINGS, Towers, batch_of, run, values, weighted


def snapshot(optimizer: WeightedFused, model: nn.Module) -> dict[str, Any]:
    return {
        "state": copy.deepcopy(optimizer.state_dict()),
        "values": values(model),
        "skipped": optimizer.skipped_steps,
    }


def make(name: str, dtype: torch.dtype, seed: int = 0) -> tuple[Towers, WeightedFused]:
    model = Towers(dtype=dtype, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    return model, weighted(model, WEIGHTINGS[name](), base=Adam(amsgrad=True), ema=0.9, generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_resume_is_bitwise_the_same_as_never_stopping(name: str, dtype: torch.dtype) -> None:
    model, optimizer = make(name, dtype)
    run(optimizer, model, range(7), dtype)
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "model": model.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other_model, other = make(name, dtype, seed=3)
    other_model.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    assert_same(snapshot(other, other_model), snapshot(optimizer, model))
    assert_same(run(other, other_model, range(7, 12), dtype), run(optimizer, model, range(7, 12), dtype))
    assert_same(snapshot(other, other_model), snapshot(optimizer, model))


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@pytest.mark.parametrize("name", ["gram, previous weights", "gram, random order", "rows, memory", "losses"])
def test_copies_go_on_alike_and_apart(name: str, how: str) -> None:
    model, optimizer = make(name, torch.float32)
    run(optimizer, model, range(4))
    if how == "deepcopy":
        other_model, other = copy.deepcopy((model, optimizer))
    else:
        other_model, other = pickle.loads(pickle.dumps((model, optimizer)))
    before = snapshot(other, other_model)
    run(optimizer, model, range(4, 7))
    assert_same(snapshot(other, other_model), before)
    run(other, other_model, range(4, 7))
    assert_same(snapshot(other, other_model), snapshot(optimizer, model))


def test_the_state_has_no_views() -> None:
    model, optimizer = make("rows, memory", torch.float32)
    run(optimizer, model, range(2))
    state = optimizer.state_dict()
    before = copy.deepcopy(state)
    run(optimizer, model, range(2, 4))
    assert_same(state, before)


def test_a_dict_that_does_not_fit_changes_nothing() -> None:
    others = {
        "another weighting": lambda: weighted(Towers(), CAGrad()),
        "another number of tasks": lambda: weighted(Towers(2), NashMTL()),
        "torch": lambda: torch.optim.AdamW(Towers().groups(), lr=1e-2),
    }
    for name, make_other in others.items():
        model = Towers()
        optimizer = weighted(model, NashMTL())
        run(optimizer, model, range(2))
        before = snapshot(optimizer, model)
        other = make_other()
        if isinstance(other, WeightedFused):
            tasks = Towers(len(other.param_groups) - 1)
            other_model = Towers(len(tasks.heads))
            other = weighted(other_model, type(other._weigher.weighting)())  # type: ignore[union-attr]
            run(other, other_model, range(1))
        else:
            for group in other.param_groups:
                for p in group["params"]:
                    p.grad = torch.ones_like(p)
            other.step()
        with pytest.raises(ValueError, match="expected"):
            optimizer.load_state_dict(other.state_dict())
        assert_same(snapshot(optimizer, model), before)
        assert name


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("where", ["loss", "trunk", "head"])
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_a_step_with_infinities_is_skipped_whole(name: str, where: str, value: float) -> None:
    model, optimizer = make(name, torch.float32)
    run(optimizer, model, range(4))
    before = snapshot(optimizer, model)

    def closure() -> list[torch.Tensor]:
        losses = model.losses(batch_of(4))
        if where == "loss":
            losses[1] = losses[1] + torch.tensor(value)
        handles.append(
            (model.trunk[2].weight if where == "trunk" else model.heads[1].bias).register_hook(
                lambda grad: grad if where == "loss" else grad.index_fill(0, torch.tensor([0]), value)
            )
        )
        return losses

    handles: list[Any] = []
    with pytest.warns(UserWarning, match="infinite or NaN"):
        optimizer.step(closure)
    for handle in handles:
        handle.remove()
    after = snapshot(optimizer, model)
    assert after["skipped"].tolist() == [1]
    for saved in (before, after):
        saved.pop("skipped")
        shared = saved["state"]["param_groups"][0]["weighted"]
        shared.pop("skipped")
        shared.pop("generator")  # goes on, so that all ranks agree
    assert_same(after, before)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(optimizer, model, range(5, 7))
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_one_infinite_loss_skips_the_step_of_heads_alone(value: float) -> None:
    """No gradient and no weight tells of it: nothing is weighted, and all gradients are finite."""
    model = Towers()
    heads = [{"params": head.parameters(), "task": task} for task, head in enumerate(model.heads)]
    optimizer = WeightedFused(heads, num_tasks=3, weighting=PCGrad(), lr=1e-2)
    before = values(model)
    with pytest.warns(UserWarning, match="infinite or NaN"):
        optimizer.step(lambda: [loss + (value if t == 1 else 0.0) for t, loss in enumerate(model.losses(batch_of(0)))])
    assert_same(values(model), before)
    assert optimizer.skipped_steps.tolist() == [1]
    optimizer.step(lambda: model.losses(batch_of(0)))  # the way is clear again
    assert all(not torch.equal(p, old) for p, old in zip(model.heads.parameters(), before[4:], strict=True))


def test_invalid_losses_skip_too() -> None:
    model = Towers()
    optimizer = weighted(model, FAMO(lower_bound=50.0))  # above all losses
    before = values(model)
    with pytest.warns(UserWarning, match="skipped"):
        run(optimizer, model, range(1))
    assert_same(values(model), before)
    assert optimizer.skipped_steps.tolist() == [1]


def test_seeds() -> None:
    def weights_of(**options: Any) -> list[torch.Tensor]:
        model = Towers()
        optimizer = WeightedFused(model.groups(), num_tasks=3, weighting=PCGrad(), **options)
        seen = []
        for seed in range(4):
            run(optimizer, model, range(seed, seed + 1))
            seen.append(optimizer.weights)
        return seen  # type: ignore[return-value]

    one, same, other = (weights_of(generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert_same(same, one)
    assert any(not torch.equal(a, b) for a, b in zip(one, other, strict=True))
    torch.manual_seed(5)
    first = weights_of()
    torch.manual_seed(5)
    assert_same(weights_of(), first)


def test_a_group_added_later_keeps_the_state_of_the_weighting() -> None:
    extra = nn.Parameter(torch.ones(3))
    model, optimizer = make("gram, previous weights", torch.float32)
    run(optimizer, model, range(3))
    before = optimizer.state_dict()["param_groups"][0]["weighted"]["weighting"]
    optimizer.add_param_group({"params": [extra]})
    assert_same(optimizer.state_dict()["param_groups"][0]["weighted"]["weighting"], before)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))], "task": 1})
    run(optimizer, model, range(3, 5))
    model = Towers()
    optimizer = weighted(model, PerSegment(GradVac()))
    run(optimizer, model, range(2))
    with pytest.warns(UserWarning, match="starts anew"):
        optimizer.add_param_group({"params": [extra]})
