"""DistanceDecrease and CrossLearning against their formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mt2o_ext.transfer import (
    CrossLearning,
    DistanceDecrease,
)
from support.quadratics import line_preferences
from support.transfer_problems import (
    assert_close,
    centred_gram,
    context,
    identity,
    matrices,
    noisy_grams,
    normal,
)


def test_distance_decrease_follows_its_formula():
    preferences = line_preferences(4)
    # Rows 0 and 1 come closer, row 2 does not move, row 3 leaves.
    first = torch.tensor([[0.0], [4.0], [10.0], [11.0]], dtype=torch.float64)
    second = torch.tensor([[1.0], [3.0], [10.0], [12.5]], dtype=torch.float64)
    start, matrix = (
        answer[0] for answer in matrices(DistanceDecrease(), preferences, [centred_gram(first), centred_gram(second)])
    )
    assert_close(start, identity(4))
    before, after = (torch.cdist(rows, rows) for rows in (first, second))
    fallen = (before - after).clamp(min=0)
    largest_mean = torch.maximum(before.sum(1), after.sum(1)) / 3
    assert after[0].sum() < before[0].sum() and after[3].sum() > before[3].sum()
    expected = fallen / (fallen.sum(1) + largest_mean)[:, None]
    assert expected[0, 1] > 0 and expected[3].max() == 0
    assert_close(matrix, expected + (1 - expected.sum(1)).diag(), atol=1e-9)


def test_distance_decrease_does_nothing_while_rows_drift_apart():
    theta = normal(4, 9)
    grams = [centred_gram(scale * theta) for scale in (0.0, 1.0, 2.0)]
    for matrix in matrices(DistanceDecrease(), line_preferences(4), grams):
        assert_close(matrix[0], identity(4))


def projection(theta: Tensor, eps: float) -> Tensor:
    """min sum_k |x_k - theta_k|^2 with |x_k - g| <= eps, by SciPy over the centre g; the x_k follow from g."""
    from scipy.optimize import minimize

    rows = theta.numpy()

    def cost(centre: np.ndarray) -> tuple[float, np.ndarray]:
        offset = rows - centre
        radius = np.linalg.norm(offset, axis=1)
        excess = np.maximum(radius - eps, 0)
        return (excess**2).sum() / 2, -((excess / radius)[:, None] * offset).sum(0)

    found = minimize(cost, rows.mean(0), jac=True, method="BFGS", options={"gtol": 1e-12, "maxiter": 2000})
    offset = rows - found.x
    radius = np.linalg.norm(offset, axis=1, keepdims=True)
    return torch.from_numpy(found.x + offset * np.minimum(1, eps / radius))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.7])
@pytest.mark.parametrize(
    ("num_subproblems", "num_parameters", "outlier"), [(3, 2, 1), (6, 4, 1), (6, 4, 5), (8, 20, 1)]
)
def test_cross_learning_is_the_exact_projection(num_subproblems, num_parameters, outlier, share):
    theta = normal(num_subproblems, num_parameters, seed=num_subproblems)
    theta[0] *= outlier
    eps = share * (theta - theta.mean(0)).norm(dim=1).max().item() / outlier
    preferences = line_preferences(num_subproblems)
    matrix = matrices(CrossLearning(eps, iterations=300), preferences, [centred_gram(theta)])[0][0]
    mixed = matrix @ theta
    assert_close(mixed, projection(theta, eps), atol=1e-6)
    pulled = (1 - matrix.diagonal()) > 0
    assert pulled.any()
    assert_close(matrix.sum(0), torch.ones(num_subproblems, dtype=torch.float64))  # keeps the mean


def test_cross_learning_keeps_all_rows_within_the_ball_with_the_default_iterations():
    theta = normal(10, 50)
    rule = CrossLearning(eps=5.0)
    preferences = line_preferences(10)
    rule.bind(preferences)
    for step in range(5):  # as in training: the centre is carried from transfer to transfer
        theta = theta + 0.3 * normal(10, 50, seed=10 + step)
        theta = rule.matrix(context(preferences, centred_gram(theta), step)) @ theta
        centre = rule.state_dict()["coefficients"]
        assert_close(centre.sum(1), torch.ones(1, dtype=torch.float64))
        inside = projection(theta, 5.0)
        assert (theta - inside).norm() < 1e-5 * theta.norm()


def test_cross_learning_converges_in_the_default_iterations_from_a_cold_start():
    theta = normal(8, 20, seed=8)
    eps = 0.7 * (theta - theta.mean(0)).norm(dim=1).max().item()
    matrix = matrices(CrossLearning(eps), line_preferences(8), [centred_gram(theta)])[0][0]
    assert_close(matrix @ theta, projection(theta, eps), atol=1e-5)


def test_cross_learning_with_radius_zero_is_the_mean():
    matrix = matrices(CrossLearning(0.0), line_preferences(6), [centred_gram(normal(6, 9))])[0][0]
    assert_close(matrix, torch.full((6, 6), 1 / 6, dtype=torch.float64))


def test_cross_learning_leaves_rows_inside_the_ball():
    gram = centred_gram(normal(6, 9))
    eps = gram[0].diagonal().max().sqrt().item()
    assert torch.equal(matrices(CrossLearning(eps), line_preferences(6), [gram])[0][0], identity(6))


def test_cross_learning_of_two_rows():
    theta = normal(2, 9)
    distance = (theta[0] - theta[1]).norm().item()
    matrix = matrices(CrossLearning(0.2 * distance), line_preferences(2), [centred_gram(theta)])[0][0]
    assert_close(matrix[0, 1], torch.tensor(0.3, dtype=torch.float64))


def test_cross_learning_with_one_radius_per_segment():
    preferences, gram = line_preferences(10), noisy_grams()[0]
    both = matrices(CrossLearning([3.0, 2e3]), preferences, [gram])[0]
    alone = [matrices(CrossLearning([eps]), preferences, [gram[s : s + 1]])[0][0] for s, eps in enumerate([3.0, 2e3])]
    assert_close(both, torch.stack(alone))
    with pytest.raises(ValueError, match="expected eps for 2 segments, got 3"):
        matrices(CrossLearning([1.0, 1.0, 1.0]), preferences, [gram])
