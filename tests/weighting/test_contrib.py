"""The methods of mt2o_ext.contrib against the formulas in their docstrings, and what the package promises."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mt2o_ext import WeightedFused, contrib, weighting
from mt2o_ext.contrib import LDCMTL, WPCGrad
from mt2o_ext.weighting import Draw, WeightingContext
from support.weighting.problems import (
    KINDS,
    adam,
    assert_close,
    assert_same_direction,
    bound,
    by_autograd,
    context,
    normal,
    pcgrad,
    rows_of,
)


def test_names_are_not_taken_but_the_message_tells_where_they_are():
    params = [torch.nn.Parameter(torch.zeros(1))]
    for name, method in contrib.register.items():
        assert name not in weighting.register and not hasattr(weighting, method.__name__)
        with pytest.raises(ValueError, match=r"those of mt2o_ext\.contrib are passed as instances"):
            WeightedFused(params, num_tasks=2, weighting=name)
        WeightedFused(params, num_tasks=2, weighting=method())


def positive(num_tasks: int = 4, seed: int = 0) -> Tensor:
    return 0.1 + normal(num_tasks, seed=seed).abs()


def test_ldc_mtl_is_the_gradient_of_its_penalized_loss():
    weighting = LDCMTL(lam=0.2, lr=0.1)
    rows = [positive(seed=i) for i in range(4)]
    unit = rows[0] / rows[0].min()
    logits, gradients = torch.zeros(4, dtype=torch.float64), []
    for step, row in enumerate(rows):
        free, score = row.clone().requires_grad_(), logits.clone().requires_grad_()
        share = torch.softmax(score, 0)
        x = share * free / unit
        objective = x.sum() / share.sum() + 0.2 * (x[:-1] - x[1:]).abs().sum()
        by_losses, by_score = torch.autograd.grad(objective, (free, score))
        weights = weighting(losses=row)
        if step > 0:  # in the first step all x are equal, and the kinks of the absolute values have no gradient
            # Adam turns the rounding of a gradient that is zero into a step, so the shares agree to about 1e-9.
            assert_close(weights, by_losses, rtol=1e-7)
            gradients.append(by_score / (row / unit).mean())
        else:
            assert_close(weights, 0.25 / unit)
            plain = torch.softmax(score, 0)
            gradients.append(by_autograd(score, (plain * row / unit).sum()) / (row / unit).mean())
        logits = adam(gradients, torch.zeros(4, dtype=torch.float64), 0.1)
        assert_close(weighting.state_dict()["logits"][0], logits, atol=1e-6)


def test_ldc_mtl_with_fixed_shares():
    weighting = LDCMTL(lam=0.5, by_first_losses=False, lr=0.0)
    weights = weighting(losses=torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64))
    assert_close(weights, torch.tensor([1 + 0.5, 1 - 1.0, 1 + 0.5], dtype=torch.float64) / 3)


def wpcgrad(rows: Tensor, order: list[int], protect: str, reference: str) -> Tensor:
    changed, visited = rows.clone(), set()
    for i in order[:1] if protect == "first" else order:
        visited.add(i)
        r = (changed if reference == "current" else rows)[i].clone()
        for k in range(len(rows)):
            kept = k in visited if protect == "visited" else k == i
            if not kept and changed[k] @ r < 0:
                changed[k] -= (changed[k] @ r) / (r @ r) * r
    return changed


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("protect", ["visited", "none", "first"])
@pytest.mark.parametrize("reference", ["original", "current"])
def test_wpcgrad_is_its_rule_on_vectors(kind, protect, reference):
    weighting = bound(WPCGrad(protect=protect, reference=reference), 5)
    rows = rows_of(kind, 5)
    given = context(rows, normal(5).abs())
    weights = weighting.weights(given)
    order = weighting.order(given)[0].tolist()
    assert_same_direction(weights, rows, wpcgrad(rows, order, protect, reference).sum(0))


def test_wpcgrad_that_protects_nobody_is_pcgrad_with_one_order():
    rows = rows_of("conflicting", 6)
    weighting = bound(WPCGrad(protect="none", reference="original"), 6)
    given = context(rows, normal(6).abs())
    weights = weighting.weights(given)
    orders = weighting.order(given)[0].expand(6, 6)
    assert_same_direction(weights, rows, pcgrad(rows, orders).sum(0))


def test_wpcgrad_draws_in_proportion_to_the_power_of_the_last_losses():
    count = 5000
    weighting = WPCGrad(gamma=2.0)
    weighting.bind(count, 3, 1, "cpu")
    gram = torch.eye(3, dtype=torch.float64).expand(count, 3, 3)
    losses = torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64).expand(count, 3)
    preferences = torch.full((count, 3), 1 / 3, dtype=torch.float64)
    for epoch in range(2):
        draw = Draw.new(torch.Generator().manual_seed(epoch))
        given = WeightingContext(preferences=preferences, gram=gram, losses=losses, draw=draw, epoch=epoch)
        weighting.weights(given)
        order = weighting.order(given)
        first = (order[:, 0, None] == torch.arange(3)).double().mean(0)
        chances = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [0.2, 0.8, 0.0]], dtype=torch.float64)[epoch]
        assert (first - chances).abs().max() < 4 * 0.5 * count**-0.5
    assert (order[:, 2] == 2).all()


def test_wpcgrad_keeps_the_row_drawn_first():
    rows = rows_of("conflicting", 4)
    weighting = bound(WPCGrad(), 4)
    given = context(rows, normal(4).abs())
    weighting.weights(given)
    order = weighting.order(given)[0].tolist()
    changed = wpcgrad(rows, order, "visited", "current")
    assert torch.equal(changed[order[0]], rows[order[0]])
    assert all(changed[k] @ changed[order[0]] > -1e-12 for k in range(4))
