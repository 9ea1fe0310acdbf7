"""``minimum_norm_`` and ``conflict_averse_``: optimality by certificates, and other people's exact solvers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from support.backends import REFERENCE, Backend
from support.gram_samplers import KINDS, REGULAR, GramProblem, gram_problem
from support.ops.solve_calls import conflict_averse, draw, minimum_norm, sizes
from support.samplers import same_bits

EPSILON = 2.0**-52


def check_minimum(problem: GramProblem, w: Tensor, q: Tensor | None = None) -> None:
    """w is in the simplex, and no vertex lies further down than rounding explains (a certificate: the problem is
    convex).  With a linear term the level itself, in which the two may cancel, is no measure of what is small."""
    gram, present = problem.gram, problem.lengths > 0
    linear = torch.zeros_like(w) if q is None else q
    assert bool((w >= 0).all())
    assert bool((w[~present] == 0).all())
    if not bool(present.any()):
        return
    assert abs(float(w.sum()) - 1) <= 8 * problem.tasks * EPSILON
    gradient = gram @ w + linear
    level = w @ gradient
    sizes = gram.abs() @ w + linear.abs()  # of the terms of the gradient
    gap = (level - gradient - 64 * EPSILON * sizes)[present].max()
    assert gap <= 1e-12 * (level.abs() if q is None else w @ sizes) + 64 * EPSILON * (w @ sizes)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_minimum_norm(backend: Backend, data: st.DataObject) -> None:
    problem = draw(data, backend)
    check_minimum(problem, minimum_norm(backend, problem.gram[None])[0])


@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_with_a_linear_term(backend: Backend, data: st.DataObject) -> None:
    problem = draw(data, backend)
    u = torch.randn(problem.tasks, dtype=torch.float64, generator=torch.Generator().manual_seed(problem.tasks))
    for q in (problem.gram @ u.abs(), u * problem.gram.diagonal().mean()):
        check_minimum(problem, minimum_norm(backend, problem.gram[None], q[None])[0], q)


@pytest.mark.parametrize("seed", [90, 418])
def test_a_linear_term_that_falls_for_ever_without_the_simplex(backend: Backend, seed: int) -> None:
    """Few dimensions: on some supports nothing bends the way down, and a stationary point does not exist or is far."""
    for tasks in (3, 5, 8):
        problem = gram_problem("low rank", tasks, seed)
        q = torch.randn(tasks, dtype=torch.float64, generator=torch.Generator().manual_seed(tasks))
        check_minimum(problem, minimum_norm(backend, problem.gram[None], q[None])[0], q)


@pytest.mark.parametrize("kind", ["random", "conflicting", "scaled", "correlated"])
def test_gap_is_small_where_it_can_be(backend: Backend, kind: str) -> None:
    """1e-12 of the optimum without any allowance for rounding; T = 40 with rows scaled 1e-3 to 1 among them."""
    for tasks in sizes(backend):
        problem = gram_problem(kind, tasks)
        w = minimum_norm(backend, problem.gram[None])[0]
        gradient = problem.gram @ w
        assert w @ gradient - gradient.min() <= 1e-12 * (w @ gradient), tasks


@pytest.mark.parametrize("kind", REGULAR)
def test_equals_quadprog(backend: Backend, kind: str) -> None:
    quadprog = pytest.importorskip("quadprog", reason="the comparison needs quadprog (the extra `test`)")
    for tasks in (t for t in sizes(backend) if t <= 16):
        problem = gram_problem(kind, tasks)
        lengths = problem.lengths.numpy()  # w times them is looked for, as quadprog's tolerances are absolute
        cosines = problem.gram.numpy() / np.outer(lengths, lengths)
        conditions = np.column_stack([1 / lengths * lengths.min(), np.eye(tasks)])
        solution = quadprog.solve_qp(cosines, np.zeros(tasks), conditions, np.eye(tasks + 1)[0], 1)
        best = 2 * float(solution[1]) * lengths.min() ** 2
        w = minimum_norm(backend, problem.gram[None])[0]
        assert abs(w @ problem.gram @ w - best) <= 1e-9 * best


def test_two_rows_are_a_formula(backend: Backend) -> None:
    for a, b, ab in ((1.0, 4.0, 0.5), (1.0, 4.0, 1.5), (4.0, 1.0, 1.5), (1.0, 1.0, -1.0)):
        gram = torch.tensor([[[a, ab], [ab, b]]], dtype=torch.float64)
        first = min(max((b - ab) / (a + b - 2 * ab), 0.0), 1.0)
        w = minimum_norm(backend, gram)[0]
        assert torch.allclose(w, torch.tensor([first, 1 - first], dtype=torch.float64), rtol=1e-14)


def test_conflicting_rows_of_different_lengths_reach_the_optimum(backend: Backend) -> None:
    """Rows t e_t: w is proportional to 1 / t^2 (Frank-Wolfe needs thousands of steps)."""
    tasks = sizes(backend)[-1]
    lengths = torch.logspace(-3, 0, tasks, dtype=torch.float64)
    w = minimum_norm(backend, torch.diag(lengths**2)[None])[0]
    assert torch.allclose(w, lengths**-2 / (lengths**-2).sum(), rtol=1e-13)


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_conflict_averse(backend: Backend, data: st.DataObject) -> None:
    """Weak duality: min_t <g_t, d> of any d in the ball is at most <g0, g_w> + radius |g0| |g_w| of any w in the
    simplex; equal, both are optimal."""
    problem = draw(data, backend, most=40)
    rows, present = problem.rows, problem.lengths > 0
    preferences = torch.rand(1, problem.tasks, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for radius in (0.4, 0.9):
        weights = conflict_averse(backend, problem.gram[None], preferences, radius)[0]
        assert bool((weights[~present] == 0).all())
        if bool((weights == 0).all()):
            least = minimum_norm(backend, problem.gram[None])[0]
            assert least @ problem.gram @ least <= 1e-11 * problem.gram.diagonal().mean()
            continue
        mean = rows.T @ preferences[0]
        w = torch.where(present, weights - preferences[0], 0.0)
        step = rows.T @ w
        reach = radius * mean.norm()
        assert bool((w >= -1e-14 * weights.abs().max()).all())
        assert abs(step.norm() - reach) <= 1e-11 * reach + 1e-13 * (w.abs() @ problem.lengths)
        dual = (mean @ step + reach * step.norm()) / w.sum()
        primal = (rows[present] @ (mean + step)).min()
        size = problem.lengths.max() * mean.norm()
        assert primal >= dual - 1e-10 * size


@pytest.mark.parametrize("kind", ["random", "conflicting", "scaled"])
def test_conflict_averse_equals_a_scan(backend: Backend, kind: str) -> None:
    """Two tasks: <g0, g_w> + k |g_w| over a fine grid of w."""
    problem = gram_problem(kind, 2, seed=3)
    grid = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    convex = grid[:, None] * problem.rows[0] + (1 - grid)[:, None] * problem.rows[1]
    mean = problem.rows.mean(0)
    reach = 0.5 * mean.norm()
    values = convex @ mean + reach * convex.norm(dim=1)
    best = convex[int(values.argmin())]
    expected = mean + reach * best / best.norm()
    actual = problem.rows.T @ conflict_averse(backend, problem.gram[None])[0]
    assert (actual - expected).norm() <= 1e-4 * expected.norm()


def test_conflict_averse_at_the_ends(backend: Backend) -> None:
    problem = gram_problem("conflicting", 4)
    u = torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    assert same_bits(conflict_averse(backend, problem.gram[None], u, radius=0.0), u)
    opposite = gram_problem("opposite", 4)
    assert not bool(conflict_averse(backend, opposite.gram[None], u).any())
    least = minimum_norm(backend, problem.gram[None])[0]
    parts = (least * problem.lengths).square().sum()
    norm = float(least @ problem.gram @ least / parts)  # beside what it is made of
    assert not bool(conflict_averse(backend, problem.gram[None], u, rtol=1.01 * norm).any())
    assert bool(conflict_averse(backend, problem.gram[None], u, rtol=0.99 * norm).any())


@pytest.mark.parametrize("kind", KINDS)
def test_backends_agree_on_the_vector(backend: Backend, kind: str) -> None:
    """Weights may differ where rows depend on each other; their combination does not."""
    for tasks in (1, 2, 5, 8):
        problem = gram_problem(kind, tasks, seed=1)
        for solver in (minimum_norm, conflict_averse):
            ours, theirs = (problem.rows.T @ solver(b, problem.gram[None])[0] for b in (backend, REFERENCE))
            assert (ours - theirs).norm() <= 1e-7 * problem.lengths.max()
