"""A weighting inside of MT2O's subproblems: K runs of WeightedFused at once, and how preferences come in."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from mt2o_ext import MT2OFused, SubproblemBank, WeightedFused
from mt2o_ext.base import SGD
from mt2o_ext.scalarization import Linear, SmoothTchebycheff
from mt2o_ext.transfer import Mean
from mt2o_ext.weighting import (
    FAMO,
    AlignedMTL,
    CAGrad,
    ExcessMTL,
    GradDrop,
    LinearWeighting,
    NashMTL,
    PCGrad,
    PerSegment,
    UPGrad,
    Weighting,
)
from support.optim.problems import Batches, assert_same, make_model, rows, several, snapshot, task_losses, train
from support.optim.towers import Towers, batch_of

WEIGHTS = [[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]]
METHODS: list[Callable[[], Weighting]] = [
    LinearWeighting, CAGrad, NashMTL, UPGrad, AlignedMTL, lambda: PerSegment(UPGrad()),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_subproblems_without_transfer_are_weighted_runs(method: Callable[[], Weighting], dtype: torch.dtype) -> None:
    model = make_model(dtype)
    singles = [make_model(dtype) for _ in WEIGHTS]
    optimizer = several(model, scalarization=None, weighting=method(), preferences=WEIGHTS)
    alone = [
        WeightedFused(single.parameters(), num_tasks=2, weighting=method(), preferences=u, lr=1e-2, accumulate=True)
        for single, u in zip(singles, WEIGHTS, strict=True)
    ]
    batches = Batches(dtype=dtype)
    for _ in range(5):
        drawn = [next(batches) for _ in WEIGHTS]
        queue = iter(drawn)
        optimizer.step(lambda: task_losses(model((batch := next(queue))[0]), batch[1]))  # noqa: B023
        for single, other, (x, y) in zip(singles, alone, drawn, strict=True):
            other.step(lambda: task_losses(single(x), y))  # noqa: B023
        weights = torch.cat([other.weights for other in alone])  # type: ignore[misc]
        assert_same(optimizer.weights, weights)
    for row, single in zip(rows(optimizer, model), singles, strict=True):
        assert_same(row, [p.detach() for p in single.parameters()])


@pytest.mark.parametrize("scalarization", [Linear(), SmoothTchebycheff(mu=0.5)])
def test_equal_weights_leave_the_scalarization_as_it_is(scalarization: Any) -> None:
    results = []
    for weighting in (None, LinearWeighting()):
        model = make_model(torch.float64)
        optimizer = several(model, scalarization=scalarization, weighting=weighting, base=SGD())
        train(optimizer, model, Batches(dtype=torch.float64), 5)
        results.append(rows(optimizer, model))
    torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("method", [CAGrad, UPGrad, PCGrad])
def test_a_weighting_sees_gradients_scaled_by_the_scalarization(method: Callable[[], Weighting]) -> None:
    model = make_model(torch.float64)
    optimizer = several(model, weighting=method(), preferences=WEIGHTS, generator=torch.Generator().manual_seed(1))
    batches, grams = Batches(dtype=torch.float64), []
    for k in optimizer.subproblems():
        x, y = next(batches)
        losses = task_losses(model(x), y)
        scaled = [2 * u * loss for u, loss in zip(WEIGHTS[k], losses, strict=True)]
        grads = [torch.autograd.grad(loss, list(model.parameters()), retain_graph=True) for loss in scaled]
        J = torch.stack([torch.cat([g.flatten() for g in row]) for row in grads])
        grams.append(J @ J.T)
        optimizer.backward(losses)
    optimizer.step()
    expected = method()(torch.stack(grams), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(optimizer.weights, expected, rtol=1e-9, atol=1e-12)


def test_loop_closure_and_bank_are_the_same_run() -> None:
    models = [make_model(), make_model()]
    bank = SubproblemBank(make_model(), 3)
    closure, loop = (several(model, weighting=CAGrad(), transfer=Mean(0.3)) for model in models)
    stacked = MT2OFused(
        bank.parameters(), num_tasks=2, num_subproblems=3, stacked=True, lr=1e-2, weighting=CAGrad(),
        transfer=Mean(0.3),
    )  # fmt: skip
    batches = Batches()
    for _ in range(4):
        drawn = [next(batches) for _ in range(3)]
        queue = iter(drawn)
        closure.step(lambda: task_losses(models[0]((batch := next(queue))[0]), batch[1]))  # noqa: B023
        for k in loop.subproblems():
            loop.backward(task_losses(models[1](drawn[k][0]), drawn[k][1]))
        loop.step()
        x, y = (torch.stack(parts) for parts in zip(*drawn, strict=True))
        stacked.backward(task_losses(bank(x), y))
        stacked.step()
    assert_same(snapshot(loop), snapshot(closure))
    for k, row in enumerate(rows(closure, models[0])):
        with bank.subproblem(k) as copy:
            torch.testing.assert_close(list(copy.parameters()), [nn.Parameter(p) for p in row], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("heads", ["plain", "weighted"])
def test_heads(heads: str) -> None:
    model = Towers(2, torch.float64)
    optimizer = MT2OFused(
        model.groups(), num_tasks=2, num_subproblems=3, weighting=UPGrad(), heads=heads, transfer=None, base=SGD(),
        lr=0.1, preferences=WEIGHTS,
    )  # fmt: skip
    before = rows(optimizer, model)
    for k in optimizer.subproblems():
        optimizer.backward(model.losses(batch_of(k, torch.float64)))
    optimizer.step()
    assert optimizer.weights is not None
    other = Towers(2, torch.float64)
    for k, (row, old) in enumerate(zip(rows(optimizer, model), before, strict=True)):
        other.load_state_dict(dict(zip(other.state_dict(), old, strict=True)))
        grads = other.gradients(batch_of(k, torch.float64), list(other.parameters()))
        for task in range(2):
            weight = 2 * WEIGHTS[k][task] * (optimizer.weights[k, task] if heads == "weighted" else 1.0)
            torch.testing.assert_close(row[4 + 2 * task], old[4 + 2 * task] - 0.1 * weight * grads[task][4 + 2 * task])


@pytest.mark.parametrize("skip", ["subproblem", "all"])
def test_infinities_skip_rows_and_their_state(skip: str) -> None:
    model = make_model()
    optimizer = several(model, weighting=NashMTL(), scalarization=None, skip_nonfinite=skip)
    train(optimizer, model, Batches(), 2)
    before, state = rows(optimizer, model), optimizer.state_dict()["param_groups"][0]["mt2o"]["weighting"]["weighting"]
    batches = Batches(5)
    with pytest.warns(UserWarning, match="subproblem 1"):  # noqa: PT031
        for k in optimizer.subproblems():
            x, y = next(batches)
            losses = task_losses(model(x), y)
            optimizer.backward(losses * float("inf") if k == 1 else losses)
        optimizer.step()
    after = optimizer.state_dict()["param_groups"][0]["mt2o"]["weighting"]["weighting"]
    for k, (row, old) in enumerate(zip(rows(optimizer, model), before, strict=True)):
        kept = k == 1 or skip == "all"
        assert torch.equal(row[0], old[0]) == kept
        for key in state:
            assert torch.equal(after[key][k], state[key][k]) == kept


@pytest.mark.filterwarnings("ignore:FAMO.* there was no feedback")
@pytest.mark.parametrize("method", [NashMTL, PCGrad, ExcessMTL, GradDrop, FAMO])
def test_resume(method: Callable[[], Weighting]) -> None:
    model, other_model = make_model(), make_model(seed=3)
    options: dict[str, Any] = {"transfer": Mean(0.3), "ema": 0.9}
    options |= {"scalarization": None} if method is NashMTL else {}
    optimizer = several(model, weighting=method(), **options)
    batches = Batches()
    train(optimizer, model, batches, 5)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = several(other_model, weighting=method(), **options)
    other.load_state_dict(torch.load(file, weights_only=True))
    others = Batches()
    others.generator.set_state(batches.generator.get_state())
    assert_same(train(other, other_model, others, 4), train(optimizer, model, batches, 4))
    assert_same(snapshot(other), snapshot(optimizer))
    assert_same(rows(other, other_model), rows(optimizer, model))


def test_feedback_of_all_subproblems() -> None:
    model, weighting = make_model(), FAMO()
    optimizer = several(model, weighting=weighting)
    train(optimizer, model, Batches(), 1)
    before = weighting.state_dict()["logits"]
    optimizer.feedback(torch.rand(3, 2))
    assert not torch.equal(weighting.state_dict()["logits"], before)


def test_options_that_do_not_fit() -> None:
    model = make_model()
    with pytest.raises(ValueError, match="scalarization=None"):
        several(model, scalarization=None)
    with pytest.raises(ValueError, match="name of a weighting"):
        several(model, weighting="sum of squares")
    with pytest.raises(TypeError, match="instance"):
        several(model, weighting=CAGrad)
    plain, inner = several(make_model()), several(make_model(), weighting=CAGrad())
    for first, second in ((plain, inner), (inner, plain)):
        with pytest.raises(ValueError, match="with a weighting"):
            first.load_state_dict(second.state_dict())
