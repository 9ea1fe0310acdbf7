"""Another weighting, one task more, other preferences in the middle of a run: moments stay, nothing is ignored."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from mt2o_ext import MT2OFused, WeightedBackward, WeightedFused
from mt2o_ext.transfer import DistanceDecrease
from support.optim.problems import assert_same
from support.optim.towers import WEIGHTINGS, Towers, batch_of, values, weighted

OTHER = [[0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.05, 0.15, 0.8], [0.3, 0.3, 0.4]]
FIRST = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.2, 0.3, 0.5]]


def train(optimizer: Any, model: Towers, first: int, last: int, tasks: int = 3) -> None:
    for seed in range(first, last):
        optimizer.backward(model.losses(batch_of(seed))[:tasks])
        optimizer.step()


# ---------------------------------------------------------------- another weighting, another task
def test_another_weighting_keeps_the_moments() -> None:
    """As two optimizers of one model of which the second takes the first one's state of parameters."""
    model = Towers()
    old = weighted(model, WEIGHTINGS["gram"](), ema=0.9)
    train(old, model, 0, 3)
    twin = Towers()
    twin.load_state_dict(model.state_dict())
    expected = weighted(twin, WEIGHTINGS["squares"](), ema=0.9)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        expected.state[q] = {key: value.clone() for key, value in old.state[p].items()}
    new = WeightedFused.branch_from(old, weighting=WEIGHTINGS["squares"](), ema=0.9)
    assert [group.get("task") for group in new.param_groups] == [None, 0, 1, 2]
    assert type(new.weighting).__name__ == "GradNorm"
    for optimizer, one in ((new, model), (expected, twin)):
        train(optimizer, one, 3, 6)
    assert_same(values(model), values(twin))
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert int(new.state[p]["step"]) == 6
        assert_same(new.state[p]["ema"], expected.state[q]["ema"])


def test_the_same_weighting_is_the_default_and_starts_anew() -> None:
    model = Towers()
    old = weighted(model, WEIGHTINGS["gram, previous weights"]())
    train(old, model, 0, 3)
    new = WeightedFused.branch_from(old)
    assert type(new.weighting) is type(old.weighting) and new.weighting is not old.weighting
    assert new.param_groups[0]["lr"] == old.param_groups[0]["lr"]
    train(new, model, 3, 5)


def test_one_task_more() -> None:
    model = Towers()
    groups = model.groups()
    old = WeightedFused(groups[:3], num_tasks=2, weighting="upgrad", lr=1e-2)
    train(old, model, 0, 3, tasks=2)
    moments = [old.state[p]["exp_avg"].clone() for p in model.trunk.parameters()]
    start = model.heads[2].weight.detach().clone()
    new = WeightedFused.branch_from(old, num_tasks=3)
    new.add_param_group(groups[3])
    assert_same([new.state[p]["exp_avg"] for p in model.trunk.parameters()], moments)
    train(new, model, 3, 5)
    assert int(new.state[model.trunk[0].weight]["step"]) == 5 and int(new.state[model.heads[2].weight]["step"]) == 2
    assert new.weights is not None and new.weights.shape == (1, 3) and not torch.equal(model.heads[2].weight, start)


def test_from_an_optimizer_of_torch_and_with_a_schedule() -> None:
    model = Towers()
    old = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(old, 1, 0.5)
    sum(model.losses(batch_of(0))).backward()  # type: ignore[attr-defined]
    old.step()
    schedule.step()
    new = WeightedFused.branch_from(old, num_tasks=3, weighting="upgrad")
    assert new.param_groups[0]["lr"] == 5e-3 and new.param_groups[0]["weight_decay"] == 0.1
    assert all(p.grad is None for p in model.parameters()), "they were for the other optimizer's step"
    train(new, model, 1, 2)
    assert int(new.state[model.trunk[0].weight]["step"]) == 2


def test_what_cannot_be_branched_from() -> None:
    model = Towers()
    options: dict[str, Any] = {"num_tasks": 3, "num_subproblems": 4, "preferences": FIRST, "transfer": None}
    with pytest.raises(ValueError, match="got 4 subproblems"):
        WeightedFused.branch_from(MT2OFused(model.parameters(), **options), num_tasks=3)
    vertices = MT2OFused(model.parameters(), num_tasks=3, front="vertices", points=1)
    with pytest.raises(ValueError, match="one of a front on vertices"):
        WeightedFused.branch_from(vertices, num_tasks=3)
    with pytest.raises(ValueError, match=r"beside the RMSprop, .* inside of it \(.optimizer\)"):
        WeightedFused.branch_from(torch.optim.RMSprop(model.parameters()), num_tasks=3)


def test_a_weighting_that_is_set_says_how_it_is_done() -> None:
    optimizer = WeightedFused(nn.Linear(2, 2).parameters(), num_tasks=2)
    with pytest.raises(AttributeError, match="branch_from"):
        optimizer.weighting = "upgrad"  # type: ignore[assignment]


# ---------------------------------------------------------------- other preferences
@pytest.mark.parametrize(
    "options", [{}, {"weighting": "upgrad", "scalarization": None}, {"weighting": "upgrad"}], ids=str
)
def test_rows_go_on_to_other_trade_offs(options: dict[str, Any]) -> None:
    """As an optimizer that was made with them and has loaded the first one's parameters and moments."""
    models = [Towers(), Towers()]
    given: dict[str, Any] = {"num_tasks": 3, "num_subproblems": 4, "transfer": None, "lr": 1e-2, "ema": 0.9, **options}
    ours = MT2OFused(models[0].parameters(), preferences=FIRST, **given)

    def steps(optimizer: MT2OFused, model: Towers, first: int, last: int) -> None:
        for step in range(first, last):
            optimizer.step(lambda: model.losses(batch_of(step)))  # noqa: B023

    steps(ours, models[0], 0, 2)
    other = MT2OFused(models[1].parameters(), preferences=OTHER, **given)
    models[1].load_state_dict(models[0].state_dict())
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        other.state[q] = {key: value.clone() for key, value in ours.state[p].items()}
    ours.preferences = OTHER  # type: ignore[assignment]
    assert ours.preferences.tolist() == OTHER
    state = copy.deepcopy(ours.state_dict())
    steps(ours, models[0], 2, 4)
    steps(other, models[1], 2, 4)
    for k in range(4):
        with ours.subproblem(k), other.subproblem(k):
            torch.testing.assert_close(values(models[0]), values(models[1]), rtol=1e-6, atol=1e-7)
    third = Towers()
    resumed = MT2OFused(third.parameters(), preferences=FIRST, **given)
    resumed.load_state_dict(state)  # which brings them
    assert resumed.preferences.tolist() == OTHER
    steps(resumed, third, 2, 4)
    for k in range(4):
        with ours.subproblem(k), resumed.subproblem(k):
            assert_same(values(models[0]), values(third))


def test_a_transfer_rule_that_learns_begins_anew() -> None:
    model = Towers()
    optimizer = MT2OFused(
        model.parameters(), num_tasks=3, num_subproblems=4, preferences=FIRST, transfer=DistanceDecrease(), lr=1e-2
    )
    for step in range(3):
        rows = iter(range(9))
        optimizer.step(lambda: model.losses(batch_of(10 * step + next(rows))))  # noqa: B023
    optimizer.preferences = torch.tensor(OTHER)  # type: ignore[assignment]
    fresh = DistanceDecrease()
    fresh.bind(optimizer.preferences)
    assert optimizer._blend.rule.state_dict().keys() == fresh.state_dict().keys()
    optimizer.step(lambda: model.losses(batch_of(50 + next(rows))))


def test_a_front_on_vertices_shows_other_points() -> None:
    model = Towers()
    optimizer = MT2OFused(model.parameters(), num_tasks=3, num_subproblems=4, front="vertices", points=1, lr=0.1)
    train(optimizer, model, 0, 3)
    optimizer.preferences = OTHER  # type: ignore[assignment]
    with optimizer.at(OTHER[1]):
        expected = values(model)
    with optimizer.subproblem(1):
        assert_same(values(model), expected)


def test_statistics_of_the_old_points_are_dropped() -> None:
    model = nn.Sequential(nn.Linear(7, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = MT2OFused(
        model.parameters(), num_tasks=2, num_subproblems=3, front="vertices", points=1, buffers=model.buffers(), lr=0.1
    )
    for seed in range(3):
        optimizer.backward(list(model(batch_of(seed)).square().mean(0)))
        optimizer.step()
    optimizer.update_buffers(lambda: model(batch_of(9)), ema=False)
    assert None not in optimizer._model_buffers.evaluated["theta"]
    optimizer.preferences = [[0.7, 0.3], [0.6, 0.4], [0.2, 0.8]]  # type: ignore[assignment]
    assert optimizer._model_buffers.evaluated["theta"] == [None] * 3


@pytest.mark.parametrize(
    "bad", [[[0.5, 0.5, 0.0]] * 3, [[0.5, 0.6, 0.0]] * 4, [0.5, 0.5, 0.0], [[0.5, 0.5]] * 4], ids=str
)
def test_bad_preferences_change_nothing(bad: Any) -> None:
    model = Towers()
    optimizer = MT2OFused(model.parameters(), num_tasks=3, num_subproblems=4, preferences=FIRST, transfer=None)
    with pytest.raises(ValueError, match="expected"):
        optimizer.preferences = bad
    assert optimizer.preferences.tolist() == FIRST


def test_weighted_backward() -> None:
    """Preferences that are set are used by the next call, as those that were given at first."""
    models = [Towers(), Towers()]
    ours = WeightedBackward(models[0].groups(), num_tasks=3)
    other = WeightedBackward(models[1].groups(), num_tasks=3, preferences=[0.7, 0.2, 0.1])
    ours.preferences = [0.7, 0.2, 0.1]  # type: ignore[assignment]
    assert ours.preferences.tolist() == [0.7, 0.2, 0.1]
    assert torch.equal(ours(models[0].losses(batch_of(0))), other(models[1].losses(batch_of(0))))
    with pytest.raises(ValueError, match="expected"):
        ours.preferences = [0.7, 0.2]  # type: ignore[assignment]
