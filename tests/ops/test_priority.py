from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from support.backends import Backend
from support.ops.priority_problem import PriorityProblem
from support.samplers import FLOATS, HALVES, assert_within, rounding, same_bits, unit

TASKS = (1, 2, 3, 4, 5, 6, 9)
DTYPES = [(dtype, dtype) for dtype in FLOATS + HALVES] + [(dtype, torch.float32) for dtype in HALVES]


def magnitude(problem: PriorityProblem) -> Tensor:
    """[P], the size of what is added up in each column."""
    size = problem.grads.double().abs().sum(0)
    for layer, coefficients in enumerate(problem.coefficients):
        owner = problem.owner_of_column(layer)
        for task, coefficient in enumerate(coefficients):
            group = owner == task
            size[group] += coefficient * problem.grads[task, group].double().abs()
    return size


def check(backend: Backend, problem: PriorityProblem, out_dtype: torch.dtype | None = None) -> None:
    """Against explicit projections in float64."""
    out = problem.run(backend, out_dtype)
    inside, expected = problem.layout.inside, problem.projected().sum(0)
    roundings = (len(problem.grads) + 3) * unit(problem.grads.dtype)
    allowed = roundings * magnitude(problem) + 2 * rounding(out.dtype) * expected.abs()
    allowed += torch.finfo(out.dtype).smallest_normal * rounding(out.dtype)  # the last place of a subnormal result
    assert_within(out[inside], expected[inside], allowed[inside])
    assert problem.layout.padding_kept(out)


@pytest.mark.parametrize(("dtype", "out_dtype"), DTYPES, ids=str)
@pytest.mark.parametrize("tasks", TASKS)
def test_equals_explicit_projection(backend: Backend, tasks: int, dtype: torch.dtype, out_dtype: torch.dtype) -> None:
    problem = PriorityProblem.sample(tasks, dtype)
    check(backend, problem, out_dtype)
    assert tasks == 1 or bool((problem.coefficients > 0).any())


@given(
    shapes=st.lists(
        st.tuples(st.integers(1, 4), st.integers(1, 9), st.one_of(st.integers(1, 40), st.integers(900, 1100))),
        min_size=1,
        max_size=5,
    ),
    tasks=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
@settings(max_examples=30, deadline=None)
def test_any_shapes(backend: Backend, shapes: list[tuple[int, int, int]], tasks: int, seed: int) -> None:
    check(backend, PriorityProblem.sample(tasks, shapes=list(enumerate(shapes)), seed=seed))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_the_owner_is_never_harmed(backend: Backend, tasks: int, dtype: torch.dtype) -> None:
    """<G_i, g> >= |G_i|^2 for the gradient of each owner on its channels, whatever the others want."""
    problem = PriorityProblem.sample(tasks, dtype)
    out = problem.run(backend).double()
    for layer in range(len(problem.coefficients)):
        owner = problem.owner_of_column(layer)
        for task in range(tasks):
            own, combined = problem.grads[task, owner == task].double(), out[owner == task]
            slack = 100 * rounding(dtype) * float(own.norm() * problem.grads[:, owner == task].double().norm())
            assert float(own @ combined) >= float(own @ own) - slack


def test_what_is_left_of_a_conflicting_gradient_is_orthogonal_to_the_owner(backend: Backend) -> None:
    """Two tasks: the sum less the owner's gradient is the projected gradient of the other."""
    problem = PriorityProblem.sample(2, torch.float64)
    out = problem.run(backend)
    for layer, coefficients in enumerate(problem.coefficients.tolist()):
        for task, coefficient in enumerate(coefficients):
            group = problem.owner_of_column(layer) == task
            own, projected = problem.grads[task, group], out[group] - problem.grads[task, group]
            if coefficient > 0:
                assert abs(float(own @ projected)) <= 1e-12 * float(own.norm() * problem.grads[:, group].norm())


def test_in_place_of_any_task(backend: Backend) -> None:
    problem = PriorityProblem.sample(3)
    expected = problem.run(backend)
    for row in range(3):
        grads = problem.grads.clone()
        backend.priority_(grads[row], problem.dots, problem.coefficients, grads, *problem.tables)
        assert same_bits(grads[row], expected)
        others = [task for task in range(3) if task != row]
        assert same_bits(grads[others], problem.grads[others])


def plain_sum(backend: Backend, problem: PriorityProblem) -> Tensor:
    out = torch.full((1, problem.layout.row), torch.nan, dtype=problem.grads.dtype)
    ones = torch.ones(1, len(problem.grads), dtype=torch.float64)
    backend.combine_(out, problem.grads[None], ones, problem.layout.chunks)
    return out[0]


@pytest.mark.parametrize("dtype", FLOATS + HALVES, ids=str)
@pytest.mark.parametrize("tasks", [1, 2, 3, 7])
def test_without_conflict_the_plain_sum_bit_for_bit(backend: Backend, tasks: int, dtype: torch.dtype) -> None:
    problem = PriorityProblem.sample(tasks, dtype)
    problem.grads.abs_()
    assert same_bits(problem.run(backend), plain_sum(backend, problem))
    assert not bool(problem.coefficients.any())


@pytest.mark.parametrize("no_owner", [-1, 3])
def test_without_owners_the_plain_sum_bit_for_bit(backend: Backend, no_owner: int) -> None:
    problem = PriorityProblem.sample(3)
    problem.owners.fill_(no_owner)
    assert same_bits(problem.run(backend), plain_sum(backend, problem))


def test_an_owner_without_gradient_takes_nothing(backend: Backend) -> None:
    problem = PriorityProblem.sample(3)
    problem.grads[1] = problem.grads[1] * 0
    check(backend, problem)
    assert not bool(problem.coefficients[:, 1].any())
    assert bool((problem.coefficients[:, 0] > 0).any())


@pytest.mark.parametrize("exponent", [-40, -27, 27, 40])
def test_scale_changes_nothing_else(backend: Backend, exponent: int) -> None:
    """All gradients times 2^n: the same coefficients, the result times 2^n, exactly."""
    problem, scaled = PriorityProblem.sample(3), PriorityProblem.sample(3)
    scaled.grads.mul_(2.0**exponent)
    assert same_bits(scaled.run(backend), problem.run(backend) * 2.0**exponent)
    assert same_bits(scaled.coefficients, problem.coefficients)


def test_the_loss_of_another_task_times_b(backend: Backend) -> None:
    """L_j -> b L_j (j not the owner): its part of the coefficient times b."""
    problem, scaled = PriorityProblem.sample(2), PriorityProblem.sample(2)
    scaled.grads[1] *= 8.0
    problem.run(backend)
    scaled.run(backend)
    assert same_bits(scaled.coefficients[:, 0], 8 * problem.coefficients[:, 0])
    torch.testing.assert_close(scaled.coefficients[:, 1], problem.coefficients[:, 1] / 8, rtol=1e-14, atol=0)


@pytest.mark.parametrize("tasks", [2, 5])
def test_tasks_in_another_order(backend: Backend, tasks: int) -> None:
    problem, other = PriorityProblem.sample(tasks), PriorityProblem.sample(tasks)
    order = torch.arange(tasks).roll(1)
    other.grads, other.owners = problem.grads[order], torch.where(problem.owners < 0, -1, (problem.owners + 1) % tasks)
    inside = problem.layout.inside
    expected = problem.run(backend)
    allowed = 2 * tasks * unit(torch.float32) * magnitude(problem)
    assert_within(other.run(backend)[inside], expected[inside], allowed[inside])
    torch.testing.assert_close(other.coefficients, problem.coefficients[:, order], rtol=1e-12, atol=1e-15)


def test_long_products_are_exact_to_float64(backend: Backend) -> None:
    """A conflict of one part in a million, over half a million columns: float32 sums would not see its sign."""
    problem = PriorityProblem.sample(2, shapes=[(0, (1, 2, 250_000))])
    problem.owners.zero_()
    own = problem.grads[0].double().nan_to_num(0.0)
    problem.grads[1] -= ((problem.grads[1].double() @ own / (own @ own) + 1e-6) * own).float()
    exact = -(problem.grads[1].double() @ own) / (own @ own)
    assert exact > 0
    problem.run(backend)
    torch.testing.assert_close(problem.coefficients[0, 0], exact, rtol=1e-7, atol=0)


def test_columns_outside_of_the_chunks_are_not_written(backend: Backend) -> None:
    problem = PriorityProblem.sample(3)
    layer_of = problem.records[problem.chunks[:, 0], 0]
    kept = layer_of != 4
    problem.chunks, problem.dots = problem.chunks[kept].contiguous(), problem.dots[kept].contiguous()
    out = problem.run(backend)
    left_out = problem.owner_of_column(4) > -2
    assert bool(out[left_out].isnan().all())
    assert bool(out[problem.layout.inside & ~left_out].isfinite().all())
