"""Hat, Spectral and the fixed rules against their formulas."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from mt2o_ext.transfer import (
    MGD,
    Hat,
    Identity,
    Mean,
    Neighbours,
    Spectral,
)
from mt2o_ext.transfer.polynomial import orthonormal_polynomials
from support.quadratics import line_preferences, random_preferences
from support.transfer_problems import (
    assert_close,
    centred_gram,
    context,
    generator,
    identity,
    matrices,
    noisy_grams,
    normal,
    simplex_lattice,
)


def test_identity_does_nothing():
    rule = Identity()
    rule.bind(line_preferences(5))
    assert rule.matrix(context(line_preferences(5))) is None
    assert rule.state_dict() == {}


def test_hat_of_degree_one_is_the_least_squares_projection_on_the_preferences():
    preferences = random_preferences(generator(), 9, 3)
    matrix = matrices(Hat(), preferences, [None])[0][0]
    assert_close(matrix, preferences @ torch.linalg.pinv(preferences))


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_hat_keeps_polynomials_of_its_degree_and_removes_what_is_orthogonal(degree):
    preferences = random_preferences(generator(1), 40, 3)
    x, y = preferences[:, 0], preferences[:, 1]
    powers = [x**i * y**j for i in range(degree + 1) for j in range(degree + 1 - i)]
    basis = torch.stack(powers, 1)
    front = basis @ normal(len(powers), 30)
    noise = normal(40, 30, seed=1)
    noise = noise - basis @ torch.linalg.lstsq(basis, noise).solution
    matrix = matrices(Hat(degree), preferences, [None])[0][0]
    assert_close(matrix @ (front + noise), front, atol=1e-9)


def test_hat_of_a_single_task_is_the_mean():
    preferences = torch.ones(4, 1, dtype=torch.float64)
    assert_close(matrices(Hat(), preferences, [None])[0][0], torch.full((4, 4), 0.25, dtype=torch.float64))


def test_hat_with_tau_leaves_that_share_of_the_noise():
    preferences = line_preferences(8)
    full, half = (matrices(Hat(rate=tau), preferences, [None])[0][0] for tau in (1.0, 0.25))
    assert_close(half, 0.75 * identity(8) + 0.25 * full)


@pytest.mark.parametrize(
    ("rule", "enough", "too_few"),
    [
        (Hat(), line_preferences(4), line_preferences(3)),
        (Hat(degree=2), line_preferences(6), line_preferences(5)),
        (Hat(), simplex_lattice(2, 3), simplex_lattice(2, 3)[:5]),
        (Spectral(), line_preferences(4), line_preferences(3)),
        (Spectral(), simplex_lattice(2, 3)[:5], simplex_lattice(2, 3)[:4]),
        (Spectral(), line_preferences(4), line_preferences(3).repeat(4, 1)),
    ],
)
def test_too_few_subproblems_mean_one_warning_and_no_transfer(rule, enough, too_few):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rule.bind(enough)
    needs_gram = rule.needs_gram
    with pytest.warns(UserWarning, match=r"transfers nothing: expected .* got") as caught:
        rule.bind(too_few)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rule.matrix(context(too_few)) is None
    assert not rule.needs_gram
    rule.bind(enough)
    assert rule.needs_gram == needs_gram
    assert rule.matrix(context(enough, centred_gram(normal(len(enough), 9)))) is not None


@pytest.mark.parametrize(
    "preferences",
    [line_preferences(100), random_preferences(generator(), 40, 3), simplex_lattice(4, 4)],
    ids=["T=2", "T=3", "T=4"],
)
def test_the_modes_are_orthonormal_polynomials_of_ascending_degree(preferences):
    phi, degrees = orthonormal_polynomials(preferences)
    num_points, num_tasks = preferences.shape
    assert phi.shape == (num_points, num_points)
    assert_close(phi.T @ phi, identity(num_points), atol=1e-13)
    expected = [d for d in range(num_points) for _ in range(math.comb(d + num_tasks - 2, d))]
    assert degrees == expected[:num_points]
    cubic = (preferences @ normal(num_tasks, 5)) ** 3
    low = phi[:, [degree <= 3 for degree in degrees]]
    assert_close(low @ (low.T @ cubic), cubic, atol=1e-11)


def mode_gains(matrix: Tensor, positions: Tensor) -> Tensor:
    """Phi_m^T M Phi_m with Phi from NumPy's Legendre basis: the lambda_m, by another road."""
    basis = np.polynomial.legendre.legvander(2 * positions.numpy() - 1, len(positions) - 1)
    phi = torch.from_numpy(np.linalg.qr(basis)[0])
    return (phi.T @ matrix @ phi).diagonal()


def test_spectral_keeps_a_linear_front_and_removes_the_noise():
    preferences = line_preferences(10)
    front = preferences @ normal(2, 20_000)
    theta = front + 1e-2 * normal(10, 20_000, seed=1)
    matrix = matrices(Spectral(), preferences, [centred_gram(theta)])[0][0]
    gains = mode_gains(matrix, preferences[:, 0])
    assert_close(gains[:2], torch.ones(2, dtype=torch.float64), atol=1e-3)
    assert gains[2:].max() < 0.05
    before, after = ((rows - front).square().mean() for rows in (theta, matrix @ theta))
    assert after < 0.25 * before  # 2 of 10 modes are left


def test_spectral_returns_an_exactly_linear_front():
    preferences = simplex_lattice(3, 3)
    front = preferences @ normal(3, 50)
    matrix = matrices(Spectral(), preferences, [centred_gram(front)])[0][0]
    assert_close(matrix @ front, front)


def test_spectral_averages_pure_noise():
    preferences = line_preferences(10)
    matrix = matrices(Spectral(), preferences, [centred_gram(normal(10, 20_000))])[0][0]
    assert_close(matrix, torch.full((10, 10), 0.1, dtype=torch.float64), atol=0.03)


@pytest.mark.parametrize(
    ("num_subproblems", "noisy"), [(4, [3]), (5, [3, 4]), (6, [4, 5]), (7, [5, 6]), (9, [6, 7, 8]), (10, [7, 8, 9])]
)
def test_spectral_gains_are_james_stein_shrinkage(num_subproblems, noisy):
    """noisy: the degrees above two thirds of the highest; one at two thirds (of 3, 6 and 9) is still signal."""
    preferences = line_preferences(num_subproblems)
    theta = preferences**3 @ normal(2, 300) + 0.1 * normal(num_subproblems, 300, seed=1)
    matrix = matrices(Spectral(), preferences, [centred_gram(theta)])[0][0]
    basis = np.polynomial.legendre.legvander(2 * preferences[:, 0].numpy() - 1, num_subproblems - 1)
    energy = (torch.from_numpy(np.linalg.qr(basis)[0]).T @ theta).square().sum(1)
    expected = (1 - energy[noisy].mean() / energy).clamp(min=0)
    expected[0] = 1
    assert_close(mode_gains(matrix, preferences[:, 0]), expected, atol=1e-11)


def test_spectral_treats_segments_separately():
    preferences, grams = line_preferences(10), noisy_grams()
    both = matrices(Spectral(), preferences, grams[:1])[0]
    alone = [matrices(Spectral(), preferences, [grams[0][s : s + 1]])[0][0] for s in range(2)]
    assert_close(both, torch.stack(alone))


@pytest.mark.parametrize("offset", [0.0, 1e-30], ids=["equal rows", "equal rows, rounded mean"])
def test_spectral_is_the_identity_where_nothing_differs(offset):
    gram = torch.full((1, 6, 6), offset, dtype=torch.float64)
    assert torch.equal(matrices(Spectral(), line_preferences(6), [gram])[0][0], identity(6))


def test_spectral_averages_subproblems_with_the_same_preference():
    preferences = line_preferences(5).repeat(2, 1)
    theta = normal(10, 50)
    mixed = matrices(Spectral(), preferences, [centred_gram(theta)])[0][0] @ theta
    assert_close(mixed[:5], mixed[5:])


def test_mean():
    theta = normal(5, 7)
    matrix = matrices(Mean(0.25), line_preferences(5), [None])[0][0]
    assert_close(matrix @ theta, 0.75 * theta + 0.25 * theta.mean(0))


def test_neighbours_weigh_by_distance():
    preferences = line_preferences(3)  # neighbours sqrt(1/2) apart, ends sqrt(2)
    matrix = matrices(Neighbours(0.2, width=0.5), preferences, [None])[0][0]
    near, far = math.exp(-1), math.exp(-4)
    ends = [0.8, 0.2 * near / (near + far), 0.2 * far / (near + far)]
    expected = torch.tensor([ends, [0.1, 0.8, 0.1], ends[::-1]], dtype=torch.float64)
    assert_close(matrix, expected)


def test_neighbours_keep_all_that_are_equally_near():
    matrix = matrices(Neighbours(0.2, width=0.5, nearest=1), line_preferences(4), [None])[0][0]
    ends = [0.8, 0.2, 0.0, 0.0]
    expected = torch.tensor([ends, [0.1, 0.8, 0.1, 0], [0, 0.1, 0.8, 0.1], ends[::-1]], dtype=torch.float64)
    assert_close(matrix, expected)


def test_a_tiny_width_leaves_the_nearest_neighbour():
    preferences = torch.tensor([[0.0, 1.0], [0.4, 0.6], [1.0, 0.0]], dtype=torch.float64)
    matrix = matrices(Neighbours(1.0, width=1e-9), preferences, [None])[0][0]
    assert_close(matrix, torch.tensor([[0, 1, 0], [1, 0, 0], [0, 1, 0]], dtype=torch.float64))


def test_mgd_pulls_along_the_relation():
    relation = torch.tensor([[9.0, 1.0, 0.5], [0.0, 9.0, 2.0], [0.25, 0.0, 9.0]])
    theta = normal(3, 7)
    matrix = matrices(MGD(relation, rate=0.1), line_preferences(3), [None])[0][0]
    pull = [sum(relation[k, j].item() * (theta[j] - theta[k]) for j in range(3)) for k in range(3)]
    assert_close(matrix @ theta, theta + 0.1 * torch.stack(pull))


def test_mgd_uses_the_cosines_of_the_preferences():
    preferences = line_preferences(3)
    matrix = matrices(MGD(rate=0.01), preferences, [None])[0][0]
    cosine = math.sqrt(0.5)
    assert_close(matrix[0, 1:], torch.tensor([0.01 * cosine, 0.0], dtype=torch.float64))


def test_mgd_refuses_a_relation_that_does_not_fit():
    with pytest.raises(ValueError, match=r"shape \[3, 3\], got \[2, 2\]"):
        MGD(torch.eye(2)).bind(line_preferences(3))
    with pytest.raises(ValueError, match="MGD: rate 1 does not fit"):
        MGD(rate=1.0).bind(line_preferences(3))
    with pytest.raises(TypeError, match="got list"):
        MGD([[1.0]])
