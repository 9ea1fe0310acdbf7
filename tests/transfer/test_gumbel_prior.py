"""GumbelPrior: its gradient, its draws, its state, and a run with it."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from torch import Tensor, nn

from mt2o_ext import MT2OFused
from mt2o_ext.gumbel import gumbel_noise, mixing_weights
from mt2o_ext.transfer import CosineDecay, GumbelPrior, LinearDecay
from support.quadratics import line_preferences
from support.transfer_problems import assert_close, centred_gram, context, generator, identity, matrices, normal


def distances(logits: Tensor, noise: Tensor, temperature: float, theta: Tensor) -> Tensor:
    """sum_k |theta_k - sum_j alpha_kj theta_j|^2 / (2 s), from the explicit rows."""
    prior = mixing_weights(logits, temperature, noise) @ theta
    centred = theta - theta.mean(0)
    return (theta - prior).square().sum() / (2 * centred.square().sum(1).mean())


@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_logits_make_a_gradient_step(temperature: float) -> None:
    """Against finite differences on the rows themselves, over two segments, far from the origin."""
    theta = normal(5, 30) + 10.0
    gram = centred_gram(theta[:, :12], theta[:, 12:])
    rule = GumbelPrior(temperature=temperature, logits_lr=0.25, generator=generator())
    rule.bind(line_preferences(5))
    rule.load_state_dict({**rule.state_dict(), "logits": normal(5, 5, seed=1)})
    before = rule.state_dict()
    noise = gumbel_noise(before["key"], before["draws"], 5)
    rule.matrix(context(line_preferences(5), gram))
    step = rule.state_dict()["logits"] - before["logits"]
    expected, h = torch.zeros(5, 5, dtype=torch.float64), 1e-5
    for k in range(5):
        for j in range(5):
            ends = [before["logits"].clone() for _ in range(2)]
            ends[0][k, j] += h
            ends[1][k, j] -= h
            up, down = (distances(end, noise, temperature, theta) for end in ends)
            expected[k, j] = (up - down) / (2 * h)
    assert expected.abs().max() > 0.01
    assert_close(step, -0.25 * expected, atol=1e-9)


def test_of_two_subproblems_each_goes_to_the_other() -> None:
    for matrix in matrices(GumbelPrior(0.3), line_preferences(2), [centred_gram(normal(2, 9))] * 3):
        assert_close(matrix[0], torch.tensor([[0.7, 0.3], [0.3, 0.7]], dtype=torch.float64))


def test_the_others_that_resemble_a_subproblem_are_drawn_more_and_more() -> None:
    first, second = normal(1, 20), normal(1, 20, seed=1)
    theta = torch.cat([first, first + 0.1 * normal(1, 20, seed=2), second, second + 0.1 * normal(1, 20, seed=3)])
    rule = GumbelPrior(logits_lr=0.5, generator=generator())
    rule.bind(line_preferences(4))
    for step in range(300):
        rule.matrix(context(line_preferences(4), centred_gram(theta), step))
    chances = rule.probabilities
    assert_close(chances.sum(1), torch.ones(4, dtype=torch.float64))
    assert torch.equal(chances.argmax(1), torch.tensor([1, 0, 3, 2]))
    assert chances.amax(1).min() > 0.9


def test_the_noise_is_that_of_gumbel() -> None:
    key = torch.tensor(5, dtype=torch.int64)
    draws = [gumbel_noise(key, torch.tensor(count, dtype=torch.int64), 60) for count in range(3)]
    assert not torch.equal(draws[0], draws[1])
    numbers = torch.stack(draws).flatten()
    assert numbers.mean().item() == pytest.approx(0.5772, abs=0.05)
    assert numbers.var().item() == pytest.approx(math.pi**2 / 6, abs=0.1)
    # The largest of logits and noise is j with the chance softmax_j: what the Gumbel-softmax tends to.
    logits = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    wins = torch.stack([logits + n.flatten()[:3] for n in (gumbel_noise(key, torch.tensor(i), 2) for i in range(4000))])
    shares = wins.argmax(1).bincount(minlength=3) / 4000
    torch.testing.assert_close(shares.double(), logits.softmax(0), atol=0.03, rtol=0)


def test_cold_draws_are_single_rows_and_warm_ones_are_mixtures() -> None:
    sharpest = {}
    for temperature in (1.0, 0.05):
        rule = GumbelPrior(1.0, temperature=temperature, logits_lr=0.0, generator=generator())
        draws = torch.cat(matrices(rule, line_preferences(6), [None] * 200))
        assert bool((draws.diagonal(dim1=1, dim2=2) == 0).all())
        sharpest[temperature] = draws.amax(2).mean().item()
        mean = draws.mean(0) + identity(6) / 5
        assert (mean - 0.2).abs().max() < 0.1
    assert sharpest[0.05] > 0.95 > 0.7 > sharpest[1.0]


def test_temperature_and_rate_follow_their_schedules() -> None:
    preferences, gram = line_preferences(4), centred_gram(normal(4, 9))
    rule = GumbelPrior(LinearDecay(0.8, steps=100), temperature=CosineDecay(1.0, steps=100, end=0.5), noise=False)
    rule.bind(preferences)
    assert rule.counts_steps and not GumbelPrior().counts_steps
    logits = normal(4, 4)
    for step, rate, temperature in ((0, 0.8, 1.0), (50, 0.4, 0.75), (100, 0.0, 0.5)):
        rule.load_state_dict({**rule.state_dict(), "logits": logits})
        matrix = rule.matrix(context(preferences, gram, step))
        assert matrix is not None
        assert_close(matrix, (1 - rate) * identity(4) + rate * mixing_weights(logits, temperature))
    cold = GumbelPrior(temperature=LinearDecay(1.0, steps=10), noise=False)  # ends at 0
    assert matrices(cold, preferences, [gram] * 12)[-1].isfinite().all()


def test_seeds() -> None:
    preferences, grams = line_preferences(4), [centred_gram(normal(4, 9))] * 3
    first, again, other = (matrices(GumbelPrior(generator=generator(s)), preferences, grams)[-1] for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        default = [matrices(GumbelPrior(), preferences, grams)[-1] for _ in range(2)]
        torch.manual_seed(3)
        assert torch.equal(matrices(GumbelPrior(), preferences, grams)[-1], default[0])
    assert not torch.equal(*default)


# ---------------------------------------------------------------------- in an optimizer
def trained(optimizer: MT2OFused, p: nn.Parameter, first: int, steps: int) -> None:
    for step in range(first, first + steps):
        goals = [normal(6, seed=10 * step + task).float() + task for task in range(3)]
        optimizer.step(lambda goals=goals: [(p - goal).square().mean() for goal in goals])  # type: ignore[misc]


def optimizer_of(p: nn.Parameter, seed: int = 0) -> MT2OFused:
    return MT2OFused(
        [p], num_tasks=3, num_subproblems=3, preferences=torch.eye(3), lr=0.05,
        transfer=GumbelPrior(0.05, every=2, generator=generator(seed)),
    )  # fmt: skip


def test_a_run_that_resumes_is_bitwise_the_one_that_went_on() -> None:
    p = nn.Parameter(torch.zeros(6))
    optimizer = optimizer_of(p)
    trained(optimizer, p, 0, 7)
    file = io.BytesIO()
    torch.save((p.detach(), optimizer.state_dict()), file)
    file.seek(0)
    values, state = torch.load(file, weights_only=True)
    q = nn.Parameter(values)
    resumed = optimizer_of(q, seed=1)  # its own numbers are not drawn any more
    resumed.load_state_dict(state)
    trained(optimizer, p, 7, 6)
    trained(resumed, q, 7, 6)
    for one, other in zip(optimizer.state[p]["subproblems"], resumed.state[q]["subproblems"], strict=True):
        assert torch.equal(one, other)
    transfer = optimizer.state_dict()["param_groups"][0]["mt2o"]["transfer"]
    assert int(transfer["draws"]) == 6 and transfer["logits"].abs().sum() > 0


def test_a_step_that_fails_or_is_skipped_draws_nothing() -> None:
    p = nn.Parameter(torch.zeros(6))
    optimizer = optimizer_of(p)
    trained(optimizer, p, 0, 3)
    before = copy.deepcopy(optimizer.state_dict()["param_groups"][0]["mt2o"]["transfer"])
    with pytest.warns(UserWarning, match="skipped"):
        optimizer.step(lambda: [p.sum() * math.nan] * 3)
    after = optimizer.state_dict()["param_groups"][0]["mt2o"]["transfer"]
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_without_a_rate_it_is_independent_runs() -> None:
    rows = {}
    for name, rule in {"none": None, "prior": GumbelPrior(0.0)}.items():
        p = nn.Parameter(torch.zeros(6))
        optimizer = MT2OFused([p], num_tasks=3, num_subproblems=3, preferences=torch.eye(3), lr=0.05, transfer=rule)
        trained(optimizer, p, 0, 20)
        rows[name] = torch.stack(list(optimizer.state[p]["subproblems"]))
    assert torch.equal(rows["none"], rows["prior"])
