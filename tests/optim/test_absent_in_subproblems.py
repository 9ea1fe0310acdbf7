"""Subproblems whose mini-batch has no data of a task: they train as if there were no such task."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from mt2o_ext import MT2OFused
from mt2o_ext.base import SGD
from mt2o_ext.scalarization import COSMOS, PBI, FewForMany, Linear, Log, Scalarization, SmoothTchebycheff
from support.optim.problems import assert_same
from support.optim.towers import Towers, batch_of, values

ROWS = [[0.2, 0.5, 0.3], [0.6, 0.1, 0.3], [0.1, 0.1, 0.8], [0.25, 0.5, 0.25]]
WITHOUT = [[row[0] / (row[0] + row[2]), row[2] / (row[0] + row[2])] for row in ROWS]
K, ABSENT = len(ROWS), 1
Losses = Callable[[Tensor, int], Any]


def rows_of(
    model: Towers, num_tasks: int = 3, preferences: Sequence[Sequence[float]] = ROWS, **options: Any
) -> MT2OFused:
    given: dict[str, Any] = {"transfer": None, "lr": 1e-2, **options}
    return MT2OFused(
        model.parameters(), num_tasks=num_tasks, num_subproblems=len(preferences), preferences=preferences, **given
    )


def train(optimizer: MT2OFused, losses: Losses, steps: int = 3) -> list[Tensor]:
    """Every second step by a closure; returns the losses of these."""
    found = []
    for step in range(steps):
        if step % 2:
            rows = iter(range(K))
            found.append(optimizer.step(lambda: losses(batch_of(10 * step + (k := next(rows))), k)))  # noqa: B023
            continue
        for k in optimizer.subproblems():
            optimizer.backward(losses(batch_of(10 * step + k), k))
        optimizer.step()
    return found  # type: ignore[return-value]


def everything(optimizer: MT2OFused, model: Towers) -> list[list[Tensor]]:
    found = []
    for k in range(K):
        with optimizer.subproblem(k):
            found.append(values(model))
    return found


def lacking(model: Towers, absent: dict[int, set[int]]) -> Losses:
    return lambda batch, k: [
        None if task in absent.get(k, ()) else loss for task, loss in enumerate(model.losses(batch))
    ]


SCALARIZATIONS: dict[str, tuple[Scalarization, Scalarization]] = {
    "linear": (Linear(), Linear()),
    "linear, scaled": (Linear(loss_scale=[2.0, 3.0, 4.0]), Linear(loss_scale=[2.0, 4.0])),
    "smooth": (SmoothTchebycheff(mu=0.5, ideal=[0.1, 9.0, 0.05]), SmoothTchebycheff(mu=0.5, ideal=[0.1, 0.05])),
    "pbi": (PBI(), PBI()),
    "cosmos": (COSMOS(), COSMOS()),
    "log": (Log(), Log()),
    "few for many": (FewForMany(mu=0.5), FewForMany(mu=0.5)),
}


OF_TWO = pytest.mark.filterwarnings("ignore:no loss has a gradient")  # of the twin, which has a third head


@OF_TWO
@pytest.mark.parametrize("name", SCALARIZATIONS)
def test_as_an_optimizer_of_the_other_tasks(name: str) -> None:
    """To rounding (preferences are divided by their sum), the head of the absent task stands still."""
    models = [Towers(), Towers()]
    ours = rows_of(models[0], scalarization=SCALARIZATIONS[name][0], history=2)
    others = rows_of(models[1], 2, WITHOUT, scalarization=SCALARIZATIONS[name][1])
    found = train(
        ours, lambda batch, k: [None if task == ABSENT else loss for task, loss in enumerate(models[0].losses(batch))]
    )
    expected = train(others, lambda batch, k: [models[1].losses(batch)[task] for task in (0, 2)])
    torch.testing.assert_close(everything(ours, models[0]), everything(others, models[1]), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close([one[:, [0, 2]] for one in found], expected, rtol=1e-6, atol=1e-7)
    assert all(one[:, ABSENT].isnan().all() for one in found)
    record = ours.history().losses
    assert record is not None and record[:, :, ABSENT].isnan().all() and record[:, :, [0, 2]].isfinite().all()
    start = Towers().heads[ABSENT].weight
    for k in range(K):
        with ours.subproblem(k):
            assert torch.equal(models[0].heads[ABSENT].weight, start)
            assert not torch.equal(models[0].heads[0].weight, Towers().heads[0].weight)


@OF_TWO
@pytest.mark.parametrize(
    ("weighting", "options"),
    [
        *itertools.product(["upgrad", "graddrop", "excessmtl", "imtl-l"], [{}, {"heads": "weighted"}]),
        *itertools.product(["upgrad", "nash-mtl"], [{"scalarization": None}]),  # which go by preferences
    ],
    ids=str,
)
def test_with_a_weighting(weighting: str, options: dict[str, Any]) -> None:
    models = [Towers(), Towers()]
    generators = [torch.Generator().manual_seed(0) for _ in models]
    ours = rows_of(models[0], weighting=weighting, generator=generators[0], **options)
    others = rows_of(models[1], 2, WITHOUT, weighting=weighting, generator=generators[1], **options)
    train(
        ours, lambda batch, k: [None if task == ABSENT else loss for task, loss in enumerate(models[0].losses(batch))]
    )
    train(others, lambda batch, k: [models[1].losses(batch)[task] for task in (0, 2)])
    torch.testing.assert_close(everything(ours, models[0]), everything(others, models[1]), rtol=1e-5, atol=1e-6)
    assert ours.weights is not None and bool((ours.weights.reshape(-1, 3)[:, ABSENT] == 0).all())


def test_subproblems_lack_different_tasks() -> None:
    """And one prefers only what it lacks: its gradient is zero."""
    model = Towers(dtype=torch.float64)
    preferences = [*ROWS[:3], [0.0, 1.0, 0.0]]
    optimizer = rows_of(model, preferences=preferences, base=SGD(), lr=0.1)
    absent = {0: {0}, 1: {1, 2}, 3: {1}}
    parameters = list(model.parameters())
    expected = []
    for k, row in enumerate(preferences):
        there = [task for task in range(3) if task not in absent.get(k, ())]
        total = sum(row[task] for task in there)
        grads = model.gradients(batch_of(k, torch.float64), parameters)
        step = [sum(row[t] / (total or 1) * grads[t][i] for t in there) for i in range(len(parameters))]
        expected.append([p.detach() - 0.1 * g for p, g in zip(parameters, step, strict=True)])
    losses = lacking(model, absent)
    for k in optimizer.subproblems():
        optimizer.backward(losses(batch_of(k, torch.float64), k))
    optimizer.step()
    torch.testing.assert_close(everything(optimizer, model), expected, rtol=1e-9, atol=1e-12)
    assert_same(everything(optimizer, model)[3], values(Towers(dtype=torch.float64)))


def test_a_weighting_wants_the_same_tasks_everywhere() -> None:
    model = Towers()
    optimizer = rows_of(model, weighting="upgrad")
    before = everything(optimizer, model)
    losses = lacking(model, {2: {0}})
    with pytest.raises(ValueError, match=r"the same tasks without a loss .* \[\[\], \[\], \[0\], \[\]\]"):
        optimizer.step(lambda: losses(batch_of(0), optimizer._now.row))
    optimizer.zero_grad()
    for row, was in zip(everything(optimizer, model), before, strict=True):
        assert_same(row, was)
    train(optimizer, lacking(model, {}))


@pytest.mark.parametrize("weighting", [None, "upgrad"])
def test_a_task_that_one_of_two_micro_batches_has_is_there(weighting: str | None) -> None:
    model, twin = Towers(), Towers()
    optimizer, other = rows_of(model, weighting=weighting), rows_of(twin, weighting=weighting)
    for _ in range(2):
        for part in range(2):
            for k in optimizer.subproblems():
                losses: list[Any] = model.losses(batch_of(k))
                optimizer.backward(losses if part else [losses[0], losses[1].detach(), losses[2]])
        optimizer.step()
        for k in other.subproblems():
            other.backward(twin.losses(batch_of(k)))
            first, _, last = twin.losses(batch_of(k))
            other.backward([first, None, last])  # whose preferences are shared out among two tasks
        other.step()
    torch.testing.assert_close(everything(optimizer, model), everything(other, twin), rtol=1e-6, atol=1e-7)
    assert not torch.equal(model.heads[1].weight, Towers().heads[1].weight)


def test_points_of_a_front_on_vertices() -> None:
    """The gradient of a point is that of its own scalarized losses without the task."""
    model = Towers(dtype=torch.float64)
    optimizer = MT2OFused(model.parameters(), num_tasks=3, front="vertices", points=1, base=SGD(), lr=0.1)
    [point] = optimizer.points.tolist()
    grads = model.gradients(batch_of(0, torch.float64), list(model.parameters()))
    share = [point[task] / (point[0] + point[2]) for task in (0, 2)]
    expected = [
        [p.detach() - 0.1 * 3 * w * (share[0] * grads[0][i] + share[1] * grads[2][i])
         for i, p in enumerate(model.parameters())]
        for w in point
    ]  # fmt: skip
    losses = model.losses(batch_of(0, torch.float64))
    optimizer.backward([losses[0], None, losses[2]])
    optimizer.step()
    for vertex, row in enumerate(expected):
        with optimizer.at([float(task == vertex) for task in range(3)]):
            torch.testing.assert_close(values(model), row, rtol=1e-9, atol=1e-12)


def test_the_warning_names_the_task_whose_loss_is_refused() -> None:
    model = Towers()
    optimizer = rows_of(model, scalarization=Log())
    with pytest.warns(UserWarning, match=r"Log.*task 2"):
        optimizer.step(lambda: [None, *(model.losses(batch_of(0))[1:2]), -model.losses(batch_of(0))[2]])


def test_a_subproblem_without_any_data_is_refused() -> None:
    model = Towers()
    optimizer = rows_of(model)
    for _ in optimizer.subproblems():
        with pytest.raises(ValueError, match="expected a loss of at least one task"):
            optimizer.backward([None, None, None])
        break


def test_no_false_warning_about_heads_without_gradients() -> None:
    model = Towers()  # warnings are errors here
    train(rows_of(model), lacking(model, {k: {1} for k in range(K)}), steps=2)
