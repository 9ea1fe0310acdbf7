"""Steps skipped because a method is not defined for a loss: by name, once, and again while nothing is learned."""

from __future__ import annotations

import copy
import math
import pickle
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mt2o_ext import MT2OFused, SubproblemBank, WeightedBackward, WeightedFused, weighted_backward
from mt2o_ext.base import SGD
from mt2o_ext.gradients.skipped import SkippedSteps, Skips
from mt2o_ext.scalarization import Linear, Log, Scalarization, SmoothTchebycheff, Tchebycheff
from mt2o_ext.weighting import GLS, STCH, GradNorm, LinearWeighting, LossDomain, UncertaintyWeighting
from support.optim.problems import Batches, assert_same, make_model, rows, several, task_losses
from support.optim.towers import Towers, batch_of, values, weighted


@contextmanager
def told() -> Iterator[list[str]]:
    """The texts of all warnings, also of repeated ones."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
    texts += [str(warning.message) for warning in caught]


def step_with(optimizer: WeightedFused, model: Towers, added: float, task: int = 1) -> None:
    """A step in which a number is added to one loss."""
    losses = model.losses(batch_of(0))
    losses[task] = losses[task] + added
    optimizer.backward(losses)
    optimizer.step()


# ---------------------------------------------------------------------- when it is told
STEPS = {
    "never": ("", []),
    "once": ("x", [1]),
    "now and then": ("x" + ".x" * 40, [1]),
    "always": ("x" * 1000, [1, 10, 100, 1000]),
    "from some time on": ("...x......" + "x" * 120, [4, 20, 110]),
    "twice for ten steps": ("x" * 12 + "." + "x" * 12, [1, 10]),
    "ten, then a hundred": ("x" * 10 + "." + "x" * 100, [1, 10, 111]),
}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("others", [0, 2])
def test_skipped_steps_are_news_once_and_while_nothing_is_learned(name: str, others: int) -> None:
    course, expected = STEPS[name]
    skips, seen = SkippedSteps(1 + others), []
    for step, what in enumerate(course, 1):
        found = torch.tensor([[3.0, 1.0, -0.5] if what == "x" else [0.0] * 3] + [[0.0] * 3] * others).double()
        skips.add(found, found[:, 0].float())
        for news in skips.news():
            seen.append(step)
            assert (news.reason, list(news.rows), news.task, news.value) == (3, [0], 1, -0.5)
    assert seen == expected


def test_each_reason_is_news_of_its_own() -> None:
    skips, seen = SkippedSteps(2), []
    for first, second in [(1, 0), (1, 4), (0, 4), (3, 3), (1, 4)]:
        found = torch.tensor([[first, 0, 0.5], [second, 1, 0.25]], dtype=torch.float64)
        skips.add(found, found[:, 0].float())
        seen.append([(news.reason, list(news.rows), news.value) for news in skips.news()])
    assert seen == [[(1, [0], 0.5)], [(4, [1], 0.25)], [], [(3, [0, 1], 0.5)], []]


def test_a_reason_that_the_host_learns_of_late_is_told_with_what_has_come_meanwhile() -> None:
    class Late(SkippedSteps):
        def _changed(self) -> None:
            pass  # nothing has arrived

    skips = Late(1)
    found = torch.tensor([[3.0, 1.0, -0.5]], dtype=torch.float64)
    for _ in range(57):
        skips.add(found, found[:, 0].float())
        assert list(skips.news()) == []
    skips._arriving = skips._table.clone()
    assert list(skips.news()) == [Skips(3, [0], 1, -0.5, 57)]
    assert list(skips.news()) == []
    # A skipped step that is over by the time somebody looks is told too.
    skips = Late(1)
    skips.add(found, found[:, 0].float())
    skips.add(0 * found, torch.zeros(1))
    skips._arriving = skips._table.clone()
    assert list(skips.news()) == [Skips(3, [0], 1, -0.5, 0)]


# ---------------------------------------------------------------------- one model
@pytest.mark.parametrize("accumulate", [False, True])
def test_the_method_the_task_and_the_value_are_named(accumulate: bool) -> None:
    model = Towers()
    optimizer = weighted(model, GLS(), accumulate=accumulate)
    before = snapshot_of(optimizer, model)
    with told() as texts:
        for _ in range(10):
            step_with(optimizer, model, -100.0)
    assert len(texts) == 2
    value = float(model.losses(batch_of(0))[1].detach() - 100)
    assert texts[0] == (
        f"GLS needs positive losses; task 1 had {value:.3g}: this step was skipped, nothing of it was changed. Add a "
        "constant to this loss, which changes no gradient, or choose a method that takes any loss. Later ones are "
        "counted in optimizer.skipped_steps, and told of again while nothing is learned."
    )
    assert "10 steps one after the other were skipped, nothing is learned. Add a constant" in texts[1]
    assert not any(re.search("subproblem|infinite", text) for text in texts)
    assert optimizer.skipped_steps.tolist() == [10]
    assert_same(snapshot_of(optimizer, model), before)
    with told() as texts:
        step_with(optimizer, model, 0.0)
    assert texts == [] and not torch.equal(values(model)[0], before[0][0])


def snapshot_of(optimizer: WeightedFused, model: nn.Module) -> list[Any]:
    assert optimizer._weigher is not None
    return [values(model), dict(optimizer._weigher.weighting.state_dict()), optimizer._weigher.steps]


def test_two_facts_have_two_texts() -> None:
    model = Towers()
    optimizer = weighted(model, GLS())
    with told() as texts:
        for added in (math.nan, -100.0, math.inf, -100.0, math.nan, -100.0):
            step_with(optimizer, model, added)
            step_with(optimizer, model, 0.0)
    assert [text.partition(":")[0].partition(";")[0] for text in texts] == [
        "a gradient or loss was infinite or NaN",
        "GLS needs positive losses",
    ]


def test_gradnorm_learns_from_satisfied_hinges_and_refuses_negative_losses() -> None:
    model = Towers()
    optimizer = weighted(model, GradNorm())
    with told() as texts:
        step_with(optimizer, model, 0.0)
        loss = float(model.losses(batch_of(0))[1].detach())
        losses = model.losses(batch_of(0))
        losses[1] = (losses[1] - 2 * loss).relu()
        optimizer.backward(losses)
        optimizer.step()
    assert texts == [] and optimizer.skipped_steps.tolist() == [0]
    with pytest.warns(UserWarning, match=r"^GradNorm needs positive losses at first, and later ones .*; task 1 had -"):
        step_with(optimizer, model, -100.0)


def test_a_copied_optimizer_does_not_tell_it_again() -> None:
    model = Towers()
    optimizer = weighted(model, GLS())
    with pytest.warns(UserWarning, match="GLS needs"):
        step_with(optimizer, model, -100.0)
    with told() as texts:
        for other_model, other in (copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))):
            step_with(other, other_model, -100.0)
            assert other.skipped_steps.tolist() == [2]
    assert texts == []


def test_buffers_that_are_made_anew_do_not_tell_it_again() -> None:
    model = Towers()
    optimizer = weighted(model, GLS())
    with told() as texts:
        step_with(optimizer, model, -100.0)
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})
        step_with(optimizer, model, -100.0)
    assert len(texts) == 1


def test_a_scaler_is_told_of_infinities_only() -> None:
    model = Towers()
    optimizer = weighted(model, STCH())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with told() as texts:
        for added in (-100.0, math.inf):
            losses = model.losses(batch_of(0))
            losses[0] = losses[0] + added
            optimizer.backward(losses, scaler=scaler)
            scaler.step(optimizer)
            scaler.update()
            assert scaler.get_scale() == (1024.0 if added == -100 else 512.0)
    assert len(texts) == 1 and texts[0].startswith("STCH needs positive losses; task 0 had ")
    assert optimizer.skipped_steps.tolist() == [2]


# ---------------------------------------------------------------------- weights that no number can hold
def test_a_weight_that_grew_out_of_range_is_told_by_name_and_destroys_nothing() -> None:
    """Its weight is a float64, the gradients are float32, and so would be what they are combined to."""
    for options in ({"accumulate": True}, {}):
        p = nn.Parameter(torch.zeros(4))
        weighting = UncertaintyWeighting(lr=5.0)
        optimizer = WeightedFused([p], num_tasks=2, weighting=weighting, base=SGD(), lr=1e-3, **options)
        with told() as texts:
            for _ in range(60):
                before, state = p.detach().clone(), weighting.state_dict()
                skipped = int(optimizer.skipped_steps)
                optimizer.step(lambda: [(p[:2] - 1).square().sum() - 100, (p[2:] - 1).square().sum() + 1])  # noqa: B023
                if int(optimizer.skipped_steps) > skipped:
                    assert torch.equal(p, before)
                    assert all(torch.equal(value, state[key]) for key, value in weighting.state_dict().items())
                else:
                    p.data.zero_()
        assert p.isfinite().all()
        assert int(optimizer.skipped_steps) >= 10
        named = r"the weight that UncertaintyWeighting gives task 0 is out of range: \d" if options else (
            r"a gradient or loss was infinite or NaN; gradients are those of the weighted losses, the largest weight "
            r"was \d.*e\+3\d, of task 0: this step"
        )  # fmt: skip
        assert len(texts) == 2 and all(re.match(named.removesuffix(": this step"), text) for text in texts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_are_as_large_as_the_sum_of_their_gradients_allows(dtype: torch.dtype) -> None:
    """1e30 is a weight like any other for gradients of 1e-20, and none for those of 1e20."""
    for size, works in ((1e-20, True), (1e20, dtype == torch.float64)):
        p = nn.Parameter(torch.zeros(3, dtype=dtype))
        optimizer = WeightedFused(
            [p], num_tasks=2, weighting=LinearWeighting(1e30), base=SGD(), lr=1e-10, accumulate=True
        )
        with told() as texts:
            optimizer.step(lambda: [size * p.sum(), size * p[:1].sum()])  # noqa: B023
        assert p.isfinite().all() and bool(p.any()) == works
        assert [text.partition(" gives")[0] for text in texts] == ["the weight that LinearWeighting"] * (not works)


# ---------------------------------------------------------------------- subproblems
def losses_of(model: nn.Module, batches: Batches) -> Tensor:
    x, y = next(batches)
    return task_losses(model(x), y)


@pytest.mark.parametrize("skip", ["subproblem", "all"])
def test_a_scalarization_names_the_subproblem_that_it_is_not_defined_for(skip: str) -> None:
    model = make_model()
    optimizer = several(model, scalarization=Log(), skip_nonfinite=skip)
    batches, before = Batches(), rows(optimizer, model)

    def step(bad: Sequence[int]) -> None:
        for k in optimizer.subproblems():
            losses = losses_of(model, batches)
            optimizer.backward(losses - torch.tensor([0.0, 50.0]) if k in bad else losses)
        optimizer.step()
        optimizer.zero_grad()

    with told() as texts:
        step([1, 2])
    assert len(texts) == 1
    assert re.match(
        r"Log needs positive losses; task 1 of subproblem 1 had -\d\d\.\d \(others: subproblem 2\): this step was "
        rf"skipped for {'it' if skip == 'subproblem' else 'all'}, nothing of it was changed\. Add a constant",
        texts[0],
    )
    after = rows(optimizer, model)
    for k in range(3):
        assert torch.equal(after[k][0], before[k][0]) == (k > 0 or skip == "all")
    with told() as texts:
        step([])
        step([1])
    assert texts == []


def test_micro_batches_are_judged_one_by_one(front: str) -> None:
    """Their losses add up to a positive one, but the gradient of each is divided by its own."""
    model = make_model()
    optimizer = several(model, scalarization=Log(), num_subproblems=1, preferences=[[0.5, 0.5]], front=front)
    before = rows(optimizer, model)
    for added in (0.0, -50.0, 100.0):
        optimizer.backward(losses_of(model, Batches()) + torch.tensor([added, 0.0]))
    with told() as texts:
        optimizer.step()
    assert_same(rows(optimizer, model), before)
    assert len(texts) == 1 and re.match(r"Log needs positive losses; task 0 had -[\d.]+: this step", texts[0])
    optimizer.zero_grad()
    optimizer.backward(losses_of(model, Batches()))
    with told() as texts:
        optimizer.step()
    assert texts == [] and not torch.equal(rows(optimizer, model)[0][0], before[0][0])


def test_a_bank_names_its_subproblem(front: str) -> None:
    bank = SubproblemBank(make_model(), 3)
    optimizer = MT2OFused(
        bank.parameters(), num_tasks=2, num_subproblems=3, stacked=True, scalarization=Log(), transfer=None, front=front
    )
    x = torch.randn(3, 16, 7, generator=torch.Generator().manual_seed(0))
    shift = torch.tensor([[0.0, 0.0], [0.0, 0.0], [50.0, 0.0]])
    optimizer.backward(task_losses(bank(x), x[..., 0]) - shift)
    with pytest.warns(UserWarning, match="Log needs positive losses; task 0 of subproblem 2 had -"):
        optimizer.step()
    assert optimizer.skipped_steps.tolist() == ([0, 0, 1] if front == "rows" else [1, 1, 1])


def test_a_weighting_inside_of_a_subproblem_is_named_beside_the_scalarization(front: str) -> None:
    model = make_model()
    optimizer = several(model, scalarization=Log(), weighting=GLS(), front=front)
    with told() as texts:
        for k in optimizer.subproblems():
            optimizer.backward(losses_of(model, Batches()) - torch.tensor([0.0, 50.0 * (k == 2)]))
        optimizer.step()
    assert len(texts) == 1 and texts[0].startswith("Log needs positive losses; task 1 of subproblem 2 had -")
    optimizer = several(model, scalarization=Linear(), weighting=GLS(), front=front)
    with told() as texts:
        for k in optimizer.subproblems():
            optimizer.backward(losses_of(model, Batches()) - torch.tensor([50.0 * (k == 1), 0.0]))
        optimizer.step()
    assert len(texts) == 1 and texts[0].startswith("GLS needs positive losses; task 0 of subproblem 1 had -")
    assert optimizer.skipped_steps.tolist() == ([0, 1, 0] if front == "rows" else [1, 1, 1])


@pytest.mark.parametrize("scalarization", [Linear(), Tchebycheff(), SmoothTchebycheff(), Log()], ids=repr)
def test_a_constant_added_to_a_loss_never_makes_a_scalarization_ascend(scalarization: Scalarization) -> None:
    for constant in (-100.0, -0.25):
        p = nn.Parameter(torch.zeros(4, dtype=torch.float64))
        optimizer = MT2OFused(
            [p],
            num_tasks=2,
            num_subproblems=1,
            preferences=[[0.5, 0.5]],
            scalarization=scalarization,
            base=SGD(),
            lr=0.2,
        )

        def losses() -> list[Tensor]:
            halves = ((p[half] - 1).square().sum() / 2 for half in (slice(2), slice(2, 4)))  # noqa: B023
            return [loss + added for loss, added in zip(halves, (constant, 1.0), strict=True)]  # noqa: B023

        start = [float(loss.detach()) for loss in losses()]
        with told() as texts:
            for _ in range(10):
                before = torch.stack([torch.autograd.grad(loss, p)[0] for loss in losses()]), p.detach().clone()
                optimizer.step(losses)
                assert (before[0] @ (p.detach() - before[1]) <= 1e-12).all()
        refused = [text for text in texts if text.startswith("Log needs positive losses; task 0 had -")]
        assert texts == refused
        if scalarization.loss_domain is LossDomain.ANY:
            assert not texts and any(
                float(loss.detach()) < old - 0.1 for loss, old in zip(losses(), start, strict=True)
            )
        elif constant == -100:
            assert len(texts) == 2 and not p.any()


def test_an_own_scalarization_declares_its_domain() -> None:
    class Roots(Linear):
        loss_domain = LossDomain.NON_NEGATIVE

    losses, preferences = torch.tensor([[1.0, -1.0], [0.0, 1.0]]), torch.tensor([0.5, 0.5])
    assert Roots().coefficients(losses, preferences).isnan().tolist() == [[True, True], [False, False]]
    found = Roots().refusals(losses)
    assert found is not None and found.tolist() == [[1, 1, -1], [0, 0, 0]]
    assert Linear().refusals(losses) is None


# ---------------------------------------------------------------------- into .grad
@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize("weighting", ["gls", "gradnorm"])
def test_weighted_backward_warns_of_what_it_cannot_weight(weighting: str, store: bool) -> None:
    model = Towers()
    backward = WeightedBackward(model.groups(), num_tasks=3, weighting=weighting, store=store)

    def call(added: float) -> Tensor:
        losses = model.losses(batch_of(0))
        losses[2] = losses[2] + added
        return backward(losses)

    state = copy.deepcopy(backward.state_dict()["weighting"])
    with told() as texts:
        for _ in range(10):
            assert call(-100.0).isnan().all()
    assert len(texts) == 2
    name = {"gls": "GLS", "gradnorm": "GradNorm"}[weighting]
    assert re.match(
        rf"{name} needs positive losses.*; task 2 had -\d\d\.\d: the weights and the gradients of this call are NaN\. "
        "Add a constant",
        texts[0],
    )
    assert "gradients of 10 calls one after the other are NaN" in texts[1]
    assert_same(backward.state_dict()["weighting"], state)
    with told() as texts:
        assert call(0.0).isfinite().all()
        assert call(math.nan).isnan().all()  # nothing hidden, and nothing that the weighting has to say
    assert texts == []


def test_one_call_warns_too() -> None:
    model = Towers()
    losses = model.losses(batch_of(0))
    losses[0] = losses[0] - 100
    with pytest.warns(UserWarning, match="DBMTL needs positive losses; task 0 had -"):
        weighted_backward(losses, model.groups(), weighting="db-mtl")
