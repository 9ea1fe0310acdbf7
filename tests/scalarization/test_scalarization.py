"""Scalarizations: coefficients against autograd, limits, degree laws, ties, broadcasting and bad input."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mt2o_ext.scalarization import (
    COSMOS,
    PBI,
    Linear,
    Log,
    Scalarization,
    SmoothTchebycheff,
    Tchebycheff,
    as_scalarization,
    register,
)

# Every registered one with its defaults, and variants that take another way through the code.
ALL: tuple[Scalarization, ...] = (
    *(make() for make in register.values()),
    Tchebycheff(ideal=0.05),
    SmoothTchebycheff(mu=1e-3, ideal=-0.5),
    PBI(theta=0.0, ideal=0.01),
)
BY_ROW = tuple(each for each in ALL if not each.whole_table)


def draw(seed: int, *shape: int) -> tuple[Tensor, Tensor]:
    """Positive losses spread over two decades and preferences on the simplex."""
    generator = torch.Generator().manual_seed(seed)
    losses = 10.0 ** (2.0 * torch.rand(shape, dtype=torch.float64, generator=generator) - 1.0)
    preferences = torch.rand(shape, dtype=torch.float64, generator=generator) + 0.01
    return losses, preferences / preferences.sum(-1, keepdim=True)


def scaled_by(scalarization: Scalarization, factor: float) -> Scalarization:
    """The same scalarization in units in which all losses are `factor` times as large."""
    options = {
        name: getattr(scalarization, name) * factor for name in ("mu", "ideal", "lam") if hasattr(scalarization, name)
    }
    if isinstance(scalarization, PBI):
        options["theta"] = scalarization.theta
    return type(scalarization)(**options)


@pytest.mark.parametrize("loss_scale", [1.0, 3.0, "per task"])
@pytest.mark.parametrize("scalarization", ALL, ids=repr)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), num_tasks=st.integers(1, 6))
def test_coefficients_are_the_gradient(
    scalarization: Scalarization, loss_scale: float | str, seed: int, num_tasks: int
) -> None:
    losses, preferences = draw(seed, 4, num_tasks)
    scale = [0.5 + task for task in range(num_tasks)] if isinstance(loss_scale, str) else loss_scale
    options = {
        name: getattr(scalarization, name) for name in ("mu", "theta", "ideal", "lam") if hasattr(scalarization, name)
    }
    scalarization = type(scalarization)(**options, loss_scale=scale)
    losses.requires_grad_()
    (expected,) = torch.autograd.grad(scalarization(losses, preferences).sum(), losses)
    coefficients = scalarization.coefficients(losses, preferences)
    assert coefficients.dtype == torch.float64
    assert not coefficients.requires_grad
    torch.testing.assert_close(coefficients, expected, rtol=1e-12, atol=1e-12)


def test_values() -> None:
    losses, preferences = torch.tensor([2.0, 1.0]).double(), torch.tensor([0.25, 0.75]).double()
    assert Linear()(losses, preferences) == 1.25
    assert Linear(loss_scale=[2.0, 0.5])(losses, preferences) == 1.75
    assert Tchebycheff()(losses, preferences) == 0.75
    assert Tchebycheff(ideal=[0.0, 0.9])(losses, preferences) == 0.5
    assert Log()(losses, preferences).item() == pytest.approx(0.25 * math.log(2.0))
    expected = 0.1 * math.log(math.exp(5.0) + math.exp(7.5))
    assert SmoothTchebycheff(mu=0.1)(losses, preferences).item() == pytest.approx(expected)
    # h = (1, 3) / sqrt(10): d1 = 5 / sqrt(10), and d2 = |(2, 1) x h| = 5 / sqrt(10).
    assert PBI(theta=2.0)(losses, preferences).item() == pytest.approx(15.0 / math.sqrt(10.0))


@pytest.mark.parametrize("factor", [1e-8, 1e-3, 1e8])
@pytest.mark.parametrize("scalarization", ALL, ids=repr)
def test_degree_in_the_losses(scalarization: Scalarization, factor: float) -> None:
    """All have degree 1, so the coefficients have degree 0; the logarithm's have degree -1."""
    losses, preferences = draw(7, 64, 3)
    before = scalarization.coefficients(losses, preferences)
    after = scaled_by(scalarization, factor).coefficients(losses * factor, preferences)
    degree = -1 if isinstance(scalarization, Log) else 0
    torch.testing.assert_close(after / factor**degree, before, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("scalarization", ALL, ids=repr)
def test_loss_scale_is_a_change_of_units(scalarization: Scalarization) -> None:
    losses, preferences = draw(3, 8, 2)
    units = torch.tensor([1e-3, 40.0]).double()
    if hasattr(scalarization, "ideal"):
        scalarization = type(scalarization)()
    with_units = type(scalarization)(loss_scale=units)
    torch.testing.assert_close(
        with_units.coefficients(losses * units, preferences), scalarization.coefficients(losses, preferences) / units
    )


def test_smooth_tchebycheff_lies_between_its_limits() -> None:
    losses, preferences = draw(11, 32, 4)
    worst = Tchebycheff()(losses, preferences)
    for mu in (10.0, 1.0, 1e-2, 1e-6, 1e-300):
        value = SmoothTchebycheff(mu=mu)(losses, preferences)
        assert (value >= worst).all()
        assert (value <= (worst + mu * math.log(4.0)) * (1.0 + 1e-15)).all()
    limit = SmoothTchebycheff(mu=1e-6).coefficients(losses, preferences)
    torch.testing.assert_close(limit, Tchebycheff().coefficients(losses, preferences))
    flat = SmoothTchebycheff(mu=1e9).coefficients(losses, preferences)
    torch.testing.assert_close(flat, preferences / 4.0)


def test_smooth_tchebycheff_does_not_overflow() -> None:
    losses, preferences = torch.tensor([1e30, 1.0], dtype=torch.float64), torch.tensor([0.5, 0.5]).double()
    for mu in (1e-8, 1e-300, 5e-324):
        smooth = SmoothTchebycheff(mu=mu)
        assert smooth(losses, preferences) == 5e29
        assert smooth.coefficients(losses, preferences).tolist() == [0.5, 0.0]


def test_tchebycheff_takes_the_lowest_task_on_ties() -> None:
    losses = torch.tensor([[1.0, 2.0, 2.0], [3.0, 3.0, 3.0]], requires_grad=True)
    preferences = torch.full((2, 3), 1.0 / 3.0)
    expected = [[0.0, 1.0 / 3.0, 0.0], [1.0 / 3.0, 0.0, 0.0]]
    torch.testing.assert_close(
        Tchebycheff().coefficients(losses, preferences), torch.tensor(expected).double(), rtol=1e-6, atol=0.0
    )
    (gradient,) = torch.autograd.grad(Tchebycheff()(losses, preferences).sum(), losses)
    torch.testing.assert_close(gradient, torch.tensor(expected))


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_pbi_on_its_ray_has_no_penalty(scale: float) -> None:
    preferences = torch.tensor([0.2, 0.3, 0.5]).double()
    direction = preferences / preferences.norm()
    losses = (scale * preferences / 3.0).requires_grad_()
    (gradient,) = torch.autograd.grad(PBI()(losses, preferences), losses)
    torch.testing.assert_close(PBI().coefficients(losses, preferences), direction)
    torch.testing.assert_close(gradient, direction)
    at_ideal = PBI(ideal=losses.tolist()).coefficients(losses, preferences)
    torch.testing.assert_close(at_ideal, direction)


def test_pbi_holds_back_a_task_that_is_ahead() -> None:
    coefficients = PBI(theta=5.0).coefficients(torch.tensor([1.0, 0.1]), torch.tensor([0.5, 0.5]))
    assert coefficients[0] > 0.0 > coefficients[1]


def test_cosmos_of_losses_without_a_direction_is_the_sum() -> None:
    losses, preferences = torch.zeros(2, 3).double().requires_grad_(), draw(2, 2, 3)[1]
    (gradient,) = torch.autograd.grad(COSMOS()(losses, preferences).sum(), losses)
    assert torch.equal(gradient, preferences)
    assert torch.equal(COSMOS().coefficients(losses, preferences), preferences)


def test_cosmos_without_the_cosine_is_linear_and_with_it_prefers_losses_along_the_preference() -> None:
    losses, preferences = draw(4, 16, 3)
    assert torch.equal(COSMOS(lam=0.0).coefficients(losses, preferences), preferences)
    along, across = preferences, preferences.flip(-1)
    for each in (along, across):
        cosine = torch.nn.functional.cosine_similarity(each, preferences, dim=-1)
        expected = (preferences * each).sum(-1) - 2.0 * cosine
        torch.testing.assert_close(COSMOS()(each, preferences), expected)
    pull = COSMOS().coefficients(along, preferences)
    torch.testing.assert_close(pull, preferences, msg="the cosine is at its largest there")


def test_batch_dimensions_broadcast() -> None:
    losses, preferences = draw(5, 3, 4, 2)
    for scalarization in BY_ROW:
        whole = scalarization.coefficients(losses, preferences[0])
        assert whole.shape == (3, 4, 2)
        assert scalarization(losses, preferences[0]).shape == (3, 4)
        torch.testing.assert_close(whole[2, 1], scalarization.coefficients(losses[2, 1], preferences[0, 1]))
        assert scalarization.coefficients(losses[0, 0], preferences[0]).shape == (4, 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_losses(dtype: torch.dtype) -> None:
    losses, preferences = draw(9, 5, 3)
    losses = losses.to(dtype)
    for scalarization in ALL:
        assert scalarization(losses, preferences).dtype == dtype
        exact = scalarization.coefficients(losses.double(), preferences)
        assert torch.equal(scalarization.coefficients(losses, preferences), exact)


@pytest.mark.parametrize("scalarization", ALL, ids=repr)
def test_no_value_reaches_the_host(scalarization: Scalarization) -> None:
    """On the meta device there are no values, so reading one would raise."""
    losses = torch.ones(4, 2, device="meta")
    assert scalarization.coefficients(losses, losses).shape == (4, 2)
    assert scalarization(losses, losses).shape == (() if scalarization.whole_table else (4,))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("scalarization", BY_ROW, ids=repr)
def test_non_finite_losses_give_nan_in_their_row_only(scalarization: Scalarization, bad: float) -> None:
    losses, preferences = draw(1, 3, 2)
    clean = scalarization.coefficients(losses, preferences)
    losses[1, 0] = bad
    coefficients = scalarization.coefficients(losses, preferences)
    assert coefficients[1].isnan().all()
    assert torch.equal(coefficients[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_log_of_a_loss_that_is_not_positive(bad: float) -> None:
    losses, preferences = torch.tensor([[bad, 1.0], [1.0, 2.0]]), torch.tensor([0.0, 1.0])
    assert Log()(losses, preferences).isnan().tolist() == [True, False]
    assert Log().coefficients(losses, preferences).isnan().tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize("scalarization", ALL, ids=repr)
def test_tensors_that_do_not_fit(scalarization: Scalarization) -> None:
    for call in (scalarization, scalarization.coefficients):
        with pytest.raises(ValueError, match=r"same number of tasks.*\(5, 2\) and \(5, 3\)"):
            call(torch.ones(5, 2), torch.ones(5, 3))
        with pytest.raises(ValueError, match="same number of tasks"):
            call(torch.tensor(1.0), torch.tensor(1.0))
        with pytest.raises(ValueError, match="that broadcast, got shapes"):
            call(torch.ones(5, 2), torch.ones(4, 2))
        with pytest.raises(TypeError, match=r"expected losses as a floating-point tensor.*int64"):
            call(torch.ones(2, dtype=torch.int64), torch.ones(2))
        with pytest.raises(TypeError, match=r"expected preferences as a floating-point tensor.*list"):
            call(torch.ones(2), [0.5, 0.5])
        with pytest.raises(ValueError, match=r"preferences\.to\(losses\.device\)"):
            call(torch.ones(2, device="meta"), torch.ones(2))


def test_options_for_another_number_of_tasks() -> None:
    with pytest.raises(ValueError, match="ideal for 2 tasks, got 3 numbers"):
        Tchebycheff(ideal=[0.0, 1.0, 2.0]).coefficients(torch.ones(2), torch.ones(2))
    with pytest.raises(ValueError, match="loss_scale for 2 tasks, got 1 numbers"):
        Linear(loss_scale=torch.ones(1))(torch.ones(2), torch.ones(2))


def test_bad_options() -> None:
    for mu in (0.0, -1.0):
        with pytest.raises(ValueError, match=r"expected mu > 0.*Tchebycheff\(\)"):
            SmoothTchebycheff(mu=mu)
    for mu in (math.nan, math.inf):
        with pytest.raises(ValueError, match="expected mu finite"):
            SmoothTchebycheff(mu=mu)
    with pytest.raises(TypeError, match="expected mu as a float"):
        SmoothTchebycheff(mu="small")
    with pytest.raises(ValueError, match="theta finite and >= 0"):
        PBI(theta=-1.0)
    with pytest.raises(ValueError, match="expected ideal finite"):
        Tchebycheff(ideal=math.nan)
    with pytest.raises(TypeError, match="expected ideal as a number or one number for each task"):
        Tchebycheff(ideal="low")
    for scale in (0.0, [1.0, -1.0], []):
        with pytest.raises(ValueError, match="expected loss_scale finite and > 0"):
            Linear(loss_scale=scale)


def test_is_a_value() -> None:
    """Options are copied, so equality, hashing, printing and pickling work and no tensor is shared."""
    ideal = torch.tensor([0.5, 1.0])
    smooth = SmoothTchebycheff(0.2, ideal=ideal)
    ideal.zero_()
    assert repr(smooth) == "SmoothTchebycheff(mu=0.2, ideal=(0.5, 1.0), loss_scale=1.0)"
    assert smooth == SmoothTchebycheff(mu=0.2, ideal=[0.5, 1.0]) == pickle.loads(pickle.dumps(smooth))
    assert hash(smooth) == hash(SmoothTchebycheff(mu=0.2, ideal=(0.5, 1.0)))
    assert smooth != SmoothTchebycheff(mu=0.2)
    assert Linear() != Log()


def test_as_scalarization() -> None:
    linear = Linear()
    assert as_scalarization(linear) is linear
    assert as_scalarization("linear") == linear
    assert as_scalarization("SmoothTchebycheff") == as_scalarization("smooth-tchebycheff") == SmoothTchebycheff()
    for wrong in (Linear, None, lambda losses, preferences: losses.sum(-1)):
        with pytest.raises(TypeError, match=r"expected a scalarization or its name.*pass an instance"):
            as_scalarization(wrong)
    with pytest.raises(ValueError, match="did you mean 'tchebycheff'"):
        as_scalarization("chebycheff")
