"""Properties that every transfer rule has."""

from __future__ import annotations

import io
import math
import warnings

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._pytree import tree_map_only

from mt2o_ext.transfer import (
    CrossLearning,
    DistanceDecrease,
    Hat,
    Identity,
    Mean,
    Neighbours,
    Spectral,
    check_mix,
    register,
)
from support.quadratics import line_preferences
from support.transfer_problems import (
    RANDOM,
    RULES,
    SYMMETRIC,
    assert_close,
    centred_gram,
    context,
    every_rule,
    generator,
    matrices,
    noisy_grams,
    normal,
    simplex_lattice,
)


def test_every_registered_rule_is_tested_here():
    assert {type(make()) for make in RULES.values()} == set(register.values()) - {Identity}, "give RULES one of each"


@every_rule()
@pytest.mark.parametrize("preferences", [line_preferences(10), simplex_lattice(4, 3)], ids=["T=2", "T=3"])
def test_rows_sum_to_one_and_the_matrix_is_stable(make, preferences):
    for matrix in matrices(make(), preferences, noisy_grams(len(preferences))):
        assert matrix.dtype == torch.float64
        assert_close(matrix.sum(-1), torch.ones(matrix.shape[:-1], dtype=torch.float64))
        check_mix(matrix, len(preferences))


@every_rule()
def test_rows_take_from_their_sources_alone(make):
    """Where ranks share the rows, no others are sent."""
    preferences = line_preferences(10)
    rule = make()
    assert rule.sources() is None  # before `bind` nobody knows
    found = matrices(rule, preferences, noisy_grams())
    sources = rule.sources()
    assert (sources is None) != rule.fixed
    for k, allowed in enumerate(sources or ()):
        taken = {j for matrix in found for j in (matrix[:, k] != 0).any(0).nonzero()[:, 0].tolist()}
        assert taken - {k} <= set(allowed)
    if isinstance(rule, Neighbours) and rule.nearest is not None:
        assert max(map(len, sources)) <= 2 + 1  # the last of two may have an equal on the other side


@every_rule(SYMMETRIC)
def test_symmetric_rules_are_exactly_symmetric_with_a_spectrum_in_zero_one(make):
    for matrix in matrices(make(), line_preferences(10), noisy_grams()):
        assert torch.equal(matrix, matrix.mT)
        spectrum = torch.linalg.eigvalsh(matrix)
        assert spectrum.min() > -1e-12
        assert spectrum.max() < 1 + 1e-12


@every_rule([name for name in RULES if name not in RANDOM])  # the numbers drawn for a subproblem go by its place
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
        (torch.ones(3, 2, dtype=torch.float64), ValueError, "a sum of 2 in row 0"),
        (torch.tensor([[1.5, -0.5]], dtype=torch.float64), ValueError, "not negative"),
        (torch.tensor([[math.nan, 0.5]], dtype=torch.float64), ValueError, "not negative"),
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
