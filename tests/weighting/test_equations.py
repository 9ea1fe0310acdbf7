"""Weightings that solve an equation or an eigenproblem, on hard matrices of 1 to 64 tasks."""

from __future__ import annotations

import math

import pytest
import torch

from mt2o_ext.weighting import (
    EDM,
    IMTLG,
    MGDA,
    PIVRG,
    AlignedMTL,
    CAGrad,
    ConFIG,
    DualProj,
    FairGrad,
    LinearWeighting,
    NashMTL,
    PCGrad,
    SDMGrad,
    UPGrad,
    Weighting,
)
from support.gram_samplers import REGULAR, gram_problem
from support.weighting.gram_checks import SIZES, every_problem, preferences_of, products
from support.weighting.problems import assert_close, assert_parallel


@every_problem(REGULAR)
@pytest.mark.parametrize("method", [IMTLG, ConFIG])
def test_imtl_g_and_config_have_equal_cosines_with_all_gradients(problem, method):
    weights = method(rtol=1e-13)(problem.gram)
    cosines = products(problem, weights)
    assert_close(cosines, cosines.mean().expand_as(cosines), rtol=1e-5)


@every_problem(REGULAR)
def test_the_cosines_of_config_follow_the_preferences(problem):
    preferences = preferences_of(problem.tasks)
    weights = ConFIG(rtol=1e-13)(problem.gram, preferences=preferences)
    cosines = products(problem, weights)
    assert_close(cosines / cosines.sum(), preferences, rtol=1e-5)
    # Its length is the sum of the projections of the gradients.
    direction = problem.rows.T @ weights
    unit = direction / direction.norm()
    assert_close(direction.norm(), (problem.rows @ unit).sum(), rtol=1e-6)


@pytest.mark.parametrize("method", [IMTLG, ConFIG, NashMTL])
def test_the_direction_does_not_depend_on_the_lengths_of_the_rows(method):
    problem = gram_problem("conflicting", 8)
    lengths = torch.logspace(-3, 1, 8, dtype=torch.float64)
    rows = problem.rows * lengths[:, None]
    plain = problem.rows.T @ method()(problem.gram)
    assert_parallel(rows.T @ method()(rows @ rows.T), plain, 1e-7)


@pytest.mark.parametrize("method", [MGDA, PCGrad])
def test_the_direction_of_others_does(method):
    problem = gram_problem("conflicting", 8)
    rows = problem.rows * torch.logspace(-3, 1, 8, dtype=torch.float64)[:, None]
    ours = rows.T @ method()(rows @ rows.T, generator=torch.Generator().manual_seed(0))
    plain = problem.rows.T @ method()(problem.gram, generator=torch.Generator().manual_seed(0))
    assert ours @ plain < 0.99 * ours.norm() * plain.norm()


def test_imtl_g_is_parallel_to_config():
    problem = gram_problem("scaled", 7)
    imtl, config = (problem.rows.T @ method()(problem.gram) for method in (IMTLG, ConFIG))
    assert_parallel(imtl, config, 1e-8)
    assert_close(IMTLG()(problem.gram).sum(), torch.ones((), dtype=torch.float64))


def test_imtl_g_whose_sum_cancels_is_zero():
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    assert not IMTLG()(rows @ rows.T).any()


@pytest.mark.parametrize("scale", ["min", "median", "mean"])
@pytest.mark.parametrize("tasks", SIZES)
def test_aligned_mtl_makes_all_singular_values_equal(scale, tasks):
    gram = gram_problem("conflicting", tasks).gram
    weighting = AlignedMTL(scale=scale, rtol=1e-13)
    matrix = weighting(gram.expand(tasks, tasks, tasks), preferences=torch.eye(tasks, dtype=torch.float64)).T
    values = torch.linalg.eigvalsh(gram)
    sigma = {"min": values.min(), "median": values.median(), "mean": values.mean()}[scale]
    assert_close(matrix @ gram @ matrix, sigma * torch.eye(tasks, dtype=torch.float64), atol=1e-7 * float(sigma))
    assert_close(matrix, matrix.T, rtol=1e-6, atol=1e-9 * float(matrix.abs().max()))


def test_aligned_mtl_of_rank_one_is_finite():
    rows = gram_problem("random", 1).rows.expand(3, -1) * torch.tensor([[1.0], [2.0], [-1.0]], dtype=torch.float64)
    for scale in ("min", "median", "mean"):
        assert AlignedMTL(scale=scale)(rows @ rows.T).isfinite().all()


@every_problem(("random", "conflicting", "scaled", "correlated"), SIZES)
@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 5.0])
def test_fair_gradients_solve_their_equation(problem, alpha):
    preferences = preferences_of(problem.tasks)
    weights = FairGrad(alpha)(problem.gram, preferences=preferences)
    assert (weights > 0).all()
    along = problem.gram @ weights
    assert_close(weights, problem.tasks * preferences * along**-alpha, rtol=1e-5)


def test_fairgrad_from_linear_to_nash():
    gram, preferences = gram_problem("random", 5).gram, preferences_of(5)
    given = {"gram": gram, "preferences": preferences}
    assert_close(FairGrad(0.0)(**given), 5 * LinearWeighting()(**given))
    assert_close(FairGrad(1.0)(**given), NashMTL(max_norm=None)(**given))
    small = FairGrad(0.05)(**given)
    assert_parallel(small, 5 * preferences, 0.25)


def test_fairgrad_with_a_large_alpha_is_max_min():
    """Among directions of length one it has nearly the largest least product."""
    problem = gram_problem("random", 3)
    best = 0.0
    for alpha in (1.0, 5.0, 20.0):
        direction = problem.rows.T @ FairGrad(alpha)(problem.gram)
        worst = float((problem.rows @ direction).min() / direction.norm())
        assert worst > best
        best = worst
    minimum_norm = problem.rows.T @ MGDA()(problem.gram)
    assert best > 0.9 * float(minimum_norm.norm())


@every_problem(REGULAR, SIZES)
def test_nash_products_are_one(problem):
    weights = NashMTL(max_norm=None)(problem.gram)
    assert_close(weights * (problem.gram @ weights), torch.ones(problem.tasks, dtype=torch.float64), rtol=1e-6)
    assert_close((problem.rows.T @ NashMTL()(problem.gram)).norm(), torch.ones((), dtype=torch.float64))


def test_nash_of_two_tasks_in_closed_form():
    q11, q22, q12 = 2.0, 5.0, -1.5
    ratio = math.sqrt(q11 / q22)
    first = (q11 + q12 * ratio) ** -0.5
    gram = torch.tensor([[q11, q12], [q12, q22]], dtype=torch.float64)
    assert_close(NashMTL(max_norm=None)(gram), torch.tensor([first, first * ratio], dtype=torch.float64))


def test_nash_keeps_its_weights_between_updates():
    weighting = NashMTL(every=3, max_norm=None)
    grams = [gram_problem("random", 4, seed=seed).gram for seed in range(5)]
    weights = [weighting(gram) for gram in grams]
    assert torch.equal(weights[1], weights[0]) and torch.equal(weights[2], weights[0])
    assert torch.equal(weights[4], weights[3])
    assert_close(weights[3], NashMTL(max_norm=None)(grams[3]))


def test_nash_where_gradients_cancel_is_zero():
    rows = torch.tensor([[1.0, 0.5], [-1.0, -0.5]], dtype=torch.float64)
    assert not NashMTL()(rows @ rows.T).any()


def test_pivrg_is_fair_and_leans_to_the_tasks_that_lost_most():
    gram = gram_problem("random", 4).gram
    weighting = PIVRG(bound=1.8, min_temperature=5.0)
    assert_close(weighting(gram), FairGrad(2.0)(gram))
    for degradation in ([0.0, 1.0, 2.0, 3.0], [-50.0, 200.0, 10.0, 0.0]):
        weighting.set_degradation(torch.tensor(degradation))
        weights = weighting(gram)
        spread = max(degradation) - min(degradation)
        tau = max(spread / math.log(1.8), 5.0)
        targets = 4 * torch.softmax(torch.tensor(degradation, dtype=torch.float64) / tau, 0)
        assert targets.max() / targets.min() <= 1.8 * (1 + 1e-12)
        assert_close(gram @ weights, (targets / weights).sqrt(), rtol=1e-6)
    with pytest.raises(ValueError, match="expected degradation"):
        weighting.set_degradation(torch.zeros(3))


@pytest.mark.parametrize(
    ("weighting", "each"),
    [
        (UPGrad(), 1 / 4),
        (DualProj(), 1 / 4),
        (MGDA(), 1 / 4),
        (IMTLG(), 1 / 4),
        (EDM(), 1 / 4),
        (AlignedMTL(), 1 / 4),
        (SDMGrad(), 1 / 4),
        (PCGrad(), 1.0),
        (ConFIG(), 1.0),
        (NashMTL(max_norm=None), 1.0),
        (NashMTL(), 1 / 2),
        (FairGrad(), 1.0),
        (CAGrad(0.5, rescale=0), 1.5 / 4),
        (CAGrad(0.5), 1.5 / 4 / 1.25),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Weighting) else f"{value:.3g}",
)
def test_weights_of_orthonormal_rows(weighting, each):
    weights = weighting(torch.eye(4, dtype=torch.float64))
    assert_close(weights, torch.full((4,), each, dtype=torch.float64), rtol=1e-9)
