"""The step with masks: of each gradient counts what its task's mask has, and what no mask has keeps its bits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mt2o_ext.ops import MOMENTS, Rule
from mt2o_ext.ops.reference_mask import kept
from support.backends import Backend
from support.ops.scattered import scattered
from support.ops.step_bounds import step_bounds
from support.samplers import (
    FLOATS,
    HALVES,
    LAYOUTS,
    Layout,
    Sampler,
    StepProblem,
    assert_within,
    rows_and_tasks,
    same_bits,
)

RULES = pytest.mark.parametrize("rule", Rule, ids=lambda rule: rule.name.lower())
HOLD = pytest.mark.parametrize("hold", [False, True], ids=["decay", "hold"])
DTYPES = [(dtype, dtype) for dtype in FLOATS] + [(torch.float32, dtype) for dtype in HALVES]
VALUES = ("theta", "ema", "low_precision")


def masked(sampler: Sampler, rows: int, tasks: int, rule: Rule, **options: object) -> StepProblem:
    return StepProblem.sample(sampler, rows, tasks, rule, masks=sampler.masks(tasks), **options)


def moved(problem: StepProblem, layout: Layout) -> Tensor:
    """bool [P], columns that some mask has."""
    return kept(problem.masks, layout.row).any(0) & layout.inside


def check(backend: Backend, problem: StepProblem, layout: Layout, rule: Rule, *, hold: bool) -> StepProblem:
    """Runs a step, compares everything with the oracle, and returns the result."""
    after, expected = problem.run(backend, rule, hold=hold), problem.oracle(rule, hold=hold)
    bounds = step_bounds(problem, expected, layout.segment_of, rule, order=0)
    assert torch.equal(after.step, expected.step)
    for name in ("theta", *MOMENTS, "ema"):
        if getattr(problem, name) is not None:
            actual, allowed = getattr(after, name), getattr(bounds, name)
            inside = layout.inside
            assert_within(actual[:, inside], getattr(expected, name)[:, inside], allowed[:, inside])
            assert layout.padding_kept(actual)
    outside = layout.inside & ~moved(problem, layout)
    for name in (*VALUES, *(MOMENTS if hold else ())):
        if getattr(problem, name) is not None:
            assert same_bits(getattr(after, name)[:, outside], getattr(problem, name)[:, outside])
    assert same_bits(after.masks, problem.masks)
    return after


@RULES
@pytest.mark.parametrize(("theta_dtype", "grads_dtype"), DTYPES, ids=str)
@pytest.mark.parametrize("numels", LAYOUTS, ids=str)
def test_equals_the_oracle(
    backend: Backend, numels: tuple[int, ...], theta_dtype: torch.dtype, grads_dtype: torch.dtype, rule: Rule
) -> None:
    layout = Layout(numels)
    sampler = Sampler(layout)
    for i, (rows, tasks) in enumerate(rows_and_tasks(numels)[:6]):
        problem = masked(sampler, rows, tasks, rule, theta_dtype=theta_dtype, grads_dtype=grads_dtype)
        check(backend, problem, layout, rule, hold=bool(i % 2))


@RULES
@HOLD
@pytest.mark.parametrize("low", [None, *HALVES], ids=str)
def test_every_option_with_every_other(backend: Backend, rule: Rule, low: torch.dtype | None, hold: bool) -> None:
    layout = Layout((17, 2065, 33))
    sampler = Sampler(layout)
    active = torch.ones(3, 3, dtype=torch.bool)
    active[1, 0] = False
    for skips in (False, True):
        problem = masked(
            sampler, 3, 2, rule, ema=sampler.rows(3),
            low_precision=None if low is None else sampler.rows(3, dtype=low),
            whole=torch.tensor([False, True, False]) if skips else None,
            active=active if skips else None,
            grad_scale=torch.tensor([1024.0]) if skips else None,
            found_inf=torch.tensor([0.0, 0.0, 1.0]) if skips else None,
        )  # fmt: skip
        if low:
            problem.grads = problem.grads.to(low)
        after = check(backend, problem, layout, rule, hold=hold)
        if low is not None:
            stepped = (after.step != problem.step)[:, layout.segment_of] & moved(problem, layout)
            rounded = torch.where(stepped, after.theta.to(low), problem.low_precision)
            assert same_bits(after.low_precision, rounded)


@RULES
@HOLD
def test_inside_of_masks_it_is_the_step_of_masked_gradients_bit_for_bit(
    backend: Backend, rule: Rule, hold: bool
) -> None:
    layout = Layout((9000, 1, 33))
    sampler = Sampler(layout)
    problem = masked(sampler, 2, 3, rule, ema=sampler.rows(2), whole=torch.tensor([False, False, True]))
    bits = kept(problem.masks, layout.row) | (layout.segment_of == 2)
    grads = torch.where(bits & layout.inside, problem.grads, torch.zeros(()))
    plain = replace(problem, masks=None, whole=None, grads=grads).run(backend, rule)
    after = problem.run(backend, rule, hold=hold)
    where = moved(problem, layout)
    assert where.any() and (layout.inside & ~where).any()
    for name in ("theta", "ema"):
        assert same_bits(getattr(after, name)[:, where], getattr(plain, name)[:, where])
    advanced = where if hold else layout.inside
    for name in rule.moments:
        assert same_bits(getattr(after, name)[:, advanced], getattr(plain, name)[:, advanced])


@RULES
def test_full_masks_are_no_masks(backend: Backend, rule: Rule) -> None:
    layout = Layout((4097, 17))
    sampler = Sampler(layout)
    problem = masked(sampler, 2, 2, rule)
    problem.masks = torch.full_like(problem.masks, 255)
    with_masks, without = problem.run(backend, rule), replace(problem, masks=None).run(backend, rule)
    assert all(same_bits(getattr(with_masks, name), getattr(without, name)) for name in ("theta", *rule.moments))


@HOLD
def test_strange_numbers_outside_stay(backend: Backend, hold: bool) -> None:
    """NaN, infinities, -0, subnormal numbers, and gradients there that are no numbers."""
    layout = Layout((200,))
    sampler = Sampler(layout)
    problem = masked(sampler, 1, 2, Rule.ADAM, ema=sampler.rows(1), low_precision=sampler.rows(1, dtype=torch.bfloat16))
    outside = layout.inside & ~moved(problem, layout)
    strange = torch.tensor([-0.0, torch.nan, torch.inf, 1e-42, -torch.inf]).repeat(200)
    for name in VALUES:
        tensor = getattr(problem, name)
        tensor[:, outside] = strange[: int(outside.sum())].to(tensor.dtype)
    for task, bits in enumerate(kept(problem.masks, layout.row)):
        problem.grads[0, task, layout.inside & ~bits] = torch.nan
    after = problem.run(backend, Rule.ADAM, hold=hold)
    for name in VALUES:
        assert same_bits(getattr(after, name)[:, outside], getattr(problem, name)[:, outside])
    assert bool(torch.isfinite(after.theta[:, moved(problem, layout)]).all())
    assert bool(torch.isfinite(after.exp_avg[:, moved(problem, layout)]).all())


@pytest.mark.parametrize("tasks", [1, 2, 5, 9])
def test_gradients_behind_addresses_and_some_that_are_missing(backend: Backend, tasks: int) -> None:
    layout = Layout((300, 5000, 17))
    sampler = Sampler(layout)
    for dtype in (torch.float32, torch.bfloat16):
        problem = masked(sampler, 2, tasks, Rule.ADAM, grads_dtype=dtype)
        problem.grads[:, tasks // 2, layout.segment_of == 1] = 0.0
        apart = scattered(problem.grads, layout, device=backend.device)
        moved_away = replace(problem, grads=apart.like, addresses=apart.addresses)
        together, scattered_ = problem.run(backend, Rule.ADAM), moved_away.run(backend, Rule.ADAM)
        assert same_bits(together.theta, scattered_.theta)
        assert same_bits(together.exp_avg_sq, scattered_.exp_avg_sq)


def test_masks_of_no_one_and_rows_that_lie_apart(backend: Backend) -> None:
    """A table that is a part of a wider one, where a task has nothing."""
    layout = Layout((500, 40))
    sampler = Sampler(layout)
    problem = masked(sampler, 1, 2, Rule.ADAM)
    problem.masks[1] = 0
    expected = problem.run(backend, Rule.ADAM)
    wide = torch.full((2, problem.masks.shape[1] + 5), 255, dtype=torch.uint8)
    wide[:, : problem.masks.shape[1]] = problem.masks
    after = problem.copy()
    arguments = replace(after, masks=wide[:, : problem.masks.shape[1]]).arguments()
    backend.step_(*arguments, rule=int(Rule.ADAM), order=0)
    assert same_bits(after.theta, expected.theta)
    problem.masks.zero_()
    assert same_bits(problem.run(backend, Rule.ADAM).theta, problem.theta)
