"""A step without some tasks: the others do as if there were none, and the state of these stays as it is."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mt2o_ext.weighting import DWA, FAMO, GLS, LinearWeighting, MoCo, NashMTL, PCGrad, UncertaintyWeighting
from support.weighting.problems import Steps, assert_close, context, every_weighting, steps

T = 5  # unlike K, S, K S and the number of columns, so that a dimension of T counts tasks
ABSENT = [[1], [4], [0, 3]]


def rows_of(state: dict[str, Tensor], tasks: list[int]) -> dict[str, Tensor]:
    """The part of a state that belongs to these tasks."""
    found = {}
    for name, table in state.items():
        for axis in [axis for axis, size in enumerate(table.shape) if size == T]:
            part = table.index_select(axis, torch.tensor(tasks))
            found[f"{name} {axis}"] = part.clone()
    return found


def uneven(**options: int) -> Steps:
    preferences = torch.tensor([[0.1, 0.3, 0.2, 0.25, 0.15], [0.2, 0.2, 0.3, 0.1, 0.2]], dtype=torch.float64)
    return replace(steps(num_tasks=T, **options), preferences=preferences)


@every_weighting()
@pytest.mark.parametrize("absent", ABSENT, ids=str)
def test_the_others_do_as_if_there_were_none(make, absent):
    """The directions are those of an optimizer that has only the others."""
    some, others = uneven().without(absent)
    weighting = make()
    directions = some.run(weighting)
    for one, other in zip(directions, others.run(make()), strict=True):
        assert other.isfinite().all()
        assert_close(one, other, rtol=1e-9, atol=1e-12)


@every_weighting()
@pytest.mark.parametrize("absent", ABSENT, ids=str)
def test_the_state_of_an_absent_task_stays_as_it_is(make, absent):
    """Bit for bit, after steps in which it was there, and it goes on from there."""
    plain = uneven()
    some, _ = plain.without(absent)
    weighting = make()
    plain.run(weighting, end=2)
    before = rows_of(weighting.state_dict(), absent)
    some.run(weighting, begin=2, end=3)
    after = rows_of(weighting.state_dict(), absent)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], table) for name, table in before.items())
    assert all(direction.isfinite().all() for direction in plain.run(weighting, begin=3))
    state = weighting.state_dict()
    assert all(table.isfinite().all() for table in state.values())


@every_weighting()
def test_absent_tasks_have_no_weight(make):
    some, _ = uneven(count=1).without([1])
    weighting = make()
    weighting.bind(*some.shape, "cpu")
    seen = []
    plain = weighting.weights
    weighting.weights = lambda context: seen.append(plain(context)) or seen[-1]
    some.step(weighting, 0)
    (weights,) = [each for each in seen if each.shape[-1] == T]
    assert not weights[..., 1].any() and weights.isfinite().all()


@every_weighting()
def test_a_task_that_comes_late_is_new(make):
    """Nothing was counted for it before, so its own averages and corrections begin then."""
    some, _ = uneven(count=8).without([2])
    weighting = make()
    some.run(weighting, end=6)
    for direction in uneven(count=8).run(weighting, begin=6):
        assert direction.isfinite().all()


def test_learning_of_a_late_task_is_not_hurried():
    """Adam's correction of a moment counts the steps of the task, not those of the others."""
    losses = torch.tensor([[2.0, 0.5]], dtype=torch.float64)
    weighting = UncertaintyWeighting(lr=0.1)
    weighting.bind(1, 2, 1, "cpu")
    plain = replace(context(torch.eye(2, dtype=torch.float64)), losses=losses)
    for _ in range(50):
        weighting.weights(replace(plain, present=torch.tensor([0])))
    weighting.weights(plain)
    assert_close(weighting.state_dict()["log_variance"][:, 1], torch.tensor([-0.1], dtype=torch.float64), rtol=1e-6)


def test_refusals_name_the_task_by_its_number():
    weighting = GLS()
    weighting.bind(1, 3, 1, "cpu")
    losses = torch.tensor([[1.0, 1.0, -2.0]], dtype=torch.float64)
    plain = replace(context(torch.eye(3, dtype=torch.float64)), losses=losses)
    weights = weighting.weights(replace(plain, present=torch.tensor([0, 2])))
    assert weights.isnan().all()
    refusals = weighting.refusals()
    assert refusals is not None and refusals[0, 1:].tolist() == [2.0, -2.0]
    fine = weighting.weights(replace(plain, present=torch.tensor([0, 1])))  # the loss of an absent task is none
    assert fine.tolist() == [[0.5, 0.5, 0.0]]


def test_numbers_of_each_task_are_those_of_the_task():
    losses = torch.tensor([[3.0, math.nan, 9.0]], dtype=torch.float64)
    plain = replace(context(torch.eye(3, dtype=torch.float64)), losses=losses, present=torch.tensor([0, 2]))
    fixed = LinearWeighting([1.0, 2.0, 3.0])
    fixed.bind(1, 3, 1, "cpu")
    assert fixed.weights(plain).tolist() == [[1.0, 0.0, 3.0]]
    famo = FAMO(lower_bound=[1.0, 100.0, 5.0])
    famo.bind(1, 3, 1, "cpu")
    assert_close(famo.weights(plain), torch.tensor([[2 / 3, 0.0, 1 / 3]], dtype=torch.float64))


def test_what_tasks_share_stays_on_the_simplex():
    plain = uneven()
    some, _ = plain.without([1, 2])
    weighting = MoCo(gamma=0.5)
    plain.run(weighting, end=2)
    for index in range(2, 4):
        some.step(weighting, index)
        simplex = weighting.state_dict()["simplex"]
        assert_close(simplex.sum(-1), torch.ones(2, dtype=torch.float64))
        assert (simplex >= 0).all()


def test_a_failure_in_a_step_without_a_task_changes_nothing():
    class Failing(NashMTL):
        def _weights(self, context):
            self._state["weights"] = self._state["weights"] * 2
            raise KeyError("a bug")

    weighting = Failing()
    weighting.bind(1, 3, 1, "cpu")
    before = weighting.state_dict()
    plain = context(torch.eye(3, dtype=torch.float64))
    with pytest.raises(KeyError):
        weighting.weights(replace(plain, present=torch.tensor([0, 2])))
    assert all(torch.equal(table, before[name]) for name, table in weighting.state_dict().items())
    assert weighting._shape == (1, 3, 1)


@pytest.mark.parametrize("method", [DWA, PCGrad, NashMTL], ids=lambda method: method.__name__)
def test_one_task_alone_has_the_weight_of_a_single_one(method):
    some, others = uneven().without([0, 1, 2, 3])
    for one, other in zip(some.run(method()), others.run(method()), strict=True):
        assert_close(one, other)
