"""``dual_cone_``: optimality by certificates, and SciPy's non-negative least squares on the rows themselves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls
from torch import Tensor

from support.backends import Backend
from support.gram_samplers import KINDS, GramProblem, gram_problem
from support.ops.solve_calls import draw, dual_cone, project, sizes, unconflicting
from support.samplers import same_bits


def check_projection(problem: GramProblem, lower: Tensor, v: Tensor) -> None:
    """v = u + z: z >= 0, no row is in conflict with J'v, and z is zero where J'v has a positive product.

    Measured by the sum of |u_i| |g_i|, which is |J'u| unless the rows cancel."""
    present, lengths = problem.lengths > 0, problem.lengths
    assert bool((v[..., ~present] == 0).all())
    u, v, lengths = lower[..., present], v[..., present], lengths[present]
    products = v @ problem.gram[present][:, present] / lengths  # with rows at length one
    size = (u.abs() * lengths).sum(-1, keepdim=True)
    z = v - u
    assert bool((z >= -1e-15 * (u.abs() + v.abs())).all())
    assert bool((products >= -1e-12 * size).all())
    assert bool(((z * lengths * products).sum(-1).abs() <= 1e-10 * size[..., 0] ** 2).all())


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_optimality(backend: Backend, data: st.DataObject) -> None:
    problem = draw(data, backend)
    tasks, generator = problem.tasks, torch.Generator().manual_seed(problem.tasks)
    lower = torch.randn(1, 4, tasks, dtype=torch.float64, generator=generator)
    lower[0, 0] = 1 / tasks
    lower[0, 1] = torch.eye(tasks, dtype=torch.float64)[0]
    check_projection(problem, lower, dual_cone(backend, problem.gram[None], lower))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("all zero", "zero")])
def test_equals_nonnegative_least_squares(backend: Backend, kind: str) -> None:
    for tasks in (t for t in sizes(backend) if t <= 40):
        problem = gram_problem(kind, tasks, seed=2)
        u = torch.full((1, 1, tasks), 1 / tasks, dtype=torch.float64)
        directions = problem.rows / problem.lengths[:, None]
        z, _ = nnls(directions.T.numpy(), -(problem.rows.T @ u[0, 0]).numpy())
        expected = problem.rows.T @ u[0, 0] + directions.T @ torch.from_numpy(z)
        actual = problem.rows.T @ dual_cone(backend, problem.gram[None], u)[0, 0]
        assert (actual - expected).norm() <= 1e-7 * (u * problem.lengths).sum()


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_without_conflict_nothing_changes(backend: Backend, data: st.DataObject) -> None:
    """Rows turned to where all inner products are positive: v = u."""
    problem = draw(data, backend, ("random", "scaled", "correlated", "duplicate"))
    gram = GramProblem("positive", problem.rows.abs()).gram[None]
    u = torch.rand(1, 3, problem.tasks, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(dual_cone(backend, gram, u), u)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_sum_conflicts_with_no_row(backend: Backend, data: st.DataObject) -> None:
    """UPGrad and DualProj, at any scale of the rows."""
    problem = draw(data, backend, most=40)
    lengths = problem.lengths
    for weights in (unconflicting(backend, problem.gram[None])[0], dual_cone(backend, problem.gram[None])[0, 0]):
        products = problem.gram @ weights
        assert bool((products >= -1e-11 * lengths * lengths.mean()).all())


@pytest.mark.parametrize("kind", ["random", "conflicting", "scaled", "widely scaled"])
def test_two_rows_are_half_of_pcgrad(backend: Backend, kind: str) -> None:
    for seed in range(8):
        gram = gram_problem(kind, 2, seed).gram[None]
        assert torch.allclose(unconflicting(backend, gram), project(backend, gram) / 2, rtol=1e-12)


def test_linear_in_lengths_of_rows(backend: Backend) -> None:
    """UPGrad: multiplying row i by a_i > 0 multiplies what comes from u_i by a_i."""
    problem = gram_problem("conflicting", 5)
    factors = torch.logspace(-3, 2, 5, dtype=torch.float64)
    each = torch.eye(5, dtype=torch.float64)[None]
    parts = dual_cone(backend, problem.gram[None], each)[0] @ problem.rows
    scaled = factors[:, None] * problem.rows
    scaled_parts = dual_cone(backend, GramProblem("scaled", scaled).gram[None], each)[0] @ scaled
    expected = factors[:, None] * parts
    assert bool(((scaled_parts - expected).norm(dim=1) <= 1e-12 * expected.norm(dim=1)).all())


def test_bounds_do_not_influence_each_other(backend: Backend) -> None:
    problem = gram_problem("zero", 5)
    lower = torch.eye(5, dtype=torch.float64)[None]  # rows 0 and 3 are zero: nothing to project
    together = dual_cone(backend, problem.gram[None], lower)
    alone = [dual_cone(backend, problem.gram[None], lower[:, m : m + 1].contiguous()) for m in range(5)]
    assert same_bits(together, torch.cat(alone, dim=1))
    assert not bool(together[0, [0, 3]].any())
