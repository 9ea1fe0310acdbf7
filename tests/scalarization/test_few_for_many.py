"""FewForMany: one number for a table of K models and T tasks. What all scalarizations keep to is tested beside this."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from mt2o_ext import MT2OFused
from mt2o_ext.scalarization import FewForMany, Linear, SmoothTchebycheff


def table(num_models: int, num_tasks: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Losses [K, T] in (0, 1), and equal preferences."""
    generator = torch.Generator().manual_seed(seed)
    losses = torch.rand(num_models, num_tasks, dtype=torch.float64, generator=generator)
    return losses, torch.full((num_models, num_tasks), 1.0 / num_tasks, dtype=torch.float64)


def by_hand(losses: Tensor, lam: list[float], mu: float) -> tuple[float, list[list[float]]]:
    """The value and the coefficients in plain Python."""
    rows = losses.tolist()
    tasks = range(len(lam))
    best = [-mu * math.log(sum(math.exp(-row[t] / mu) for row in rows)) for t in tasks]
    total = sum(math.exp(lam[t] * best[t] / mu) for t in tasks)
    of_task = [lam[t] * math.exp(lam[t] * best[t] / mu) / total for t in tasks]
    below = [sum(math.exp(-row[t] / mu) for row in rows) for t in tasks]
    return mu * math.log(total), [[of_task[t] * math.exp(-row[t] / mu) / below[t] for t in tasks] for row in rows]


@pytest.mark.parametrize("mu", [0.05, 0.5])
def test_it_is_the_formula(mu: float) -> None:
    losses, preferences = table(3, 5)
    preferences = preferences * torch.tensor([1.5, 0.5, 1.0, 1.0, 1.0])
    value, coefficients = by_hand(losses, preferences[0].tolist(), mu)
    scalarization = FewForMany(mu=mu)
    assert scalarization(losses, preferences).item() == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(scalarization.coefficients(losses, preferences), torch.tensor(coefficients).double())


def test_one_model_is_the_smooth_maximum() -> None:
    losses, preferences = table(1, 6)
    smooth = SmoothTchebycheff(mu=0.2, ideal=-0.1)
    few = FewForMany(mu=0.2, ideal=-0.1)
    torch.testing.assert_close(few(losses, preferences), smooth(losses[0], preferences[0]))
    torch.testing.assert_close(few.coefficients(losses, preferences), smooth.coefficients(losses, preferences))


@pytest.mark.parametrize("mu", [1e-6, 1e-2, 1.0])
def test_it_is_near_the_worst_of_the_best(mu: float) -> None:
    losses, preferences = table(4, 9)
    exact = (losses.amin(0) / 9.0).amax()
    value = FewForMany(mu=mu)(losses, preferences)
    assert exact - mu * math.log(4.0) / 9.0 <= value <= exact + mu * math.log(9.0)


def test_the_limit_trains_one_model_for_one_task() -> None:
    losses, preferences = table(4, 9)
    coefficients = FewForMany(mu=1e-9).coefficients(losses, preferences)
    task = int(losses.amin(0).argmax())
    model = int(losses[:, task].argmin())
    expected = torch.zeros_like(losses)
    expected[model, task] = 1.0 / 9.0
    torch.testing.assert_close(coefficients, expected)
    assert FewForMany(mu=5e-324).coefficients(losses, preferences).isfinite().all()


def test_models_and_tasks_have_no_order() -> None:
    losses, preferences = table(3, 5)
    few, rows, columns = FewForMany(), torch.tensor([2, 0, 1]), torch.tensor([4, 1, 0, 3, 2])
    whole = few.coefficients(losses, preferences)
    torch.testing.assert_close(few.coefficients(losses[rows][:, columns], preferences), whole[rows][:, columns])


def test_lam_is_the_mean_of_the_preferences() -> None:
    losses, _ = table(2, 2)
    few, apart = FewForMany(), torch.tensor([[1.0, 0.0], [0.4, 0.6]]).double()
    together = torch.tensor([0.7, 0.3]).double()
    torch.testing.assert_close(few.coefficients(losses, apart), few.coefficients(losses, together))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_diverged_model_is_left_out(bad: float) -> None:
    losses, preferences = table(3, 4)
    few = FewForMany()
    others = few.coefficients(losses[[0, 2]], preferences[:2])
    value = few(losses[[0, 2]], preferences[:2])
    losses[1, 3] = bad
    losses.requires_grad_()
    found = few.coefficients(losses, preferences)
    assert found[1].isnan().all()
    torch.testing.assert_close(found[[0, 2]], others)
    torch.testing.assert_close(few(losses, preferences), value)
    (slopes,) = torch.autograd.grad(few(losses, preferences), losses)
    torch.testing.assert_close(slopes[[0, 2]], others)
    nowhere = torch.full((2, 4), math.nan).double()
    assert few.coefficients(nowhere, preferences[:2]).isnan().all()


def test_more_tables_at_once() -> None:
    few = FewForMany()
    losses = torch.stack([table(3, 4, seed)[0] for seed in range(2)])
    preferences = table(3, 4)[1]
    assert few(losses, preferences).shape == (2,)
    for one, of_one in zip(losses, few.coefficients(losses, preferences), strict=True):
        torch.testing.assert_close(few.coefficients(one, preferences), of_one)


# ---------------------------------------------------------------------- subproblems that run one by one
def test_the_coefficients_of_a_row() -> None:
    losses, preferences = table(3, 4)
    last, now = table(3, 4, seed=1)[0], losses[1]
    few = FewForMany()
    expected = torch.stack([last[0], now, last[2]])
    before = last.clone()
    found = few.coefficients_of_row(1, now, preferences, last)
    torch.testing.assert_close(found, few.coefficients(expected, preferences)[1])
    assert torch.equal(last, before), "the table of the caller changed"
    unknown = torch.full_like(last, math.nan)
    alone = SmoothTchebycheff(mu=few.mu).coefficients(now, preferences[1])
    torch.testing.assert_close(few.coefficients_of_row(1, now, preferences, unknown), alone)
    for each in (Linear(), SmoothTchebycheff()):  # which look at no other row
        assert torch.equal(
            each.coefficients_of_row(1, now, preferences, unknown), each.coefficients(now, preferences[1])
        )


def test_losses_of_one_model_are_refused() -> None:
    losses, preferences = table(3, 4)
    with pytest.raises(ValueError, match=r"losses of all subproblems \[K, T\], got the shape \(4,\)"):
        FewForMany().coefficients(losses[0], preferences[0])
    with pytest.raises(ValueError, match="expected mu > 0"):
        FewForMany(mu=0.0)


# ---------------------------------------------------------------------- few models for many tasks
# Twelve tasks, |x - centre|^2, in three clusters on a line; the best that three models can do is the middle of each.
CENTRES = torch.tensor([-2.3, -2.1, -2.0, -1.7, -0.2, 0.0, 0.1, 0.2, 1.8, 2.0, 2.1, 2.2])
BEST = torch.tensor([-2.0, 0.0, 2.0])
WORST = 0.3**2
START = torch.tensor([[-0.3], [0.1], [0.2]])


def task_losses(x: Tensor) -> Tensor:
    """[T] of x [1], [K, T] of x [K, 1]."""
    return (x - CENTRES).square()


def test_a_bank_of_few_models_serves_many_tasks() -> None:
    bank = nn.Parameter(START.clone())
    optimizer = MT2OFused(
        [bank],
        num_tasks=12,
        num_subproblems=3,
        scalarization=FewForMany(mu=0.005),
        preferences=torch.full((3, 12), 1.0 / 12.0),
        stacked=True,
        transfer=None,
        base="adam",
        lr=0.02,
    )
    for _ in range(800):
        losses = optimizer.step(lambda: task_losses(bank))
    torch.testing.assert_close(bank.detach().flatten().sort().values, BEST, atol=0.05, rtol=0.0)
    assert losses.amin(0).max() < 1.3 * WORST, "every task has a model that suits it"


@pytest.mark.parametrize("at_once", [False, True])
def test_rows_that_know_the_last_losses_of_the_others_do_as_well(at_once: bool) -> None:
    """As an optimizer does that runs one model after the other: with losses of the last step, or with newer ones."""
    x = START.clone().requires_grad_()
    few, preferences = FewForMany(mu=0.005), torch.full((3, 12), 1.0 / 12.0).double()
    optimizer, last = torch.optim.Adam([x], lr=0.02), torch.full((3, 12), math.nan).double()
    now = last.clone()
    for _ in range(800):
        optimizer.zero_grad()
        for k in range(3):
            losses = task_losses(x[k])
            factors = few.coefficients_of_row(k, losses.detach().double(), preferences, last)
            (factors.to(losses) * losses).sum().backward()
            now[k] = losses.detach()
            if at_once:
                last[k] = now[k]
        last = now.clone()
        optimizer.step()
    torch.testing.assert_close(x.detach().flatten().sort().values, BEST, atol=0.05, rtol=0.0)
