"""Harmony: scores by hand, exact selection, the budget, groups."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mt2o_ext.masks import CosineBudget, Harmony, TaskMasks, group_tasks
from mt2o_ext.masks.harmony import exchanged, largest, smallest


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def problem(density: float = 0.5) -> tuple[nn.Linear, TaskMasks]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(6, 4).double()
    return model, TaskMasks(model.named_parameters(), 3, density=density, generator=generator())


def loss_of(model: nn.Linear, task: int) -> Tensor:
    return (model(normal(9, 6, seed=task)) - task).square().mean()


@pytest.mark.parametrize("grow_grad", ["dense", "masked"])
@pytest.mark.parametrize("importance", ["fisher", "magnitude"])
@pytest.mark.parametrize("max_norm", [None, 0.25])
def test_an_update_is_the_rule_element_by_element(importance: str, grow_grad: str, max_norm: float | None) -> None:
    model, masks = problem()
    harmony = Harmony(2.0, importance=importance, grow_grad=grow_grad, max_norm=max_norm)
    before = [masks.flat(task).tolist() for task in range(3)]
    theta = torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()
    dense = []
    for task in range(3):
        with masks.shown(task, gradients="dense"):
            g = torch.cat([g.flatten() for g in torch.autograd.grad(loss_of(model, task), list(model.parameters()))])
        factor = 1.0 if max_norm is None else min(1.0, max_norm / (g.norm().item() + 1e-6))
        dense.append([value * factor for value in g.tolist()])
    harmony.update(masks, lambda task: loss_of(model, task), 3)
    size = len(theta)
    for k in range(3):
        masked = [[g if m else 0.0 for g, m in zip(dense[j], before[j], strict=True)] for j in range(3)]
        mean = [sum(masked[j][i] for j in range(3)) / 3 for i in range(size)]
        weight = [masked[k][i] ** 2 if importance == "fisher" else abs(theta[i]) for i in range(size)]
        score = {i: weight[i] + 2.0 * mean[i] * masked[k][i] for i in range(size) if before[k][i]}
        grown = dense if grow_grad == "dense" else masked
        agreement = {i: sum(grown[j][i] for j in range(3)) / 3 * grown[k][i] for i in range(size) if not before[k][i]}
        leaving = sorted(score, key=lambda i: (score[i], i))[:3]
        entering = sorted(agreement, key=lambda i: (-agreement[i], i))[:3]
        expected = [(m and i not in leaving) or i in entering for i, m in enumerate(before[k])]
        assert masks.flat(k).tolist() == expected


def test_an_update_keeps_the_counts_and_touches_no_parameter_or_gradient() -> None:
    model, masks = problem()
    values, counts, bits = model.weight.detach().clone(), masks.counts(), masks.bits.clone()
    for _ in range(5):
        Harmony().update(masks, lambda task: loss_of(model, task), 4)
        assert torch.equal(masks.counts(), counts)
    assert torch.equal(model.weight, values) and model.weight.grad is None
    assert not torch.equal(masks.bits, bits)
    bits = masks.bits.clone()
    Harmony().update(masks, lambda task: loss_of(model, task), 0)
    assert torch.equal(masks.bits, bits)
    Harmony().update(masks, lambda task: loss_of(model, task), 1000)  # as many as there are
    assert torch.equal(masks.counts(), counts)
    full = TaskMasks(model.named_parameters(), 3, density=1.0)
    Harmony().update(full, lambda task: loss_of(model, task), 5)
    assert full.flat(0).all()


@pytest.mark.parametrize("grow_grad", ["dense", "masked"])
def test_whole_channels_change_by_the_sums_of_their_elements(grow_grad: str) -> None:
    model = nn.Linear(6, 8).double()
    masks = TaskMasks(model.named_parameters(), 3, density=0.5, generator=generator(), granularity="channel")
    harmony = Harmony(2.0, grow_grad=grow_grad)
    before = [masks.of(task)[1].tolist() for task in range(3)]
    gradients = torch.stack([harmony.gradient(masks, lambda task: loss_of(model, task), k) for k in range(3)])
    scores = harmony.scores(masks, gradients)
    harmony.update(masks, lambda task: loss_of(model, task), 2)
    for k, (_, (inside, outside)) in enumerate(scores):
        sums = [(s[:48].view(8, 6).sum(1) + s[48:]).tolist() for s in (inside, outside)]
        has, lacks = ([q for q in range(8) if before[k][q] == there] for there in (True, False))
        leaving = sorted(has, key=lambda q: (sums[0][q], q))[:2]
        entering = sorted(lacks, key=lambda q: (-sums[1][q], q))[:2]
        expected = [(m and q not in leaving) or q in entering for q, m in enumerate(before[k])]
        assert masks.of(k)[1].tolist() == expected
        assert torch.equal(masks.of(k)[0], masks.of(k)[1][:, None].expand(8, 6))


def test_what_conflicts_leaves_and_what_agrees_enters() -> None:
    """Two tasks with opposite goals for the first weight, where the first task pulls harder, and for the last one."""
    p = nn.Parameter(torch.tensor([1.0, 1.0, 1.0, 1.0]))
    masks = TaskMasks([("p", p)], 2, density=0.5)
    masks.set_flat(0, torch.tensor([True, True, False, False]))
    masks.set_flat(1, torch.tensor([True, False, True, False]))
    goals = torch.tensor([[10.0, 3.0, 3.0, 1.0], [-7.0, 3.0, 3.0, -1.0]])
    Harmony(gamma=100.0, max_norm=None).update(masks, lambda task: (p - goals[task]).square().sum(), 1)
    assert masks.flat(1).tolist() == [False, True, True, False]
    assert masks.flat(0).tolist() == [True, False, True, False]


def test_a_gradient_that_is_not_finite_changes_no_mask() -> None:
    model, masks = problem()
    bits = masks.bits.clone()
    with pytest.raises(ValueError, match="finite gradients of task 2"):
        Harmony().update(masks, lambda task: loss_of(model, task) * (math.nan if task == 2 else 1.0), 3)
    with pytest.raises(ValueError, match="a loss with a graph of task 0"):
        Harmony().update(masks, lambda task: loss_of(model, task).detach(), 3)
    assert torch.equal(masks.bits, bits)


def test_unused_and_frozen_parameters_have_no_gradient() -> None:
    model, masks = problem()
    model.bias.requires_grad_(False)
    gradient = Harmony(max_norm=None).gradient(masks, lambda task: loss_of(model, task), 1)
    assert gradient[-4:].tolist() == [0.0] * 4 and gradient[:24].abs().min() > 0


@pytest.mark.parametrize("amount", [0, 1, 5, 12])
def test_selection_is_exact_and_goes_by_order_among_equals(amount: int) -> None:
    scores = torch.randint(0, 4, (30,), generator=generator()).double()
    among = torch.rand(30, generator=generator(1)) < 0.6
    places = [i for i in range(30) if among[i]]
    for select, sign in ((smallest, 1), (largest, -1)):
        expected = sorted(places, key=lambda i: (sign * scores[i].item(), i))[:amount]
        assert select(scores, among, amount).nonzero()[:, 0].tolist() == sorted(expected)


def test_what_leaves_does_not_enter_at_once() -> None:
    mask = torch.tensor([True, True, False, False])
    new = exchanged(mask, torch.tensor([0.0, 1.0, 9.0, 9.0]), torch.tensor([99.0, 99.0, 1.0, 2.0]), 1)
    assert new.tolist() == [False, True, False, True]


def test_the_budget_is_a_whole_period_of_the_cosine() -> None:
    budget = CosineBudget(steps=1000, low=10, high=110)
    assert [budget(step) for step in (0, 250, 500, 750, 1000, 2000)] == [10, 60, 110, 60, 10, 10]
    expected = int(110 + 0.5 * (10 - 110) * (1 + math.cos(2 * math.pi * 130 / 1000)))
    assert budget(130) == expected
    for options, message in (({"steps": 0}, "steps >= 1"), ({"steps": 5, "low": 7, "high": 3}, "high >= 7")):
        with pytest.raises(ValueError, match=message):
            CosineBudget(**options)


def test_groups_are_found_whatever_the_order_and_the_lengths() -> None:
    directions = normal(3, 40)
    owners = [0, 1, 2, 0, 1, 2, 0, 1, 1]
    gradients = torch.stack([(10.0**i) * (directions[o] + 0.1 * normal(40, seed=i + 5)) for i, o in enumerate(owners)])
    assert group_tasks(gradients, 3) == [[0, 3, 6], [1, 4, 7, 8], [2, 5]]
    assert group_tasks(gradients, 1) == [list(range(9))]
    assert group_tasks(torch.ones(4, 2), 3) == [[0, 1, 2, 3]], "equal tasks are one group"
    assert group_tasks(normal(4, 9), 4) == [[0], [1], [2], [3]]
    with pytest.raises(ValueError, match="at least 3 tasks"):
        group_tasks(normal(2, 9), 3)
    with pytest.raises(ValueError, match="finite gradients"):
        group_tasks(normal(2, 9) * math.inf, 2)


def test_bad_arguments_of_an_update_are_refused() -> None:
    model = nn.Linear(3, 4)
    masks = TaskMasks(model.named_parameters(), 2, density=0.5)
    before = masks.bits.clone()

    def loss(task: int) -> torch.Tensor:
        return (model(torch.ones(5, 3)) - task).square().mean()

    given: list[tuple[Any, Any, Any, type[Exception], str]] = [
        (None, loss, 1, TypeError, "masks as TaskMasks"),
        (masks, None, 1, TypeError, "loss_of as a function"),
        (masks, loss, -1, ValueError, "amount >= 0"),
        (masks, loss, True, TypeError, "amount as an int"),
        (masks, lambda task: 3.0, 1, TypeError, "as a tensor"),
        (masks, lambda task: None, 1, ValueError, "with a graph of task 0"),
        (masks, lambda task: model(torch.ones(5, 3)), 1, ValueError, "scalar|one number"),
    ]
    for of_masks, of_loss, amount, error, message in given:
        with pytest.raises(error, match=message):
            Harmony().update(of_masks, of_loss, amount)
    assert torch.equal(masks.bits, before)
    for step in (None, -1, 1.5, True):
        with pytest.raises((TypeError, ValueError), match="expected step"):
            CosineBudget(10)(step)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="gradients as a tensor"):
        group_tasks(None, 2)  # type: ignore[arg-type]


def test_bad_settings_are_refused() -> None:
    for options, message in (
        ({"gamma": -1.0}, "gamma finite and >= 0"),
        ({"importance": "random"}, "importance as one of"),
        ({"grow_grad": "sparse"}, "grow_grad as one of"),
        ({"max_norm": 0.0}, "max_norm > 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Harmony(**options)  # type: ignore[arg-type]
