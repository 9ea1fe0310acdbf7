"""``descent_`` (EPO's linear program) against SciPy's HiGHS."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor

from support.backends import Backend
from support.gram_samplers import GramProblem, gram_problem
from support.ops.solve_calls import descent, draw, minimum_norm, sizes

KINDS = ("random", "conflicting", "scaled", "correlated", "duplicate", "opposite", "low rank", "zero")


def program(problem: GramProblem, losses: Tensor, rays: Tensor, relax: bool) -> tuple[np.ndarray, ...]:
    """Objective, matrix and bound of the linear program in the rows that are there."""
    share = rays * losses / (rays * losses).sum()
    logs = (problem.tasks * share.clamp_min(2.0**-52)).log()
    mu = share @ logs
    present = problem.lengths > 0
    gram, lengths = problem.gram[present][:, present], problem.lengths[present]
    steering = torch.where((logs - mu).abs() <= 4 * problem.tasks * 2.0**-52, 0.0, rays * (logs - mu))
    moved = gram @ steering[present]
    worst = (rays * losses)[present] == (rays * losses)[present].max()
    if mu > 1e-4:
        objective, bound = moved, torch.where(worst, 0.0, moved)
        kept = (moved <= 0) | worst if bool((moved > 0).any()) else torch.ones_like(worst)
        if not bool((moved > 0).any()):
            bound = torch.zeros_like(moved)
        matrix, bound = (gram / lengths[:, None])[kept], (bound / lengths)[kept]
    else:
        objective, matrix, bound = gram.sum(0), gram / lengths[:, None], torch.zeros_like(lengths)
        if not relax and bool(moved.any()):
            unit = moved.abs().max() / lengths.max()
            matrix = torch.cat([matrix, moved[None] / unit])
            bound = torch.cat([bound, moved.max().clamp_max(0)[None] / unit])
    return tuple(part.numpy() for part in (objective, matrix, bound))


def check(backend: Backend, problem: GramProblem, losses: Tensor, rays: Tensor, relax: bool) -> None:
    w = descent(backend, problem.gram[None], losses[None], rays[None], relax=relax)[0]
    present = problem.lengths > 0
    assert bool((w >= 0).all()) and bool((w[~present] == 0).all())
    if not bool(present.any()):
        return
    assert abs(float(w.sum()) - 1) <= 1e-12
    own = w[present].numpy()
    objective, matrix, bound = program(problem, losses, rays, relax)
    unit = float(problem.lengths.max())
    objective = objective / max(np.abs(objective).max(), np.finfo(float).tiny)
    solution = linprog(-objective, -matrix / unit, -bound / unit, np.ones((1, len(own))), [1.0])
    if solution.status == 2:
        assert np.allclose(own, minimum_norm(backend, problem.gram[None])[0][present].numpy(), atol=1e-9)
        return
    assert solution.status == 0
    assert (matrix @ own - bound >= -1e-9 * unit).all()
    assert objective @ own >= -solution.fun - 1e-8


@given(data=st.data(), relax=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_equals_highs(backend: Backend, data: st.DataObject, relax: bool, seed: int) -> None:
    problem = draw(data, backend, KINDS, most=10)
    generator = torch.Generator().manual_seed(seed)
    losses, rays = (0.1 + torch.rand(problem.tasks, dtype=torch.float64, generator=generator) for _ in range(2))
    check(backend, problem, losses, rays, relax)  # balance
    check(backend, problem, 1 / rays, rays, relax)  # descent


def losses_off_the_ray(rays: Tensor, by: float, seed: int = 0) -> Tensor:
    """Their non-uniformity is about by^2 / 2."""
    steps = torch.randn(len(rays), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    steps = (steps - steps.mean()) / (steps - steps.mean()).square().mean().sqrt()
    return (1 + by * steps) / rays


@pytest.mark.parametrize("relax", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_near_the_ray_equals_highs(backend: Backend, kind: str, relax: bool) -> None:
    """On both sides of the tolerance of 1e-4."""
    rays = torch.linspace(1.0, 2.0, 5, dtype=torch.float64)
    for seed in range(4):
        for by in (1e-6, 1e-3, 0.9e-2, 2e-2):
            check(backend, gram_problem(kind, 5, seed), losses_off_the_ray(rays, by, seed), rays, relax)


def test_only_on_the_ray_to_rounding_nothing_has_to_be_kept(backend: Backend) -> None:
    rays = torch.tensor([[1.0, 3.0, 7.0, 11.0]], dtype=torch.float64)
    grams = torch.cat([gram_problem("conflicting", 4, seed).gram[None] for seed in range(8)])
    for by, differs in ((2.0**-52, False), (1e-10, True)):
        losses = losses_off_the_ray(rays[0], by)[None].repeat(8, 1)
        kept, relaxed = (descent(backend, grams, losses, rays.repeat(8, 1), relax=relax) for relax in (False, True))
        assert torch.equal(kept, relaxed) != differs


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_of_zero_equals_highs(backend: Backend, kind: str) -> None:
    losses = torch.tensor([0.0, 1.0, 2.0, 0.5, 1.0], dtype=torch.float64)
    for seed in range(4):
        check(backend, gram_problem(kind, 5, seed), losses, torch.ones_like(losses), relax=False)


def test_where_every_loss_rises_all_rows_count(backend: Backend) -> None:
    """The worst task has the shortest row of all that point one way: along J'a every loss rises."""
    direction = torch.linspace(1.0, 2.0, 6, dtype=torch.float64)
    rows = torch.tensor([[0.1], [10.0], [5.0]], dtype=torch.float64) * direction
    rows = rows + 0.01 * gram_problem("random", 3).rows[:, :6]
    problem = GramProblem("one way", rows)
    for losses in ([3.0, 1.0, 2.0], [1.002, 0.9985, 0.9995]):  # off the ray, and near it
        losses = torch.tensor(losses, dtype=torch.float64)
        share = losses / losses.sum()
        logs = (3 * share).log()
        assert bool((problem.gram @ (logs - share @ logs) < 0).all())
        check(backend, problem, losses, torch.ones_like(losses), relax=False)


def test_the_scale_of_losses_and_rays(backend: Backend) -> None:
    """That of the losses changes nothing; with that of the rays go the bounds of the rows off the ray."""
    rays = torch.linspace(1.0, 2.0, 5, dtype=torch.float64)
    for seed in range(4):
        problem = gram_problem("conflicting", 5, seed)
        for by in (1e-3, 0.5):
            losses = losses_off_the_ray(rays, by, seed)
            plain = descent(backend, problem.gram[None], losses[None], rays[None])
            for factor in (2.0**-60, 2.0**60):
                assert torch.equal(descent(backend, problem.gram[None], factor * losses[None], rays[None]), plain)
            check(backend, problem, losses, 2.0**-60 * rays, relax=False)


@pytest.mark.parametrize("kind", KINDS)
def test_many_tasks(backend: Backend, kind: str) -> None:
    for tasks in (t for t in sizes(backend) if 16 <= t <= 64):
        problem = gram_problem(kind, tasks)
        losses = torch.linspace(0.5, 2.0, tasks, dtype=torch.float64)
        check(backend, problem, losses, torch.ones_like(losses), relax=False)
        check(backend, problem, losses, 1 / losses, relax=True)


def test_descent_conflicts_with_no_row(backend: Backend) -> None:
    for tasks in sizes(backend):
        problem = gram_problem("conflicting", tasks)
        w = descent(backend, problem.gram[None], relax=True)[0]
        products = problem.gram @ w / problem.lengths
        assert bool((products >= -1e-10 * problem.lengths.max()).all())


def test_balance_lowers_the_worst_loss(backend: Backend) -> None:
    """Its row is in no conflict, and the non-uniformity falls along the direction: w'Qa > 0."""
    problem = gram_problem("conflicting", 4)
    losses = torch.tensor([[1.0, 5.0, 1.0, 2.0]], dtype=torch.float64)
    w = descent(backend, problem.gram[None], losses)[0]
    assert (problem.gram @ w)[1] >= -1e-12


def test_losses_without_a_ray_give_nan(backend: Backend) -> None:
    gram = gram_problem("random", 3).gram.expand(3, 3, 3).contiguous()
    losses = torch.tensor([[1.0, -1.0, 2.0], [0.0, 0.0, 0.0], [0.0, 1.0, 2.0]], dtype=torch.float64)
    w = descent(backend, gram, losses)
    assert bool(w[:2].isnan().all())
    assert bool((w[2] >= 0).all()) and abs(float(w[2].sum()) - 1) < 1e-12
