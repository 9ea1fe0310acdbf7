"""What every weighting keeps to: scales, bad numbers, degenerate rows, permutations, no waiting."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from mt2o_ext import _native
from mt2o_ext.weighting import Needs
from support.weighting.problems import (
    KINDS,
    METHODS,
    VARIANTS,
    Steps,
    assert_close,
    assert_parallel,
    every_weighting,
    steps,
    untested,
)

# Their numbers are in units of the losses, and they say so: no scale law.
UNSCALED = ("uw", "imtl-l", "stch in units", "cdtt unit", "moco raw", "modo raw")
# Their answers depend on the order of the tasks: a chain of neighbours, and a repair in that order.
ORDERED = ("ldc-mtl", "ldc-mtl r=1", "cdtt", "cdtt unit")


@every_weighting()
@pytest.mark.parametrize("kind", KINDS)
def test_directions_are_finite_whatever_the_rows(make, kind):
    for direction in steps(kind, num_subproblems=1, count=3).run(make()):
        assert direction.dtype == torch.float64
        assert direction.isfinite().all()


@every_weighting(without=UNSCALED)
@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_losses_times_a_number_change_the_length_by_the_degree_and_no_direction(make, scale):
    weighting = make()
    plain = steps("conflicting", num_subproblems=1)
    before = plain.run(weighting)
    after = replace(plain, scale=scale).run(weighting)
    assert weighting.degree is not None
    for one, other in zip(before, after, strict=True):
        assert one.norm() > 0
        assert_parallel(other, one, 1e-6)
        assert_close(other.norm(), one.norm() * scale**weighting.degree, rtol=1e-6)


def test_only_methods_in_the_units_of_their_losses_have_no_scale_law():
    assert set(UNSCALED) == {name for name, make in VARIANTS.items() if make().degree is None}


@every_weighting()
@pytest.mark.parametrize(("where", "bad"), [("gradient", math.nan), ("loss", math.inf)])
def test_bad_numbers_never_raise_and_touch_neither_state_nor_neighbours(make, where, bad):
    weighting, plain = make(), steps()
    expected = plain.run(weighting)
    kept = weighting.state_dict()
    weighting = make()
    plain.run(weighting, end=2)
    before = {name: tensor.clone() for name, tensor in weighting.state_dict().items()}
    broken = replace(plain, jacobians=[each.clone() for each in plain.jacobians], losses=list(plain.losses))
    if where == "gradient":
        broken.jacobians[2][:, 1, 2, 3] = bad
    else:
        broken.losses[2] = broken.losses[2].clone()
        broken.losses[2][1, 2] = bad
    direction = broken.step(weighting, 2)
    assert direction[1].isnan().all()
    assert_close(direction[0], expected[2][0])
    for name, tensor in weighting.state_dict().items():
        assert torch.equal(rows_of_subproblem(tensor, 1), rows_of_subproblem(before[name], 1)), name
    # Subproblem 0 goes on as if nothing had been.
    assert_close(broken.step(weighting, 3)[0], expected[3][0])
    for name, tensor in weighting.state_dict().items():
        assert torch.equal(rows_of_subproblem(tensor, 0), rows_of_subproblem(kept[name], 0)), name


def rows_of_subproblem(tensor: Tensor, subproblem: int) -> Tensor:
    """A state has K rows, or K S of them."""
    return tensor.chunk(2)[subproblem]


@every_weighting()
def test_all_zero_rows_give_no_direction(make):
    plain = steps(num_subproblems=1, count=2)
    for direction in replace(plain, jacobians=[0 * each for each in plain.jacobians]).run(make()):
        assert not direction.any()


@every_weighting(without=ORDERED)
@pytest.mark.parametrize("kind", ["random", "conflicting"])
def test_permuting_the_tasks_changes_no_direction(make, kind):
    plain = steps(kind, num_subproblems=1, num_tasks=5)
    order = torch.tensor([3, 0, 4, 2, 1])
    weighting = make()
    for one, other in zip(plain.run(weighting), plain.permuted(order).run(weighting), strict=True):
        assert_close(other, one, rtol=1e-7, atol=1e-9 * float(one.abs().max()))


@every_weighting(without=[name for name, make in VARIANTS.items() if Needs.DRAWS in make().needs])
def test_subproblems_do_not_feel_each_other(make):
    both = steps()
    together = both.run(make())
    for k in range(2):
        alone = replace(
            both,
            jacobians=[each[:, k : k + 1] for each in both.jacobians],
            losses=[each[k : k + 1] for each in both.losses],
            preferences=both.preferences[k : k + 1],
        )
        for one, other in zip(alone.run(make()), together, strict=True):
            assert_close(one[0], other[k], rtol=1e-9, atol=1e-12)


@every_weighting()
@pytest.mark.parametrize("num_tasks", [1, 2])
def test_few_tasks(make, num_tasks):
    if num_tasks == 1 and Needs.POINTS in make().needs:
        with pytest.raises(ValueError, match="at least 2 tasks"):
            steps(num_subproblems=1, num_tasks=1, count=1).run(make())
        return
    for direction in steps(num_subproblems=1, num_tasks=num_tasks, count=2).run(make()):
        assert direction.isfinite().all()


@every_weighting()
def test_draws_decide_alone(make):
    plain = steps("conflicting", num_tasks=5, count=2)
    once, again = plain.run(make()), plain.run(make())
    assert all(torch.equal(*pair) for pair in zip(once, again, strict=True))
    other = replace(plain, seed=8).run(make())
    same = all(torch.equal(*pair) for pair in zip(once, other, strict=True))
    assert same == (Needs.DRAWS not in make().needs)


def test_every_registered_weighting_is_tested_here():
    assert untested() == set(), "give VARIANTS in weighting_problems.py one of each"
    assert set(METHODS) <= set(VARIANTS)


def test_preferences_of_zero_are_allowed():
    plain: Steps = steps(num_subproblems=1, num_tasks=3, count=2)
    plain = replace(plain, preferences=torch.tensor([[0.0, 0.3, 0.7]], dtype=torch.float64))
    for name, make in METHODS.items():
        assert all(direction.isfinite().all() for direction in plain.run(make())), name


@pytest.mark.skipif(_native.C is None, reason=f"the compiled part was not loaded: {_native.load_error}")
@every_weighting()
def test_no_value_is_read_on_the_host(make):
    """Under fake tensors every read of a value raises: nothing waits for the device."""
    plain = steps(num_subproblems=1, num_tasks=2, count=1)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [[mode.from_tensor(each) for each in tensors] for tensors in (plain.jacobians, plain.losses)]
        directions = Steps(*fakes, mode.from_tensor(plain.preferences)).run(make())
        assert all(direction.shape == (1, 24) for direction in directions)
        with pytest.raises(DataDependentOutputException):
            fakes[0][0].sum().item()
