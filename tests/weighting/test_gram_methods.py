"""Weightings of one Gram matrix: what defines each of them, on hard matrices of 1 to 64 tasks."""

from __future__ import annotations

import math

import pytest
import torch
from gram_samplers import KINDS, REGULAR, GramProblem, gram_problem
from torch import Tensor
from weighting_problems import assert_close, assert_parallel, normal

from mt2o_ext.weighting import (
    EDM,
    EPO,
    IMTLG,
    MGDA,
    PIVRG,
    AlignedMTL,
    CAGrad,
    ConFIG,
    DualProj,
    FairGrad,
    LinearWeighting,
    MoDo,
    NashMTL,
    PCGrad,
    SDMGrad,
    UPGrad,
    Weighting,
)

SIZES = (2, 3, 8, 40)


def every_problem(kinds=tuple(KINDS), sizes=(1, *SIZES, 64)) -> pytest.MarkDecorator:
    problems = [gram_problem(kind, tasks, seed=1) for kind in kinds for tasks in sizes]
    return pytest.mark.parametrize("problem", problems, ids=repr)


def preferences_of(tasks: int, seed: int = 3) -> Tensor:
    parts = 0.1 + normal(tasks, seed=seed).abs()
    return parts / parts.sum()


def products(problem: GramProblem, weights: Tensor) -> Tensor:
    """<g_t, d> / |g_t|, 0 for rows that are zero."""
    lengths = problem.lengths
    along = problem.rows @ (problem.rows.T @ weights)
    return torch.where(lengths > 0, along / torch.where(lengths > 0, lengths, 1.0), 0.0)


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
    weighting, simplex = MoDo(gamma=0.1, rho=0.2, relative=relative), torch.full((4,), 0.25, dtype=torch.float64)
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
    assert weights[:2].isnan().all() and weights[2].isfinite().all()


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
