"""MixturePrior: the formulas against independent ones, the pull, the state, training."""

from __future__ import annotations

import io
import itertools
import math

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from mt2o_ext import WeightedFused
from mt2o_ext.gumbel import gumbel_noise, mixing_weights
from mt2o_ext.variational import MeanField, MixturePrior
from mt2o_ext.variational.normal import (
    divergence,
    mixed_moments,
    mixing_slopes,
    pulled_mean,
    pulled_variance,
)

FLOOR = 1e-6


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def heads_of(num_tasks: int, seed: int = 0) -> nn.ModuleList:
    """Posteriors that differ in means and in variances."""
    heads = nn.ModuleList(MeanField(nn.Linear(3, 2), generator=generator(t)).double() for t in range(num_tasks))
    for task, head in enumerate(heads):
        head.set_posterior(normal(8, seed=seed + task), normal(8, seed=seed + 100 + task).exp())
    return heads


def prior_of(num_tasks: int, seed: int = 0, **options: float) -> MixturePrior:
    prior = MixturePrior(num_tasks, generator=generator(seed), **options).double()
    with torch.no_grad():
        prior.logits.copy_(normal(num_tasks, num_tasks, seed=seed + 7))
    return prior


def draw_of(prior: MixturePrior) -> Tensor:
    """The weights that the next draw will be, by the definition."""
    noise = gumbel_noise(prior.key, prior.draws, prior.num_tasks)
    rows = []
    for k in range(prior.num_tasks):
        others = [j for j in range(prior.num_tasks) if j != k]
        chances = (prior.logits.detach()[k, others].log_softmax(0) + noise[k, others]) / prior.temperature
        row = torch.zeros(prior.num_tasks, dtype=torch.float64)
        row[others] = chances.softmax(0)
        rows.append(row)
    return torch.stack(rows)


# ---------------------------------------------------------------------- the divergence
def test_the_divergence_is_that_of_torch() -> None:
    mean, prior_mean = normal(4, 9), normal(4, 9, seed=1)
    std, prior_std = normal(4, 9, seed=2).exp(), normal(4, 9, seed=3).exp()
    expected = kl_divergence(Normal(mean, std), Normal(prior_mean, prior_std)).sum(1)
    torch.testing.assert_close(divergence(mean, std.square(), prior_mean, prior_std.square()), expected)


@pytest.mark.parametrize("num_tasks", [2, 3, 5])
def test_forward_is_the_divergence_from_the_mixture_of_the_others(num_tasks: int) -> None:
    prior, heads = prior_of(num_tasks), heads_of(num_tasks)
    weights = draw_of(prior)
    found = prior(heads)
    posteriors = [head.posterior() for head in heads]
    for k, (mean, variance) in enumerate(posteriors):
        prior_mean = sum(weights[k, j] * posteriors[j][0] for j in range(num_tasks) if j != k)
        prior_variance = sum(weights[k, j] ** 2 * posteriors[j][1] for j in range(num_tasks) if j != k)
        expected = kl_divergence(
            Normal(mean, (variance + FLOOR).sqrt()), Normal(prior_mean, (prior_variance + FLOOR).sqrt())
        ).sum()
        torch.testing.assert_close(found[k], expected)
    assert int(prior.draws) == 1


def test_of_two_tasks_the_prior_is_the_other_one_in_closed_form() -> None:
    """Weights are 1, logits learn nothing, and posteriors that are equal are at no distance."""
    prior, heads = prior_of(2), heads_of(2)
    (m0, v0), (m1, v1) = (head.posterior() for head in heads)
    v0, v1 = v0 + FLOOR, v1 + FLOOR
    found = prior(heads)
    torch.testing.assert_close(found[0], (((m0 - m1) ** 2 + v0) / v1 - 1 + (v1 / v0).log()).sum() / 2)
    torch.testing.assert_close(found[1], (((m0 - m1) ** 2 + v1) / v0 - 1 + (v0 / v1).log()).sum() / 2)
    found.sum().backward()
    assert prior.logits.grad.abs().max() == 0.0
    heads[1].set_posterior(*(part.detach() for part in heads[0].posterior()))
    torch.testing.assert_close(prior(heads), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)


def test_gradients_reach_the_tasks_own_posterior_and_its_logits_only() -> None:
    prior, heads = prior_of(4), heads_of(4)
    prior(heads)[1].backward()
    assert prior.logits.grad[1, [0, 2, 3]].abs().min() > 0
    assert prior.logits.grad[[0, 2, 3]].abs().max() == 0 and prior.logits.grad[1, 1] == 0
    for task, head in enumerate(heads):
        for p in head.parameters():
            assert (p.grad is not None and p.grad.abs().sum() > 0) == (task == 1), task


def test_the_pull_on_a_mean_is_its_distance_in_units_of_the_priors_variance() -> None:
    prior, heads = prior_of(3), heads_of(3)
    weights = draw_of(prior)
    means, variances = map(torch.stack, zip(*(head.posterior() for head in heads), strict=True))
    prior_mean, prior_variance = mixed_moments(weights, means, variances)
    prior(heads).sum().backward()
    for k, head in enumerate(heads):
        found = torch.cat([p.grad.flatten() for p in head.means()])
        torch.testing.assert_close(found, ((means - prior_mean) / (prior_variance + FLOOR))[k].detach())


# ---------------------------------------------------------------------- the gradient of the mixing weights
def test_mixing_slopes_against_finite_differences() -> None:
    means, variances, weights = normal(4, 20), normal(4, 20, seed=1).exp(), mixing_weights(normal(4, 4, seed=2), 1.0)

    def divergences(weights: Tensor) -> Tensor:
        prior_means, prior_variances = mixed_moments(weights, means, variances)
        return divergence(means, variances + 0.1, prior_means, prior_variances + 0.1)

    found, h = mixing_slopes(weights, means, variances, 0.1), 1e-6
    for k in range(4):
        for j in range(4):
            ends = []
            for sign in (1, -1):
                moved = weights.clone()
                moved[k, j] += sign * h
                ends.append(divergences(moved)[k])
            assert found[k, j].item() == pytest.approx(float(ends[0] - ends[1]) / (2 * h), rel=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_logits_step_of_the_pull_is_that_of_autograd(temperature: float) -> None:
    prior = prior_of(4, temperature=temperature)
    heads, before = heads_of(4), prior.logits.detach().clone()
    (expected,) = torch.autograd.grad(prior(heads).sum(), prior.logits)
    prior.draws.zero_()  # the same draw again
    prior.pull_(heads, 0.0, logits_lr=0.3)
    torch.testing.assert_close(prior.logits.detach() - before, -0.3 * expected / 8)
    assert expected.abs().max() > 1e-3


# ---------------------------------------------------------------------- the proximal step
@pytest.mark.parametrize("amount", [1e-4, 0.1, 30.0])
def test_pulls_are_proximal_steps(amount: float) -> None:
    """Against a numeric minimiser, for variances far below and above that of the prior."""
    for mean, variance, prior_mean, prior_variance in [
        (0.3, 1.0, -1.0, 0.5), (5.0, 1e-3, 0.0, 1.0), (-2.0, 1.0, 1.0, 1e-3), (0.0, 4.0, 0.0, 4.0),
    ]:  # fmt: skip
        m, v, pm, pv = (torch.tensor([[x]], dtype=torch.float64) for x in (mean, variance, prior_mean, prior_variance))

        def by_mean(x: float, v: Tensor = v, pm: Tensor = pm, pv: Tensor = pv, mean: float = mean) -> float:
            return (x - mean) ** 2 / 2 + amount * divergence(torch.full_like(v, x), v, pm, pv).item()

        def by_log_variance(x: float, m: Tensor = m, pm: Tensor = pm, pv: Tensor = pv, old: float = variance) -> float:
            return (math.exp(x) - old) ** 2 / 2 + amount * divergence(m, torch.full_like(m, math.exp(x)), pm, pv).item()

        best = minimize_scalar(by_mean, bounds=(-10, 10), method="bounded", options={"xatol": 1e-10}).x
        assert pulled_mean(m, pm, pv, amount).item() == pytest.approx(best, abs=1e-6)
        best = minimize_scalar(by_log_variance, bounds=(-25, 5), method="bounded", options={"xatol": 1e-10}).x
        assert pulled_variance(v, pv, amount).item() == pytest.approx(math.exp(best), rel=1e-4)


def test_limits_of_the_pull() -> None:
    mean, variance, prior_mean, prior_variance = (
        normal(9),
        normal(9, seed=1).exp(),
        normal(9, seed=2),
        torch.rand(9) + 0.1,
    )
    assert torch.equal(pulled_mean(mean, prior_mean, prior_variance, 0.0), mean)
    torch.testing.assert_close(pulled_variance(variance, prior_variance.double(), 0.0), variance)
    torch.testing.assert_close(pulled_mean(mean, prior_mean, prior_variance, 1e12), prior_mean)
    torch.testing.assert_close(pulled_variance(variance, prior_variance.double(), 1e12), prior_variance.double())
    torch.testing.assert_close(
        pulled_variance(prior_variance.double(), prior_variance.double(), 0.3), prior_variance.double()
    )
    tiny = torch.full((1,), 1e-6)  # float32 keeps its digits where the step is a hundred thousand variances long
    assert pulled_variance(tiny, tiny, 0.1).item() == pytest.approx(1e-6, rel=1e-5)


def test_pull_moves_all_heads_from_the_same_values() -> None:
    prior, heads = prior_of(3), heads_of(3)
    weights = draw_of(prior)
    means, variances = (torch.stack(part).detach() for part in zip(*(h.posterior() for h in heads), strict=True))
    prior.pull_(heads, 0.2)
    prior_means, prior_variances = mixed_moments(weights, means, variances)
    for k, head in enumerate(heads):
        mean, variance = head.posterior()
        share = 0.2 / (prior_variances[k] + FLOOR)
        torch.testing.assert_close(mean, (means[k] + share * prior_means[k]) / (1 + share))
        torch.testing.assert_close(variance, pulled_variance(variances[k], prior_variances[k] + FLOOR, 0.2))


# ---------------------------------------------------------------------- the draws
def test_temperature_falls_to_its_end() -> None:
    prior = MixturePrior(3, temperature=0.8, cooling=0.1, lowest=0.3)
    for count in range(20):
        assert prior.temperature.item() == pytest.approx(max(0.3, 0.8 * math.exp(-0.1 * count)))
        prior.draw()
    prior.eval()
    before = prior.temperature.item()
    prior.draw()
    assert prior.temperature.item() == before == 0.3
    assert MixturePrior(3).temperature.item() == 1.0


def test_evaluation_has_no_chance_in_it() -> None:
    prior, heads = prior_of(4), heads_of(4)
    assert not torch.equal(prior(heads), prior(heads))
    prior.eval()
    assert torch.equal(prior(heads), prior(heads)) and torch.equal(prior.draw(), prior.probabilities())
    torch.testing.assert_close(prior.probabilities().sum(1), torch.ones(4, dtype=torch.float64))
    assert prior.probabilities().diagonal().abs().max() == 0


# ---------------------------------------------------------------------- training
def task_losses(trunk: nn.Module, heads: nn.ModuleList, prior: MixturePrior, step: int) -> Tensor:
    x = torch.randn(8, 4, generator=generator(step))
    own = [(head(torch.tanh(trunk(x))) - task).square().mean() for task, head in enumerate(heads)]
    return torch.stack(own) + 1e-2 * prior(heads)


def optimizer_of(trunk: nn.Module, heads: nn.ModuleList, prior: MixturePrior) -> WeightedFused:
    groups = [{"params": head.parameters(), "task": task} for task, head in enumerate(heads)]
    shared = {"params": [*trunk.parameters(), *prior.parameters()]}
    return WeightedFused([shared, *groups], num_tasks=len(heads), weighting="cagrad", lr=1e-2)


def made(seed: int) -> tuple[nn.Module, nn.ModuleList, MixturePrior]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        heads = nn.ModuleList(MeanField(nn.Linear(3, 2), generator=generator(seed)) for _ in range(3))
        return nn.Linear(4, 3), heads, MixturePrior(3)


def test_a_run_that_resumes_is_bitwise_the_one_that_went_on() -> None:
    modules, others = nn.ModuleList(made(0)), nn.ModuleList(made(1))
    optimizer = optimizer_of(*modules)
    for step in range(4):
        optimizer.step(lambda step=step: task_losses(*modules, step))  # type: ignore[misc]
    assert modules[2].logits.abs().sum() > 0
    file = io.BytesIO()
    states = [head.generator.get_state() for head in modules[1]]
    torch.save((modules.state_dict(), optimizer.state_dict(), states), file)
    file.seek(0)
    values, state, numbers = torch.load(file, weights_only=True)
    others.load_state_dict(values)
    resumed = optimizer_of(*others)
    resumed.load_state_dict(state)
    for head, number in zip(others[1], numbers, strict=True):
        head.generator.set_state(number)
    for step in range(4, 8):
        optimizer.step(lambda step=step: task_losses(*modules, step))  # type: ignore[misc]
        resumed.step(lambda step=step: task_losses(*others, step))  # type: ignore[misc]
    for (name, one), other in zip(modules.state_dict().items(), others.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    assert int(others[2].draws) == 8


def test_tasks_that_resemble_each_other_find_each_other() -> None:
    """Two pairs of tasks with equal goals, by the loss and by the pull, from several starts."""
    for way, seed in itertools.product(("loss", "pull"), range(3)):
        torch.manual_seed(seed)
        heads = nn.ModuleList(MeanField(nn.Linear(3, 2, bias=False), generator=generator(t)) for t in range(4))
        goals = [normal(2, 3, seed=t // 2).float() for t in range(4)]
        prior = MixturePrior(4, generator=generator())
        optimizer = torch.optim.Adam([*heads.parameters(), *prior.parameters()], lr=0.02)
        for _ in range(400):
            own = [(head.drawn()["weight"] - goal).square().sum() for head, goal in zip(heads, goals, strict=True)]
            loss = torch.stack(own).sum()
            optimizer.zero_grad()
            (loss + 1e-3 * prior(heads).sum() if way == "loss" else loss).backward()
            optimizer.step()
            if way == "pull":
                prior.pull_(heads, 1e-4)
        chances = prior.probabilities()
        assert torch.equal(chances.argmax(1), torch.tensor([1, 0, 3, 2])), way
        assert chances.amax(1).min() > 0.6, way


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="num_tasks >= 2, got 1"):
        MixturePrior(1)
    with pytest.raises(ValueError, match=r"lowest in \[0, 0.4\], got 0.5"):
        MixturePrior(2, temperature=0.4)
    with pytest.raises(ValueError, match="lowest > 0"):
        MixturePrior(2, lowest=0.0)
    with pytest.raises(TypeError, match="MeanField for each task, got Linear"):
        MixturePrior(2)([nn.Linear(2, 2), MeanField(nn.Linear(2, 2))])
    with pytest.raises(
        ValueError, match=r"same shapes, got \[\[2, 3\], \[2\]\] of task 0 and \[\[2, 4\], \[2\]\] of task 1"
    ):
        MixturePrior(2)([MeanField(nn.Linear(3, 2)), MeanField(nn.Linear(4, 2))])
    with pytest.raises(ValueError, match="moments of 3 tasks"):
        MixturePrior(3)(heads_of(2))
    with pytest.raises(ValueError, match="got none"):
        MixturePrior(2)([])
    with pytest.raises(ValueError, match="amount finite and >= 0"):
        MixturePrior(2).pull_(heads_of(2), -1.0)
