"""Transfer rules: the properties of their matrices, on data with a known answer."""

from __future__ import annotations

import io
import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from quadratics import line_preferences, random_preferences
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._pytree import tree_map_only

from mt2o_ext.transfer import (
    MGD,
    Constant,
    CosineDecay,
    CrossLearning,
    DistanceDecrease,
    ExponentialDecay,
    Hat,
    Identity,
    LinearDecay,
    Mean,
    Neighbours,
    Schedule,
    Spectral,
    TransferContext,
    TransferRule,
    UserTransfer,
    WithLearningRate,
    as_transfer_rule,
    check_mix,
)
from mt2o_ext.transfer.polynomial import orthonormal_polynomials

RULES = {
    "hat": lambda: Hat(),
    "hat of degree 2": lambda: Hat(degree=2, tau=0.7),
    "spectral": lambda: Spectral(),
    "neighbours": lambda: Neighbours(0.3, width=0.2),
    "two nearest neighbours": lambda: Neighbours(0.3, width=0.2, nearest=2),
    "mean": lambda: Mean(0.1),
    "mgd": lambda: MGD(),
    "distance decrease": lambda: DistanceDecrease(),
    "cross-learning": lambda: CrossLearning(eps=3.0),
}
SYMMETRIC = ("hat", "hat of degree 2", "spectral", "mean", "mgd", "cross-learning")


def every_rule(names=tuple(RULES)):
    return pytest.mark.parametrize("make", [RULES[name] for name in names], ids=list(names))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def centred_gram(*segments: Tensor) -> Tensor:
    """[S, K, K] for parameters [K, P_s] per segment."""
    offsets = [segment - segment.mean(0) for segment in segments]
    return torch.stack([offset @ offset.T for offset in offsets])


def context(
    preferences: Tensor, gram: Tensor | None = None, step: int = 0, lr: float = 0.1, initial_lr: float = 0.1
) -> TransferContext:
    return TransferContext(
        preferences, gram, None, step, lr=torch.tensor(lr, dtype=torch.float64), initial_lr=initial_lr
    )


def matrices(rule: TransferRule, preferences: Tensor, grams: list[Tensor]) -> list[Tensor]:
    """The rule's matrix for each Gram in turn, always as [S, K, K]."""
    rule.bind(preferences)
    answers = [rule.matrix(context(preferences, gram, step)) for step, gram in enumerate(grams)]
    return [answer if answer.dim() == 3 else answer[None] for answer in answers]


def noisy_grams(num_subproblems: int = 10) -> list[Tensor]:
    """Two transfers, two segments of very different scale, getting closer."""
    small, large = normal(num_subproblems, 40), 1e3 * normal(num_subproblems, 60, seed=1)
    return [centred_gram(small, large), centred_gram(0.5 * small, 0.9 * large)]


def simplex_lattice(partitions: int, num_tasks: int) -> Tensor:
    corners = itertools.product(range(partitions + 1), repeat=num_tasks)
    return torch.tensor([c for c in corners if sum(c) == partitions], dtype=torch.float64) / partitions


def identity(num_subproblems: int) -> Tensor:
    return torch.eye(num_subproblems, dtype=torch.float64)


def assert_close(actual: Tensor, expected: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


# Properties of every rule


@every_rule()
@pytest.mark.parametrize("preferences", [line_preferences(10), simplex_lattice(4, 3)], ids=["T=2", "T=3"])
def test_rows_sum_to_one_and_the_matrix_is_stable(make, preferences):
    for matrix in matrices(make(), preferences, noisy_grams(len(preferences))):
        assert matrix.dtype == torch.float64
        assert_close(matrix.sum(-1), torch.ones(matrix.shape[:-1], dtype=torch.float64))
        check_mix(matrix, len(preferences))


@every_rule(SYMMETRIC)
def test_symmetric_rules_are_exactly_symmetric_with_a_spectrum_in_zero_one(make):
    for matrix in matrices(make(), line_preferences(10), noisy_grams()):
        assert torch.equal(matrix, matrix.mT)
        spectrum = torch.linalg.eigvalsh(matrix)
        assert spectrum.min() > -1e-12
        assert spectrum.max() < 1 + 1e-12


@every_rule()
@pytest.mark.parametrize("preferences", [line_preferences(15), simplex_lattice(4, 3)], ids=["T=2", "T=3"])
def test_permuting_the_subproblems_permutes_the_matrix(make, preferences):
    grams = noisy_grams(15)
    order = torch.randperm(15, generator=generator(3))
    plain = matrices(make(), preferences, grams)
    permuted = matrices(make(), preferences[order], [gram[:, order][:, :, order] for gram in grams])
    for before, after in zip(plain, permuted, strict=True):
        assert_close(after, before[:, order][:, :, order])


@every_rule()
def test_equal_rows_stay_equal(make):
    preferences = line_preferences(10)
    row = normal(30)
    theta = row.expand(10, -1)
    for matrix in matrices(make(), preferences, [torch.zeros(2, 10, 10, dtype=torch.float64)] * 2):
        assert_close(matrix @ theta, theta.expand(len(matrix), -1, -1))


@every_rule()
def test_a_common_shift_passes_through(make):
    theta, shift = normal(10, 40), 100 * normal(1, 40, seed=1)
    preferences = line_preferences(10)
    plain = matrices(make(), preferences, [centred_gram(theta)])[0]
    shifted = matrices(make(), preferences, [centred_gram(theta + shift)])[0]
    assert_close(shifted, plain, atol=1e-11)
    assert_close(shifted @ (theta + shift), plain @ theta + shift, atol=1e-9)


@every_rule([name for name in RULES if name != "cross-learning"])
@pytest.mark.parametrize("scale", [1e-60, 1e-8, 1e8, 1e60])
def test_the_scale_of_the_parameters_does_not_matter(make, scale):
    preferences, grams = line_preferences(10), noisy_grams()
    plain = matrices(make(), preferences, grams)
    scaled = matrices(make(), preferences, [scale**2 * gram for gram in grams])
    for before, after in zip(plain, scaled, strict=True):
        assert_close(after, before)


@pytest.mark.parametrize("scale", [1e-60, 1e60])
def test_cross_learning_scales_with_its_radius(scale):
    preferences, grams = line_preferences(10), noisy_grams()
    plain = matrices(CrossLearning(eps=3.0), preferences, grams)
    scaled = matrices(CrossLearning(eps=3.0 * scale), preferences, [scale**2 * gram for gram in grams])
    for before, after in zip(plain, scaled, strict=True):
        assert_close(after, before)


@every_rule()
def test_one_subproblem_has_nothing_to_transfer(make):
    preferences = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    rule = make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rule.bind(preferences)
    matrix = rule.matrix(context(preferences, torch.zeros(2, 1, 1, dtype=torch.float64)))
    assert matrix is None or bool((matrix == 1).all())


@every_rule()
def test_matrix_never_reads_values_on_the_host(make):
    """Under fake tensors every read of a value raises."""
    preferences, grams = line_preferences(10), noisy_grams()
    rule = make()
    rule.bind(preferences)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for name, value in list(vars(rule).items()):
            setattr(rule, name, tree_map_only(Tensor, mode.from_tensor, value))
        fakes = [mode.from_tensor(tensor) for tensor in (preferences, grams[0])]
        assert rule.matrix(context(*fakes)).shape[-2:] == (10, 10)
        with pytest.raises(DataDependentOutputException):
            fakes[0].sum().item()


@every_rule()
def test_state_survives_saving(make):
    preferences, grams = line_preferences(10), [*noisy_grams(), centred_gram(normal(10, 40, seed=5))]
    expected = matrices(make(), preferences, grams)[-1]
    rule = make()
    matrices(rule, preferences, grams[:2])
    file = io.BytesIO()
    torch.save(rule.state_dict(), file)
    file.seek(0)
    resumed = make()
    resumed.bind(preferences)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    matrix = resumed.matrix(context(preferences, grams[2]))
    assert torch.equal(matrix.expand_as(expected), expected)


@pytest.mark.parametrize(
    "rule", [Mean(0.1), DistanceDecrease(), CrossLearning(1.0)], ids=lambda rule: type(rule).__name__
)
def test_state_of_another_rule_or_size_is_refused(rule):
    rule.bind(line_preferences(4))
    with pytest.raises(ValueError, match=f"{type(rule).__name__} expected the state"):
        rule.load_state_dict({"coefficients": torch.zeros(1, 5, dtype=torch.float64)})


@every_rule()
def test_an_unbound_rule_says_so(make):
    with pytest.raises(RuntimeError, match=r"call bind\(preferences\) first"):
        make().matrix(context(line_preferences(10), noisy_grams()[0]))


@every_rule([name for name, make in RULES.items() if make().needs_gram])
def test_a_missing_gram_is_an_error(make):
    rule = make()
    rule.bind(line_preferences(10))
    with pytest.raises(ValueError, match=r"expected context\.gram"):
        rule.matrix(context(line_preferences(10)))


@pytest.mark.parametrize(
    ("preferences", "error", "message"),
    [
        ([[0.5, 0.5]], TypeError, "float64 tensor, got list"),
        (torch.ones(3, 2) / 2, TypeError, "got torch.float32"),
        (torch.ones(2, dtype=torch.float64) / 2, ValueError, "got \\[2\\]"),
        (torch.ones(3, 2, dtype=torch.float64), ValueError, "rows summing to 1"),
        (torch.tensor([[1.5, -0.5]], dtype=torch.float64), ValueError, "non-negative"),
        (torch.tensor([[math.nan, 0.5]], dtype=torch.float64), ValueError, "non-negative"),
    ],
)
def test_bad_preferences_are_refused(preferences, error, message):
    with pytest.raises(error, match=message):
        Mean(0.1).bind(preferences)


def test_due_at_each_every_th_step():
    assert [step for step in range(25) if Hat(every=10).due(step)] == [9, 19]
    assert all(Mean(0.1).due(step) for step in range(5))


def test_what_the_rules_declare():
    assert all(RULES[name]().fixed for name in ("hat", "neighbours", "mean", "mgd"))
    assert not any(rule.fixed for rule in (Spectral(), DistanceDecrease(), CrossLearning(1.0), Identity()))
    assert Spectral(relative=True).relative and not Spectral().relative
    assert CrossLearning(1.0).order == "adapt_then_combine" and Spectral().order is None


@pytest.mark.parametrize("rule", [DistanceDecrease, lambda: CrossLearning(eps=5.0)], ids=["distance", "cross-learning"])
def test_distances_are_those_of_the_whole_model(rule):
    first, second = normal(6, 20), normal(6, 30, seed=1)
    apart = [centred_gram(scale * first, scale * second) for scale in (1.0, 0.9)]
    together = [centred_gram(scale * torch.cat([first, second], 1)) for scale in (1.0, 0.9)]
    preferences = line_preferences(6)
    for left, right in zip(matrices(rule(), preferences, apart), matrices(rule(), preferences, together), strict=True):
        assert_close(left, right)


# Each rule against its formula


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
    full, half = (matrices(Hat(tau=tau), preferences, [None])[0][0] for tau in (1.0, 0.25))
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


def test_spectral_gains_are_james_stein_shrinkage():
    preferences = line_preferences(9)
    theta = preferences**3 @ normal(2, 300) + 0.1 * normal(9, 300, seed=1)
    matrix = matrices(Spectral(), preferences, [centred_gram(theta)])[0][0]
    basis = np.polynomial.legendre.legvander(2 * preferences[:, 0].numpy() - 1, 8)
    energy = (torch.from_numpy(np.linalg.qr(basis)[0]).T @ theta).square().sum(1)
    expected = (1 - energy[-3:].mean() / energy).clamp(min=0)  # degrees 6, 7, 8: the top third
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
    with pytest.raises(ValueError, match="MGD: rate 3 does not fit"):
        MGD(rate=3.0).bind(line_preferences(3))
    with pytest.raises(TypeError, match="got list"):
        MGD([[1.0]])


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


# Schedules


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Constant(0.3), [0.3, 0.3, 0.3, 0.3]),
        (LinearDecay(0.8, steps=100, end=0.4), [0.8, 0.6, 0.4, 0.4]),
        (CosineDecay(0.8, steps=200), [0.8, 0.8 * (1 + math.sqrt(0.5)) / 2, 0.4, 0.0]),
        (ExponentialDecay(0.8, half_life=50), [0.8, 0.4, 0.2, 0.05]),
    ],
)
def test_schedules_over_steps(schedule, expected):
    preferences = line_preferences(2)
    assert [schedule(context(preferences, step=step)) for step in (0, 50, 100, 200)] == pytest.approx(expected)


def test_the_schedule_with_the_learning_rate():
    preferences, schedule = line_preferences(2), WithLearningRate(0.8)
    taus = [schedule(context(preferences, lr=lr, initial_lr=0.1)).item() for lr in (0.1, 0.05, 0.0, 1.0)]
    assert taus == pytest.approx([0.8, 0.4, 0.0, 1.0])
    with pytest.raises(ValueError, match="initial learning rate"):
        schedule(context(preferences, initial_lr=0.0))


def test_a_rule_follows_its_schedule():
    preferences = line_preferences(5)
    rule = Mean(LinearDecay(0.8, steps=100))
    rule.bind(preferences)
    assert_close(rule.matrix(context(preferences, step=50)), matrices(Mean(0.4), preferences, [None])[0][0])
    assert rule.matrix(context(preferences, step=100)) is None
    rule = Mean(WithLearningRate(0.8))
    rule.bind(preferences)
    assert_close(rule.matrix(context(preferences, lr=0.05)), matrices(Mean(0.4), preferences, [None])[0][0])


# Bad settings


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Hat(degree=0), ValueError, "degree >= 1, got 0"),
        (lambda: Hat(degree=1.0), TypeError, "degree as an int"),
        (lambda: Hat(tau=1.5), ValueError, r"tau in \[0, 1\], got 1.5"),
        (lambda: Hat(tau=math.nan), ValueError, "got nan"),
        (lambda: Hat(tau="cosine"), TypeError, "tau as a float"),
        (lambda: Hat(every=0), ValueError, "every >= 1"),
        (lambda: Spectral(every=True), TypeError, "every as an int"),
        (lambda: Mean(-0.1), ValueError, "got -0.1"),
        (lambda: Neighbours(0.1, width=0.0), ValueError, "width > 0"),
        (lambda: Neighbours(0.1, width=0.1, nearest=0), ValueError, "nearest >= 1"),
        (lambda: Neighbours(0.1, width=0.1, nearest=5).bind(line_preferences(5)), ValueError, "nearest <= 4"),
        (lambda: CrossLearning(-1.0), ValueError, "eps finite and >= 0"),
        (lambda: CrossLearning(1.0, iterations=0), ValueError, "iterations >= 1"),
        (lambda: MGD(rate=math.inf), ValueError, "rate finite"),
        (lambda: LinearDecay(0.5, steps=0), ValueError, "steps >= 1"),
        (lambda: CosineDecay(2.0, steps=10), ValueError, "start in"),
        (lambda: ExponentialDecay(0.5, half_life=0.0), ValueError, "half_life > 0"),
        (lambda: WithLearningRate(1.1), ValueError, "value in"),
    ],
)
def test_bad_settings_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


# The user's own matrices


@pytest.mark.parametrize(
    "matrix",
    [
        torch.eye(3),
        torch.full((2, 3, 3), 1 / 3),
        torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]),
        torch.tensor([[5.0, 2.0, -1.0], [2.0, 2.0, 2.0], [-1.0, 2.0, 5.0]]) / 6,  # the hat matrix of three points
        torch.stack([torch.tensor([[5.0, 2.0, -1.0], [2.0, 2.0, 2.0], [-1.0, 2.0, 5.0]]) / 6, torch.eye(3)[[1, 2, 0]]]),
    ],
    ids=["identity", "mean per segment", "rotation", "signed symmetric", "one of each"],
)
def test_check_mix_accepts(matrix):
    check_mix(matrix, 3, 2)


@pytest.mark.parametrize(
    ("matrix", "error", "message"),
    [
        (np.eye(3), TypeError, "got ndarray"),
        (torch.eye(3, dtype=torch.int64), TypeError, "got torch.int64"),
        (torch.eye(4), ValueError, r"\[3, 3\] or \[2, 3, 3\], got \[4, 4\]"),
        (torch.eye(3).expand(4, 3, 3), ValueError, r"got \[4, 3, 3\]"),
        (torch.full((3, 3), math.nan), ValueError, "finite"),
        (torch.eye(3) * 1.25, ValueError, "sum to 1, got 1.25"),
        (torch.tensor([[1.5, -0.5, 0.0], [0, 1, 0], [0, 0, 1]]), ValueError, "neither .smallest entry -0.5"),
        (torch.tensor([[1.5, -0.5, 0.0], [-0.5, 1.5, 0], [0, 0, 1]]), ValueError, r"spectrum in \[-1, 1\].*1, 2\]"),
    ],
)
def test_check_mix_refuses(matrix, error, message):
    with pytest.raises(error, match=message):
        check_mix(matrix, 3, 2)


def test_a_user_function_is_checked_and_gets_the_context():
    preferences = line_preferences(4)
    seen = []

    def mean(given: TransferContext) -> Tensor:
        seen.append(given)
        return torch.full((4, 4), 1 / 4 + 1e-7)

    rule = UserTransfer(mean, every=5)
    rule.bind(preferences)
    given = context(preferences, centred_gram(normal(4, 3)))
    matrix = rule.matrix(given)
    assert seen == [given]
    assert matrix.dtype == torch.float64
    assert_close(matrix.sum(1), torch.ones(4, dtype=torch.float64), atol=1e-15)
    assert rule.every == 5 and rule.needs_gram
    assert UserTransfer(lambda given: None).matrix(given) is None
    with pytest.raises(ValueError, match=r"\[1, 4, 4\], got \[2, 4, 4\]"):
        UserTransfer(lambda given: torch.eye(4).expand(2, 4, 4)).matrix(given)


def test_as_transfer_rule():
    hat = Hat()
    assert as_transfer_rule(hat) is hat
    assert isinstance(as_transfer_rule(None), Identity)
    assert isinstance(as_transfer_rule(False), Identity)
    assert isinstance(as_transfer_rule(lambda given: None), UserTransfer)
    for wrong in (True, "spectral", 0.5):
        with pytest.raises(TypeError, match="expected a transfer rule"):
            as_transfer_rule(wrong)
    with pytest.raises(TypeError, match="got the class Spectral: pass an instance"):
        as_transfer_rule(Spectral)


def test_schedules_are_schedules():
    for schedule in (
        Constant(1.0),
        LinearDecay(1.0, 5),
        CosineDecay(1.0, 5),
        ExponentialDecay(1.0, 5.0),
        WithLearningRate(1.0),
    ):
        assert isinstance(schedule, Schedule)
        assert Hat(tau=schedule).tau is schedule
