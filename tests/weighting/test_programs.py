"""Weightings that solve a program (over the simplex, over a cone), on hard matrices of 1 to 64 tasks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mt2o_ext.weighting import (
    EDM,
    EPO,
    MGDA,
    CAGrad,
    DualProj,
    MoDo,
    SDMGrad,
    UPGrad,
)
from support.gram_samplers import REGULAR, gram_problem
from support.weighting.gram_checks import SIZES, every_problem, preferences_of, products
from support.weighting.problems import assert_close, assert_parallel, normal


@every_problem()
def test_mgda_solves_its_quadratic_program(problem):
    weights = MGDA()(problem.gram)
    if not problem.lengths.any():
        assert not weights.any()
        return
    assert (weights >= 0).all()
    assert_close(weights.sum(), torch.ones((), dtype=torch.float64))
    direction = problem.rows.T @ weights
    squared = direction @ direction
    along = problem.rows @ direction
    present = problem.lengths > 0
    # The gap bounds how far the squared norm is from the least one.
    rounding = 1e-13 * problem.lengths[weights > 0].max() ** 2
    assert (squared - along[present].min()) <= 1e-9 * squared + rounding
    assert not weights[~present].any()


def test_mgda_of_many_rows_of_very_different_lengths_is_exact():
    """Rows scaled 1e-3 to 1, T = 40, against an exact solver of quadratic programs."""
    import quadprog

    for seed in range(5):
        problem = gram_problem("scaled", 40, seed=seed)
        gram = problem.gram
        weights = MGDA()(gram)
        unit = gram.diagonal().min()
        ridge = 1e-14 * torch.eye(40, dtype=torch.float64) * gram.diagonal()
        constraints = torch.cat([torch.ones(40, 1).double(), torch.eye(40).double()], 1).numpy()
        bounds = torch.tensor([1.0] + [0.0] * 40).double().numpy()
        exact = quadprog.solve_qp(
            ((gram + ridge) / unit).numpy(), torch.zeros(40).double().numpy(), constraints, bounds, 1
        )
        best = torch.from_numpy(exact[0]).clamp(min=0)
        best = best / best.sum()
        assert weights @ gram @ weights <= (1 + 1e-6) * (best @ gram @ best)


@pytest.mark.parametrize("strict", [False, True])
def test_a_zero_row_leaves_or_stops(strict):
    rows = gram_problem("random", 3).rows
    rows = torch.cat([rows, torch.zeros(1, rows.shape[1], dtype=torch.float64)])
    gram = rows @ rows.T
    for method in (MGDA, EDM, CAGrad):
        weights = method(strict=strict)(gram)
        assert weights[3] == 0
        assert bool((weights != 0).any()) != strict
    if not strict:
        for method in (MGDA, EDM):
            assert_close(method()(gram)[:3], method()(gram[:3, :3]))


@pytest.mark.parametrize(("normaliser", "degree"), [("l2", 0), ("loss", 0), ("loss+", -1)])
def test_normalised_mgda_is_mgda_on_normalised_rows(normaliser, degree):
    rows, losses = gram_problem("scaled", 6).rows, 0.1 + normal(6).abs()
    by = {"l2": rows.norm(dim=1), "loss": losses, "loss+": losses * rows.norm(dim=1)}[normaliser]
    normalised = rows / by[:, None]
    alpha = MGDA()(normalised @ normalised.T)
    raw = MGDA(normaliser=normaliser)(rows @ rows.T, losses=losses)
    assert_close(raw, alpha, rtol=1e-7)
    weights = MGDA(normaliser=normaliser, apply_on="normalised")(rows @ rows.T, losses=losses)
    assert_close(rows.T @ weights, normalised.T @ alpha, rtol=1e-7, atol=1e-12)
    assert MGDA(normaliser=normaliser, apply_on="normalised").degree == degree
    assert MGDA(normaliser=normaliser).degree == 1


@every_problem(REGULAR, SIZES)
def test_edm_has_equal_angles_with_the_gradients_of_its_support(problem):
    weights = EDM()(problem.gram)
    assert_close(weights.sum(), torch.ones((), dtype=torch.float64))
    cosines = products(problem, weights)
    support = weights > 0
    least = cosines.min()
    assert (cosines[support] - least).abs().max() <= 1e-9 * cosines.abs().max()


def cagrad_by_scipy(rows: Tensor, preferences: Tensor, c: float) -> Tensor:
    """The direction d with the largest min <g_t, d> in the ball around g0, by SciPy's SLSQP over (d, t)."""
    from scipy.optimize import minimize

    g0 = preferences @ rows
    unit = float(g0.norm())
    small = (rows / unit).numpy()
    centre = (g0 / unit).numpy()
    found = minimize(
        lambda x: -x[-1],
        x0=[*centre, float((small @ centre).min())],
        jac=lambda x: [0.0] * (len(x) - 1) + [-1.0],
        constraints=[
            {"type": "ineq", "fun": lambda x: small @ x[:-1] - x[-1]},
            {"type": "ineq", "fun": lambda x: c * c - ((x[:-1] - centre) ** 2).sum()},
        ],
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return torch.from_numpy(found.x[:-1]) * unit


@pytest.mark.parametrize("kind", ["random", "conflicting", "correlated"])
@pytest.mark.parametrize("c", [0.2, 0.5, 0.9])
def test_cagrad_is_the_best_worst_descent_in_its_ball(kind, c):
    problem, preferences = gram_problem(kind, 4), preferences_of(4)
    weights = CAGrad(c, rescale=0)(problem.gram, preferences=preferences)
    direction = problem.rows.T @ weights
    expected = cagrad_by_scipy(problem.rows, preferences, c)
    worst = (problem.rows @ expected).min()
    assert (problem.rows @ direction).min() >= worst - 1e-6 * worst.abs()
    assert_parallel(direction, expected, 1e-3)


@every_problem(REGULAR)
@pytest.mark.parametrize("c", [0.0, 0.4, 1.5])
def test_cagrad_ends_on_the_sphere_around_the_mean(problem, c):
    preferences = preferences_of(problem.tasks)
    weights = CAGrad(c, rescale=0, rtol=0.0)(problem.gram, preferences=preferences)
    g0 = preferences @ problem.rows
    assert_close((problem.rows.T @ weights - g0).norm(), c * g0.norm(), rtol=1e-6, atol=1e-12 * float(g0.norm()))


def test_cagrad_rescales():
    gram = gram_problem("conflicting", 5).gram
    plain, square, first = (CAGrad(0.4, rescale=rescale)(gram) for rescale in (0, 1, 2))
    assert_close(plain, 1.16 * square)
    assert_close(plain, 1.4 * first)


def test_cagrad_of_stationary_rows_is_zero():
    rows = gram_problem("random", 3).rows
    rows = torch.cat([rows, -rows.sum(0, keepdim=True)])
    assert not CAGrad()(rows @ rows.T).any()


@every_problem()
@pytest.mark.parametrize("method", [DualProj, UPGrad])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_projections_never_conflict_at_any_scale(problem, method, scale):
    scaled = problem.scaled(scale)
    preferences = preferences_of(problem.tasks)
    weights = method()(scaled.gram, preferences=preferences)
    length = (preferences[:, None] * scaled.rows).norm(dim=1).max()
    assert (products(scaled, weights) >= -1e-7 * length).all()
    present = scaled.lengths > 0
    assert (weights[present] >= preferences[present] * (1 - 1e-12)).all()


@every_problem(REGULAR, SIZES)
def test_dualproj_is_the_nearest_direction_without_conflict(problem):
    """The conditions of Karush, Kuhn and Tucker: v >= u, Qv >= 0, complementary."""
    preferences = preferences_of(problem.tasks)
    weights = DualProj()(problem.gram, preferences=preferences)
    along = problem.gram @ weights / problem.lengths
    g0 = (preferences @ problem.rows).norm()
    assert (along >= -1e-9 * g0).all()
    raised = (weights - preferences) * problem.lengths
    assert (raised * along).abs().max() <= 1e-7 * raised.abs().max().clamp(min=g0) * g0


def test_dualproj_without_conflict_is_linear():
    problem, preferences = gram_problem("correlated", 8), preferences_of(8)
    assert torch.equal(DualProj()(problem.gram, preferences=preferences), preferences)


def test_upgrad_is_linear_in_positive_scalings_of_the_rows():
    problem = gram_problem("conflicting", 5)
    gram = problem.gram
    first, second = preferences_of(5, 1), preferences_of(5, 2)
    parts = [UPGrad()(gram, preferences=each) for each in (first, second, (first + second) / 2)]
    assert_close(problem.rows.T @ (parts[0] + parts[1]) / 2, problem.rows.T @ parts[2], atol=1e-10)


@every_problem(("random", "conflicting", "scaled", "duplicate", "low rank"), SIZES)
def test_sdmgrad_is_the_least_vector_towards_the_preferences(problem):
    preferences, lam = preferences_of(problem.tasks), 0.6
    weights = SDMGrad(lam=lam)(problem.gram, preferences=preferences)
    simplex = (1 + lam) * weights - lam * preferences
    assert (simplex >= -1e-12).all()
    assert_close(simplex.sum(), torch.ones((), dtype=torch.float64))
    slope = problem.gram @ (simplex + lam * preferences)
    assert simplex @ slope - slope.min() <= 1e-9 * problem.gram.diagonal().max()


def test_sdmgrad_between_mgda_and_linear():
    gram, preferences = gram_problem("conflicting", 5).gram, preferences_of(5)
    assert_close(SDMGrad(lam=0.0)(gram, preferences=preferences), MGDA()(gram), rtol=1e-9)
    assert_close(SDMGrad(lam=1e6)(gram, preferences=preferences), preferences, atol=1e-5)


def test_sdmgrad_of_two_batches_descends_to_the_exact_answer():
    gram = gram_problem("conflicting", 4).gram
    weighting = SDMGrad(two_batches=True, lr=0.2, iterations=50)
    for _ in range(40):
        weights = weighting(cross=gram)
    assert_close(weights, SDMGrad()(gram), rtol=1e-6, atol=1e-9)


def onto_simplex(vector: Tensor) -> Tensor:
    """By bisection of the shift."""
    low, high = vector.min() - 1, vector.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (vector - middle).clamp(min=0).sum() > 1 else (low, middle)
    return (vector - low).clamp(min=0)


@pytest.mark.parametrize("relative", [False, True])
def test_modo_takes_one_projected_step(relative):
    rows, others = normal(4, 20, seed=1), normal(4, 20, seed=2)
    cross = rows @ others.T
    weighting, simplex = MoDo(gamma=0.1, rho=0.2, scale_free=relative), torch.full((4,), 0.25, dtype=torch.float64)
    unit = cross.diagonal().abs().mean() if relative else 1.0
    for _ in range(4):
        simplex = onto_simplex(simplex - 0.1 * (cross / unit @ simplex + 0.2 * simplex))
        assert_close(weighting(cross=cross), simplex, atol=1e-12)


def test_epo_off_the_ray_balances_and_on_the_ray_descends():
    problem = gram_problem("conflicting", 3)
    preferences = preferences_of(3)
    on_ray = 1 / preferences
    weights = EPO()(problem.gram, losses=on_ray, preferences=preferences)
    assert_close(weights.sum(), torch.ones((), dtype=torch.float64))
    assert (problem.gram @ weights >= -1e-9 * problem.gram.diagonal().max()).all()
    off = on_ray * torch.tensor([3.0, 1.0, 1.0], dtype=torch.float64)
    direction = problem.rows.T @ EPO()(problem.gram, losses=off, preferences=preferences)
    share = preferences * off / (preferences * off).sum()
    logs = (3 * share).log()
    slope = preferences * (logs - share @ logs)
    # The non-uniformity falls along the direction, and so does the worst weighted loss.
    assert slope @ (problem.rows @ direction) > 0
    assert problem.rows[0] @ direction >= -1e-9 * problem.lengths.max() ** 2


def test_epo_skips_negative_losses():
    gram = gram_problem("random", 2).gram.expand(3, 2, 2)
    losses = torch.tensor([[1.0, -1.0], [0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    weights = EPO()(gram, losses=losses)
    assert weights[0].isnan().all() and weights[1:].isfinite().all()
