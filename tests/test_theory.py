"""What is claimed about transfer, on random quadratics in float64: ``Theta <- M Theta - a grad F(Theta)``."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mt2o_ext.transfer import (
    Constant,
    ExponentialDecay,
    Hat,
    Mean,
    Neighbours,
    Schedule,
    TransferContext,
    TransferRule,
    WithLearningRate,
)
from support.quadratics import Quadratics, line_preferences, random_preferences, random_quadratics

SEEDS = range(5)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def identity(size: int) -> Tensor:
    return torch.eye(size, dtype=torch.float64)


def matrix_of(rule: TransferRule, preferences: Tensor, step: int = 0, lr: float = 1.0) -> Tensor:
    rule.bind(preferences)
    lr_now = torch.tensor(lr, dtype=torch.float64)
    matrix = rule.matrix(TransferContext(preferences, None, None, step, lr_now, initial_lr=1.0))
    return identity(len(preferences)) if matrix is None else matrix


def random_mix(num_subproblems: int, seed: int, strength: float = 0.5) -> Tensor:
    """Non-negative, rows sum to 1, no symmetry; M_kk > 1 - strength."""
    rows = torch.rand(num_subproblems, num_subproblems, dtype=torch.float64, generator=generator(seed))
    return (1 - strength) * identity(num_subproblems) + strength * rows / rows.sum(1, keepdim=True)


def block_max(rows: Tensor) -> float:
    """max_k |row_k|."""
    return rows.norm(dim=1).max().item()


def problem(seed: int, num_subproblems: int = 6, num_parameters: int = 5) -> tuple[Quadratics, Tensor]:
    quadratics = random_quadratics(generator(seed), num_tasks=3, num_parameters=num_parameters)
    return quadratics, random_preferences(generator(seed + 100), num_subproblems, num_tasks=3)


def largest_rate(quadratics: Quadratics, matrix: Tensor) -> float:
    """P1's 2 min M_kk / (mu + L)."""
    return 2 * matrix.diagonal().min().item() / (quadratics.mu + quadratics.smoothness)


def stationary_point(quadratics: Quadratics, preferences: Tensor, matrix: Tensor, rate: float) -> Tensor:
    """The solution of (I - M) Theta + a grad F(Theta) = 0, as one linear system."""
    num_subproblems, num_parameters = len(preferences), quadratics.centres.shape[1]
    coupling = torch.kron(identity(num_subproblems) - matrix, identity(num_parameters))
    curvature = quadratics.curvature(preferences)
    right = rate * torch.einsum("kpq,kq->kp", curvature, quadratics.optimum(preferences))
    return torch.linalg.solve(coupling + rate * torch.block_diag(*curvature), right.flatten()).view_as(right)


# P1: contraction


@pytest.mark.parametrize("seed", SEEDS)
def test_p1_consensus_contracts_to_the_stationary_point(seed):
    quadratics, preferences = problem(seed)
    matrix = random_mix(len(preferences), seed)
    rate = largest_rate(quadratics, matrix)
    target = stationary_point(quadratics, preferences, matrix, rate)
    theta = 10 * normal(*target.shape, seed=seed)
    for _ in range(40):
        stepped = matrix @ theta - rate * quadratics.gradient(theta, preferences)
        assert block_max(stepped - target) <= (1 - rate * quadratics.mu) * block_max(theta - target) * (1 + 1e-12)
        theta = stepped


def test_p1_the_rate_cannot_be_larger():
    """Equal curvatures L and M = I: beyond 2 / (mu + L) the stiff direction contracts more slowly than claimed."""
    quadratics, preferences = problem(0)
    matrix = identity(len(preferences))
    rate = 1.1 * largest_rate(quadratics, matrix)
    stiff = Quadratics(quadratics.smoothness * identity(5).expand(3, 5, 5), quadratics.centres, 0.5, 4.0)
    theta, target = normal(6, 5, seed=0), stiff.optimum(preferences)
    stepped = theta - rate * stiff.gradient(theta, preferences)
    assert block_max(stepped - target) > (1 - rate * quadratics.mu) * block_max(theta - target)


# P2: the bias of transfer


def errors_and_bounds(
    quadratics: Quadratics, preferences: Tensor, tau: Schedule, steps: int
) -> list[tuple[float, float]]:
    """E after each step of a run, and P2's bound from the step before."""
    optimum = quadratics.optimum(preferences)
    spread = torch.cdist(optimum, optimum).max().item()
    rule = Neighbours(tau, width=0.5)
    rate = largest_rate(quadratics, matrix_of(rule, preferences))
    theta, pairs = 3 * normal(*optimum.shape, seed=0), []
    for step in range(steps):
        matrix = matrix_of(rule, preferences, step)
        bound = (1 - rate * quadratics.mu) * block_max(theta - optimum) + (1 - matrix.diagonal().min().item()) * spread
        theta = matrix @ theta - rate * quadratics.gradient(theta, preferences)
        pairs.append((block_max(theta - optimum), bound))
    return pairs


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("tau", [Constant(0.3), ExponentialDecay(0.6, half_life=5)])
def test_p2_the_error_stays_below_its_bound(seed, tau):
    for error, bound in errors_and_bounds(*problem(seed), tau, steps=60):
        assert error <= bound * (1 + 1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_p2_transfer_that_fades_leaves_no_bias_and_constant_transfer_a_bounded_one(seed):
    quadratics, preferences = problem(seed)
    fading = errors_and_bounds(quadratics, preferences, ExponentialDecay(0.3, half_life=5), steps=400)[-1][0]
    constant = errors_and_bounds(quadratics, preferences, Constant(0.3), steps=400)[-1][0]
    assert fading < 1e-12
    optimum = quadratics.optimum(preferences)
    spread = torch.cdist(optimum, optimum).max().item()
    rate = largest_rate(quadratics, matrix_of(Neighbours(0.3, width=0.5), preferences))
    assert 1e-2 * spread < constant <= 0.3 * spread / (rate * quadratics.mu)


# P3: when one step of transfer helps


@pytest.mark.parametrize("seed", SEEDS)
def test_p3_transfer_helps_exactly_below_the_stated_strength(seed):
    quadratics, preferences = problem(seed)
    optimum = quadratics.optimum(preferences)
    # Rows off their optima in a common and in an own direction: some pulls help, some hurt.
    theta = optimum + normal(*optimum.shape, seed=seed) + 3 * normal(1, optimum.shape[1], seed=seed + 1)
    rate = 0.1
    relation = random_mix(len(preferences), seed + 2, strength=1.0)
    plain = theta - rate * quadratics.gradient(theta, preferences)
    error = plain - optimum
    pull = relation @ theta - theta
    slope = (error * pull).sum(1)
    limit = -2 * slope / pull.square().sum(1)
    outcomes = set()
    for strength in (1e-3, 0.05, 0.2, 0.5, 1.0, *(limit * 0.999).tolist(), *(limit * 1.001).tolist()):
        if strength <= 0:
            continue
        mix = (1 - strength) * identity(len(theta)) + strength * relation
        stepped = mix @ theta - rate * quadratics.gradient(theta, preferences)
        better = (stepped - optimum).square().sum(1) < error.square().sum(1)
        assert torch.equal(better, (slope < 0) & (strength < limit))
        outcomes |= set(better.tolist())
    assert outcomes == {True, False}


# P4: consensus is gradient descent on a penalised objective


def penalised(quadratics: Quadratics, preferences: Tensor, matrix: Tensor, rate: float, theta: Tensor) -> float:
    """F(Theta) + (1 / 2a) Theta^T (I - M) Theta."""
    objective = (preferences * quadratics.losses(theta)).sum()
    return (objective + (theta * (theta - matrix @ theta)).sum() / (2 * rate)).item()


def symmetric_mixes(num_subproblems: int) -> dict[str, Tensor]:
    """Signed and with negative eigenvalues too, all with M 1 = 1."""
    preferences = line_preferences(num_subproblems)
    ones = torch.full((num_subproblems, num_subproblems), 1 / num_subproblems, dtype=torch.float64)
    signed = matrix_of(Hat(rate=0.8), preferences)
    axes, _ = torch.linalg.qr(torch.cat([ones[:, :1], normal(num_subproblems, num_subproblems - 1, seed=9)], 1))
    spectrum = torch.linspace(-0.5, 0.9, num_subproblems, dtype=torch.float64)
    spectrum[0] = 1.0
    rotated = axes @ spectrum.diag() @ axes.T
    return {"mean": 0.6 * identity(num_subproblems) + 0.4 * ones, "hat": signed, "rotated": (rotated + rotated.T) / 2}


@pytest.mark.parametrize("name", ["mean", "hat", "rotated"])
@pytest.mark.parametrize("seed", SEEDS)
def test_p4_consensus_descends_on_the_penalised_objective(seed, name):
    quadratics, preferences = problem(seed)
    matrix = symmetric_mixes(len(preferences))[name]
    rate = 0.99 * (1 + torch.linalg.eigvalsh(matrix).min().item()) / quadratics.smoothness
    theta = 3 * normal(len(preferences), 5, seed=seed)
    lowest = penalised(quadratics, preferences, matrix, rate, stationary_point(quadratics, preferences, matrix, rate))
    value = penalised(quadratics, preferences, matrix, rate, theta)
    for _ in range(200):
        theta = matrix @ theta - rate * quadratics.gradient(theta, preferences)
        stepped = penalised(quadratics, preferences, matrix, rate, theta)
        assert stepped <= value + 1e-12 * abs(value)
        value = stepped
    assert value == pytest.approx(lowest, rel=1e-6)


@pytest.mark.parametrize("name", ["mean", "hat", "rotated"])
def test_p4_above_the_largest_rate_consensus_diverges(name):
    matrix = symmetric_mixes(6)[name]
    eigenvalues, modes = torch.linalg.eigh(matrix)
    curvature = 4.0
    rate = 1.01 * (1 + eigenvalues[0].item()) / curvature
    theta = modes[:, :1]
    for _ in range(100):
        theta = matrix @ theta - rate * curvature * theta
    assert theta.norm() > 1.5


# P5: bias against noise

CURVATURE, RATE, NOISE = 1.0, 0.02, 4.0  # h, a, s2


def bias_and_variance(spread: float, coupling: float) -> tuple[float, float]:
    """P5: S2 (r / (h + r))^2 and a s2 / (2 (h + r))."""
    stiffness = CURVATURE + coupling
    return spread * (coupling / stiffness) ** 2, RATE * NOISE / (2 * stiffness)


def best_coupling(spread: float) -> float:
    return RATE * NOISE * CURVATURE / (4 * CURVATURE * spread - RATE * NOISE)


def simulated_bias_and_variance(spread: float, coupling: float) -> tuple[float, float]:
    """The same from 4,000 noisy runs of K = 8 rows on f_k = (h/2) (theta - theta*_k)^2, per degree of freedom.

    Differences to the mean of the rows only: the coupling does not act on the mean.
    """
    num_rows, num_runs = 8, 4_000
    source = generator(0)
    optimum = line_preferences(num_rows)[:, :1] - 0.5
    optimum = optimum * (spread / optimum.var()).sqrt()
    mix = matrix_of(Mean(RATE * coupling), line_preferences(num_rows))
    theta = optimum.expand(-1, num_runs)
    for _ in range(int(6 / (RATE * (CURVATURE + coupling)))):
        noise = NOISE**0.5 * torch.randn(num_rows, num_runs, dtype=torch.float64, generator=source)
        theta = mix @ theta - RATE * (CURVATURE * (theta - optimum) + noise)
    theta = theta - theta.mean(0)
    freedom = num_rows - 1
    bias = (theta.mean(1) - optimum[:, 0]).square().sum() / freedom
    return bias.item(), (theta.var(dim=1).sum() / freedom).item()


@pytest.mark.parametrize("coupling", [0.0, 0.5, 3.0])
def test_p5_bias_and_variance_match_simulated_noise(coupling):
    bias, variance = simulated_bias_and_variance(spread=0.1, coupling=coupling)
    expected_bias, expected_variance = bias_and_variance(spread=0.1, coupling=coupling)
    assert bias == pytest.approx(expected_bias, rel=0.03, abs=1e-4)
    # The formula leaves out a factor 1 / (1 - a (h + r) / 2).
    exact = expected_variance / (1 - RATE * (CURVATURE + coupling) / 2)
    assert variance == pytest.approx(exact, rel=0.03)


def test_p5_the_best_coupling_beats_weaker_and_stronger_ones():
    spread = 0.04
    best = best_coupling(spread)
    errors = [sum(simulated_bias_and_variance(spread, factor * best)) for factor in (0.2, 1.0, 5.0)]
    assert errors[1] < 0.97 * errors[0]
    assert errors[1] < 0.97 * errors[2]
    nearby = [sum(bias_and_variance(spread, factor * best)) for factor in (0.99, 1.0, 1.01)]
    assert min(nearby) == nearby[1]


def test_p5_full_consensus_is_best_where_the_optima_hardly_differ():
    spread = 0.2 * RATE * NOISE / (4 * CURVATURE)
    assert best_coupling(spread) < 0
    errors = [sum(bias_and_variance(spread, coupling)) for coupling in (0.0, 1.0, 10.0, 100.0, 1e6)]
    assert errors == sorted(errors, reverse=True)


def test_p5_coupling_must_follow_a_decaying_learning_rate():
    """With tau constant the front collapses as lr -> 0; `WithLearningRate` keeps the bias where it was."""
    preferences = line_preferences(8)
    optimum = preferences[:, :1] - 0.5
    spreads = {}
    for name, tau in (("constant", Constant(0.02)), ("with lr", WithLearningRate(0.02))):
        for lr in (1.0, 0.01):
            mix = matrix_of(Mean(tau), preferences, lr=lr)
            rate = 0.1 * lr
            coupled = torch.linalg.solve(identity(8) - mix + rate * identity(8), rate * optimum)
            spreads[name, lr] = (coupled.norm() / optimum.norm()).item()
    assert spreads["constant", 1.0] == pytest.approx(1 / 1.2)
    assert spreads["constant", 0.01] == pytest.approx(1 / 21)
    assert spreads["with lr", 0.01] == pytest.approx(spreads["with lr", 1.0])


# Hat


def test_hat_leaves_a_step_from_equal_task_gradients_alone():
    quadratics, preferences = problem(0, num_subproblems=9)
    common = normal(1, 5, seed=0).expand(9, -1)
    step = quadratics.gradient(common, preferences)
    hat = matrix_of(Hat(), preferences)
    torch.testing.assert_close(hat @ step, step, rtol=0, atol=1e-12)


def test_the_bias_of_hat_is_the_curvature_of_the_front():
    """Equal curvatures of all tasks: the front theta*(w) is linear and stays; else what is not linear in w is lost."""
    quadratics, preferences = problem(0, num_subproblems=9)
    hat = matrix_of(Hat(), preferences)
    flat = Quadratics(
        quadratics.curvatures[:1].expand(3, -1, -1), quadratics.centres, quadratics.mu, quadratics.smoothness
    )
    for tasks, straight in ((flat, True), (quadratics, False)):
        optimum = tasks.optimum(preferences)
        stepped = hat @ optimum - 0.1 * tasks.gradient(optimum, preferences)
        assert torch.allclose(stepped, optimum, rtol=0, atol=1e-12) == straight
