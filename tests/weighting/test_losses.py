"""Weightings that read losses: their formulas in float64, their fixed points, their properties."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mt2o_ext.weighting import (
    DWA,
    FAMO,
    GLS,
    IMTLL,
    RGW,
    RLW,
    STCH,
    GradNorm,
    InverseTemperature,
    LinearWeighting,
    Relative,
    UncertaintyWeighting,
    Weighting,
)
from mt2o_ext.weighting.learning import TableAdam
from support.weighting.problems import adam, assert_close, by_autograd, normal


def losses(num_tasks: int = 4, seed: int = 0) -> Tensor:
    return 0.1 + normal(num_tasks, seed=seed).abs()


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_ls_is_the_preferences_or_the_values():
    preferences = tensor(0.2, 0.3, 0.5)
    assert torch.equal(LinearWeighting()(losses=losses(3), preferences=preferences), preferences)
    assert_close(LinearWeighting()(losses=losses(3)), torch.full((3,), 1 / 3, dtype=torch.float64))
    assert torch.equal(LinearWeighting(1.0)(losses=losses(3)), torch.ones(3, dtype=torch.float64))
    assert torch.equal(LinearWeighting([1, 2, 4])(losses=losses(3)), tensor(1, 2, 4))


def test_inverse_temperatures_are_in_proportion_to_one_over_alpha():
    alpha = tensor(0.2, 0.05, 1.0, 3.0)
    log_alpha = alpha.log().requires_grad_()
    weighting = InverseTemperature(log_alpha)
    weights = weighting(losses=losses())
    assert_close(weights, 4 / alpha / (1 / alpha).sum())
    assert not weights.requires_grad
    with torch.no_grad():
        log_alpha += 1.0  # in another unit of the rewards
    assert_close(weighting(losses=losses()), weights)
    with torch.no_grad():
        log_alpha[0] = 5.0  # learned by another optimizer
    assert weighting(losses=losses())[0] < 0.1 * weights[0]
    assert torch.equal(InverseTemperature()(losses=losses()), torch.ones(4, dtype=torch.float64))


def test_inverse_temperatures_of_each_subproblem():
    log_alpha = normal(3, 4)
    weights = InverseTemperature(log_alpha.float())(losses=losses().expand(3, 4))
    for row, logs in zip(weights, log_alpha, strict=True):
        assert_close(row, InverseTemperature(logs.float())(losses=losses()))
    with pytest.raises(ValueError, match=r"log_alpha of shape \(4,\) or \(1, 4\), got \(3, 4\)"):
        InverseTemperature(log_alpha)(losses=losses())
    for wrong in ([0.1, 0.2], torch.tensor([1, 2])):
        with pytest.raises(TypeError, match="expected log_alpha as a floating-point tensor"):
            InverseTemperature(wrong)


@pytest.mark.parametrize("weighting", [RLW(), RGW(), RLW(dirichlet=True)])
def test_random_weights_lie_on_the_simplex_and_are_fair(weighting):
    batch = losses(3).expand(20_000, 3)
    weights = weighting(losses=batch, generator=torch.Generator().manual_seed(2))
    assert (weights > 0).all()
    assert_close(weights.sum(1), torch.ones(20_000, dtype=torch.float64))
    assert (weights.mean(0) - 1 / 3).abs().max() < 4 * float(weights.std()) * 20_000**-0.5


def test_rlw_is_the_softmax_of_normal_numbers_and_dirichlet_is_uniform():
    batch = losses(3).expand(20_000, 3)
    logs = RLW()(losses=batch, generator=torch.Generator().manual_seed(3)).log()
    # log w_i - log w_j = z_i - z_j has variance 2.
    assert abs(float((logs[:, 0] - logs[:, 1]).var()) - 2) < 4 * 2 * (2 / 20_000) ** 0.5
    flat = RLW(dirichlet=True)(losses=batch, generator=torch.Generator().manual_seed(3))
    # Under Dirichlet(1, 1, 1) the share of one task is above x with probability (1 - x)^2.
    for x in (0.1, 0.5, 0.9):
        chance = (1 - x) ** 2
        assert abs(float((flat[:, 0] > x).double().mean()) - chance) < 4 * (chance * (1 - chance) / 20_000) ** 0.5


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_the_small_adam_is_torchs(weight_decay):
    gradients = [normal(2, 3, seed=i) for i in range(6)]
    rule = TableAdam(0.05, weight_decay)
    ones = torch.ones(2, 3, dtype=torch.float64)
    state = {"value": ones, **rule.start(ones)}
    for gradient in gradients:
        rule.step(state, "value", gradient)
    assert_close(state["value"], adam(gradients, ones, 0.05, weight_decay))


@pytest.mark.parametrize("initial", [0.0, -0.5])
def test_uw_is_half_the_precision_and_descends_its_loss(initial):
    weighting, row = UncertaintyWeighting(initial=initial, lr=0.1), losses()
    first, second = weighting(losses=row), weighting(losses=row)
    start = torch.full((4,), initial, dtype=torch.float64)
    assert_close(first, (-start).exp() / 2)
    free = start.clone().requires_grad_()
    slope = by_autograd(free, ((-free).exp() * row / 2 + free / 2).sum())
    assert_close(second, (-adam([slope], start, 0.1)).exp() / 2)


def test_uw_and_imtl_l_come_to_rest_where_the_weighted_losses_are_equal():
    row = losses()
    for weighting, product in ((UncertaintyWeighting(lr=0.05), 0.5), (IMTLL(lr=0.05), 1.0)):
        for _ in range(1500):
            weights = weighting(losses=row)
        assert_close(weights * row, torch.full_like(row, product), rtol=1e-3)


def test_imtl_l_is_twice_uw_of_minus_a():
    row = losses()
    ours, other = IMTLL(lr=0.1), UncertaintyWeighting(lr=0.1)
    for _ in range(5):
        # Adam does not feel that the gradient is twice as large and of the other sign, but for its eps.
        assert_close(ours(losses=row), 2 * other(losses=row), rtol=1e-6)


def test_relative_losses_give_uw_its_scale_law():
    for scale in (1e-8, 1e8):
        plain, scaled = (Relative(UncertaintyWeighting(lr=0.1)) for _ in range(2))
        for step in range(4):
            row = losses(seed=step)
            assert_close(scale * scaled(losses=scale * row), plain(losses=row))


def test_relative_to_given_losses():
    row, reference = losses(), tensor(1, 2, 3, 4)
    weights = Relative(UncertaintyWeighting(lr=0.1), [1, 2, 3, 4])
    inner = UncertaintyWeighting(lr=0.1)
    for _ in range(3):
        assert_close(weights(losses=row), inner(losses=row / reference) / reference)


def test_dwa_follows_the_ratio_of_two_epochs():
    weighting = DWA(tau=2.0)
    rows = [losses(3, seed=i) for i in range(8)]
    for step, row in enumerate(rows):
        weights = weighting(losses=row, epoch=step // 2)
        if step < 4:
            assert torch.equal(weights, torch.ones(3, dtype=torch.float64))
            continue
        begin = step // 2 * 2 - 4
        earlier, last = (torch.stack(rows[begin + at : begin + at + 2]).mean(0) for at in (0, 2))
        assert_close(weights, 3 * torch.softmax(last / earlier / 2.0, 0))
        assert_close(weights.sum(), tensor(3.0)[0])


def test_dwa_without_a_count_of_epochs_stays_at_one():
    weighting = DWA()
    for step in range(5):
        assert torch.equal(weighting(losses=losses(3, seed=step)), torch.ones(3, dtype=torch.float64))


def test_gls_is_the_gradient_of_the_geometric_mean():
    row = losses().requires_grad_()
    expected = by_autograd(row, row.prod() ** 0.25)
    weights = GLS()(losses=row)
    assert_close(weights, expected)
    assert_close(weights * row.detach(), (weights * row.detach()).mean().expand(4))
    tiny = GLS()(losses=torch.full((40,), 1e-30, dtype=torch.float64))
    assert_close(tiny, torch.full((40,), 1 / 40, dtype=torch.float64))


def test_stch_in_units_of_the_losses_is_the_gradient_of_the_smooth_maximum():
    row, preferences = losses().requires_grad_(), tensor(0.1, 0.2, 0.3, 0.4)
    mu, ideal = 0.3, 0.05
    expected = by_autograd(row, mu * torch.logsumexp(preferences * (row - ideal) / mu, 0))
    assert_close(STCH(mu, ideal=ideal)(losses=row, preferences=preferences), expected)
    hard = STCH(1e-6, ideal=ideal)(losses=row, preferences=preferences)
    worst = (preferences * (row.detach() - ideal)).argmax()
    assert_close(hard, preferences * torch.nn.functional.one_hot(worst, 4))


def test_stch_in_logs_starts_with_the_sum_of_logs_and_then_compares_with_the_nadir():
    weighting = STCH(mu=0.5, warmup_epochs=1)
    rows = [losses(seed=i) for i in range(8)]
    for step, row in enumerate(rows):
        weights = weighting(losses=row, epoch=step // 2)
        if step < 4:
            assert_close(weights, 1 / row)
            continue
        nadir = (rows[2] + rows[3]) / 2
        free = row.clone().requires_grad_()
        smooth = 4 * 0.5 * torch.logsumexp((free / nadir).log() / 0.5, 0)
        assert_close(weights, by_autograd(free, smooth))


def test_famo_weighs_logs_and_learns_from_the_change_of_logs():
    weighting = FAMO(lr=0.1, weight_decay=0.01, lower_bound=0.02)
    before, after = losses(seed=1), losses(seed=2)
    logits, gradients = torch.zeros(4, dtype=torch.float64), []
    for _ in range(3):
        share = torch.softmax(logits, 0)
        parts = share / (before - 0.02)
        weights = weighting(losses=before)
        assert_close(weights, parts / parts.sum())
        weighting.after_step(before[None], after[None])
        free = logits.clone().requires_grad_()
        change = (before - 0.02).log() - (after - 0.02).log()
        gradients.append(by_autograd(free, (torch.softmax(free, 0) * change).sum()))
        logits = adam(gradients, torch.zeros(4, dtype=torch.float64), 0.1, 0.01)


def test_famo_skips_losses_below_the_bound_and_learns_nothing_from_them():
    weighting = FAMO(lower_bound=0.5)
    weights = weighting(losses=torch.stack([tensor(1.0, 0.4), tensor(1.0, 0.6)]))
    assert weights[0].isnan().all() and weights[1].isfinite().all()
    before = weighting.state_dict()
    weighting.after_step(torch.ones(2, 2), torch.tensor([[0.4, 1.0], [0.4, 1.0]]))
    assert all(torch.equal(value, before[name]) for name, value in weighting.state_dict().items())


def gradnorm_slope(logits: Tensor, norms: Tensor, rate: Tensor, alpha: float) -> Tensor:
    """By autograd, with the target held constant."""
    free = logits.clone().requires_grad_()
    weighted = len(logits) * torch.softmax(free, 0) * norms
    target = weighted.mean().detach() * (rate / rate.mean()) ** alpha
    return by_autograd(free, (weighted - target).abs().sum()) / norms.mean()


def test_gradnorm_descends_the_distance_of_the_norms_from_their_targets():
    weighting = GradNorm(alpha=1.5, lr=0.1)
    rows = [losses(seed=i) for i in range(4)]
    logits, gradients = torch.zeros(4, dtype=torch.float64), []
    for step, row in enumerate(rows):
        norms = losses(seed=20 + step)
        weights = weighting(norms.square().diag(), losses=row)
        assert_close(weights, 4 * torch.softmax(logits, 0))
        gradients.append(gradnorm_slope(logits, norms, row / rows[0], 1.5))
        logits = adam(gradients, torch.zeros(4, dtype=torch.float64), 0.1)


def test_gradnorm_with_the_first_epoch_as_its_start():
    weighting = GradNorm(alpha=2.0, lr=0.1, first_epoch=True)
    rows = [losses(seed=i) for i in range(4)]
    norms = losses(seed=20)
    for step in range(3):
        assert torch.equal(weighting(norms.square().diag(), losses=rows[step], epoch=step // 2)[0], tensor(1.0)[0])
    start = (rows[0] + rows[1]) / 2
    slope = gradnorm_slope(torch.zeros(4, dtype=torch.float64), norms, rows[2] / start, 2.0)
    logits = adam([slope], torch.zeros(4, dtype=torch.float64), 0.1)
    assert_close(weighting(norms.square().diag(), losses=rows[3], epoch=1), 4 * torch.softmax(logits, 0))


@pytest.mark.parametrize("weighting", [GLS(), STCH(), FAMO(), Relative(UncertaintyWeighting())])
@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
def test_losses_without_a_logarithm_skip_the_step(weighting: Weighting, bad: float):
    weights = weighting(losses=torch.stack([tensor(1.0, bad), tensor(1.0, 2.0)]))
    assert weights[0].isnan().all()
    assert weights[1].isfinite().all()
