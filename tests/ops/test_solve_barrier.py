"""``power_barrier_``: its equation is its certificate (the solution is unique)."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import root
from torch import Tensor

from support.backends import Backend
from support.gram_samplers import GramProblem, gram_problem
from support.ops.solve_calls import draw, power_barrier, sizes

SOLVABLE = ("random", "conflicting", "scaled", "correlated", "duplicate", "zero")


def equation(problem: GramProblem, x: Tensor, b: Tensor, power: float) -> float:
    """The largest |(Qx)_i x_i^p / b_i^p - 1| of the rows that are there."""
    present = problem.lengths > 0
    if not bool(present.any()):
        return 0.0
    gram = problem.gram[present][:, present]
    return float(((gram @ x[present]) * x[present] ** power / b[present] ** power - 1).abs().max())


@given(data=st.data(), power=st.sampled_from([0.2, 0.5, 1.0, 1.7, 2.0]))
@settings(max_examples=60, deadline=None)
def test_solves_its_equation(backend: Backend, data: st.DataObject, power: float) -> None:
    problem = draw(data, backend, SOLVABLE)
    b = 0.5 + torch.rand(1, problem.tasks, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x, residual = power_barrier(backend, problem.gram[None], b, power)
    present = problem.lengths > 0
    assert bool((x[0, present] > 0).all())
    assert bool((x[0, ~present] == 0).all())
    assert residual <= 1e-11
    assert equation(problem, x[0], b[0], power) <= 1e-11


@pytest.mark.parametrize(("power", "allowed"), [(0.5, 1e-9), (1.0, 1e-9), (2.0, 1e-6)])
def test_lengths_of_eight_orders(backend: Backend, power: float, allowed: float) -> None:
    """Where (Qx)_i is a small difference of large numbers, rounding limits the residual, the more the larger p is."""
    for tasks in sizes(backend):
        problem = gram_problem("widely scaled", tasks, seed=1)
        x, residual = power_barrier(backend, problem.gram[None], power=power)
        assert bool((x > 0).all())
        assert residual <= allowed
        assert equation(problem, x[0], torch.ones(tasks, dtype=torch.float64), power) <= 2 * allowed


def test_two_rows_are_a_formula(backend: Backend) -> None:
    for a, b, ab in ((1.0, 4.0, 0.5), (1e-6, 1.0, -9e-4), (3.0, 3.0, 2.9)):
        x, _ = power_barrier(backend, torch.tensor([[[a, ab], [ab, b]]], dtype=torch.float64))
        first = (a + ab * math.sqrt(a / b)) ** -0.5
        expected = torch.tensor([[first, first * math.sqrt(a / b)]], dtype=torch.float64)
        assert torch.allclose(x, expected, rtol=1e-12)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_equals_a_root_finder(backend: Backend, power: float) -> None:
    problem = gram_problem("conflicting", 5)
    gram = problem.gram.numpy()
    solution = root(lambda log_x: gram @ torch.tensor(log_x).exp().numpy() - torch.tensor(-power * log_x).exp().numpy(),
                    torch.zeros(5).numpy(), tol=1e-13)  # fmt: skip
    x, _ = power_barrier(backend, problem.gram[None], power=power)
    assert torch.allclose(x[0].log(), torch.from_numpy(solution.x), rtol=1e-9)


def test_one_row(backend: Backend) -> None:
    for power in (0.3, 1.0, 2.0):
        x, _ = power_barrier(backend, torch.tensor([[[9.0]]], dtype=torch.float64), power=power)
        assert math.isclose(float(x), 9.0 ** (-1 / (1 + power)), rel_tol=1e-14)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_rows_that_cancel_have_no_solution(backend: Backend, power: float) -> None:
    for tasks in (t for t in sizes(backend) if t % 2 == 0):
        x, residual = power_barrier(backend, gram_problem("opposite", tasks).gram[None], power=power)
        assert not bool(x.any())
        assert float(residual) == 1.0


@pytest.mark.parametrize("power", [0.2, 1.0, 2.0])
def test_a_few_rows_that_cancel_have_no_solution_among_others(backend: Backend, power: float) -> None:
    """However many others there are: a pair, and three rows whose sum is zero."""
    for tasks in (t for t in sizes(backend) if t >= 3):
        for seed in range(4):
            pair = gram_problem("scaled", tasks, seed).rows
            pair[1] = -pair[0] * (1 + seed)
            three = gram_problem("scaled", tasks, seed).rows
            three[1] = -pair[0] - three[2]
            for rows in (pair, three):
                gram = GramProblem("some cancel", rows).gram[None]
                x, residual = power_barrier(backend, gram, power=power)
                assert not bool(x.any()), (tasks, seed)
                assert float(residual) == 1.0


def nearly_opposite(angle: float) -> Tensor:
    """Two rows of length one and their Gram matrix: cosine angle - 1."""
    return torch.tensor([[[1.0, angle - 1], [angle - 1, 1.0]]], dtype=torch.float64)


@pytest.mark.parametrize("power", [0.2, 1.0, 6.0])
def test_there_is_a_solution_as_long_as_the_sum_is_more_than_rounding(backend: Backend, power: float) -> None:
    """Two rows, x_1 = x_2: |J'x|^2 is `angle` times the sum of (x_t |g_t|)^2, and rtol the least that counts."""
    for rtol in (2.0**-20, 2.0**-40):
        for angle in (rtol * (1 + 2.0**-4), rtol * (1 - 2.0**-4)):
            x, residual = power_barrier(backend, nearly_opposite(angle), power=power, rtol=rtol)
            assert bool((x > 0).all()) == (angle > rtol), (rtol, angle)
            assert (float(residual) < 1) == (angle > rtol)


def test_rows_are_no_more_accurate_than_the_arithmetic(backend: Backend) -> None:
    """Whatever rtol says: of T rows, 8 T 2^-52."""
    for angle, solvable in ((2.0**-50, False), (2.0**-46, True)):
        x, _ = power_barrier(backend, nearly_opposite(angle), rtol=0.0)
        assert bool((x > 0).all()) == solvable


@pytest.mark.parametrize("power", [0.2, 1.0, 2.0, 20.0])
def test_rows_that_nearly_cancel_are_a_formula(backend: Backend, power: float) -> None:
    """angle x = x^-p.  The solution is far away: Newton's steps lengthen x by a factor of at most 1 + 1/p."""
    for exponent in (-20, -30, -40):
        angle = 2.0**exponent
        x, _ = power_barrier(backend, nearly_opposite(angle), power=power)
        expected = angle ** (-1 / (1 + power))
        assert bool(((x / expected - 1).abs() <= 2.0**-50 / angle).all())


def test_targets_must_be_positive(backend: Backend) -> None:
    gram = gram_problem("random", 3).gram.expand(3, 3, 3).contiguous()
    b = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, -1.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    x, residual = power_barrier(backend, gram, b)
    assert bool(x[:2].isnan().all()) and bool(residual[:2].isnan().all())
    assert bool((x[2] > 0).all()) and float(residual[2]) <= 1e-12


def test_large_powers_stop(backend: Backend) -> None:
    """The best iterate is kept; p -> infinity leads to x = 1."""
    for power in (4.0, 16.0, 64.0):
        x, residual = power_barrier(backend, gram_problem("random", 5).gram[None], power=power)
        assert bool(torch.isfinite(x).all()) and bool(torch.isfinite(residual).all())
    assert bool(((x - 1).abs() <= 0.1).all())
