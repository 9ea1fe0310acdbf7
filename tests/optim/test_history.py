"""The record of the last steps: its numbers, its length, its state."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mt2o_ext import MT2OFused, WeightedFused
from mt2o_ext.transfer import Mean
from support.optim.priority_model import Batches as PriorityBatches
from support.optim.priority_model import network, optimizer_of
from support.optim.problems import Batches, assert_same, make_model, seeded, task_losses


def weighted(model: nn.Module, **options: Any) -> WeightedFused:
    return WeightedFused(
        model.parameters(), **{"num_tasks": 2, "weighting": "upgrad", "lr": 1e-2, "history": 4, **options}
    )


def subproblems(model: nn.Module, **options: Any) -> MT2OFused:
    given = {"num_tasks": 2, "num_subproblems": 5, "lr": 1e-2, "history": 4, "weighting": "cagrad", "front": "rows"}
    return MT2OFused(model.parameters(), **seeded(**{**given, **options}))


def points(model: nn.Module, **options: Any) -> MT2OFused:
    return subproblems(model, **{"front": "vertices", **options})


def train(
    optimizer: WeightedFused | MT2OFused, model: nn.Module, steps: int, *, explicit: bool = False
) -> list[Tensor]:
    batches = Batches()
    found = []

    def losses() -> Tensor:
        x, y = next(batches)
        return task_losses(model(x), y)

    for _ in range(steps):
        if explicit:
            given = losses()
            optimizer.backward(given)
            optimizer.step()
            found.append(given.detach().double())
        else:
            result = optimizer.step(losses)
            assert result is not None
            found.append(result)
    return found


@pytest.mark.parametrize("explicit", [False, True], ids=["closure", "explicit"])
def test_the_last_steps_are_kept_in_their_order(explicit: bool) -> None:
    model = make_model()
    optimizer = weighted(model, max_norm=0.5)
    losses = train(optimizer, model, 6, explicit=explicit)
    history = optimizer.history()
    assert len(history) == 4 and history.steps.tolist() == [2, 3, 4, 5]
    assert history.losses is not None and history.weights is not None and history.grad_norm is not None
    torch.testing.assert_close(history.losses[:, 0], torch.stack(losses[2:]))
    assert optimizer.weights is not None and optimizer.grad_norm is not None
    assert_same(history.weights[-1], optimizer.weights)
    assert_same(history.grad_norm[-1], optimizer.grad_norm)
    assert not history.skipped.any()


def test_cosines_are_those_of_the_task_gradients() -> None:
    model = make_model(torch.float64)
    optimizer = weighted(model)
    x, y = next(Batches(dtype=torch.float64))
    losses = task_losses(model(x), y)
    rows = [
        torch.cat([grad.reshape(-1) for grad in torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)])
        for loss in losses
    ]
    optimizer.backward(losses)
    optimizer.step()
    history = optimizer.history()
    expected = torch.nn.functional.cosine_similarity(rows[0], rows[1], dim=0)
    assert history.cosines is not None and history.conflicts is not None
    torch.testing.assert_close(history.cosines[0, 0, 0, 1], expected)
    assert history.conflicts.tolist() == [[int(expected < 0)]]
    assert weighted(make_model(), weighting="dwa").history().cosines is None


@pytest.mark.parametrize("options", [{}, {"weighting": None}, {"front": "vertices", "points": 3}], ids=str)
def test_of_several_subproblems(options: dict[str, Any]) -> None:
    model = make_model()
    optimizer = subproblems(model, **options)
    rows = options.get("points", 5)
    train(optimizer, model, 3)
    history = optimizer.history()
    assert history.losses is not None and history.losses.shape == (3, rows, 2)
    assert (history.weights is None) == ("weighting" in options) == (history.cosines is None)
    assert history.skipped.shape == (3, rows)


def test_losses_of_random_points_come_with_the_points() -> None:
    model = make_model()
    optimizer, drawn = points(model, points=3), []
    for _ in range(3):
        drawn.append(optimizer.points)
        train(optimizer, model, 1)
    history = optimizer.history()
    assert history.points is not None
    assert_same(history.points, torch.stack(drawn))
    columns = history.columns()
    assert_same(columns["point 1, subproblem 2"], torch.stack(drawn)[:, 2, 1])
    assert subproblems_history().points is None and "point 0, subproblem 0" not in subproblems_history().columns()


def test_a_skipped_step_is_marked() -> None:
    model = make_model()
    optimizer = weighted(model)
    train(optimizer, model, 2)
    x, y = next(Batches())
    with pytest.warns(UserWarning, match="skipped"):
        optimizer.step(lambda: task_losses(model(x), y) * torch.tensor([1.0, torch.inf]))
    assert optimizer.history().skipped.tolist() == [[False], [False], [True]]


@pytest.mark.parametrize("kind", [weighted, subproblems, points])
def test_it_goes_on_after_loading(kind: Any) -> None:
    model = make_model()
    optimizer = kind(model)
    train(optimizer, model, 5)
    state = optimizer.state_dict()
    other = make_model(seed=1)
    resumed = kind(other)
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(state)
    assert_same(resumed.history().losses, optimizer.history().losses)
    copied = copy.deepcopy((model, optimizer))
    for of, one in ((optimizer, model), (resumed, other), (copied[1], copied[0])):
        train(of, one, 2)
        assert_same(of.history().losses, optimizer.history().losses)
    shorter, plain = kind(make_model(), history=2), kind(make_model(), history=0)
    shorter.load_state_dict(state)
    plain.load_state_dict(state)
    assert len(shorter.history()) == 0
    kind(make_model()).load_state_dict(plain.state_dict())
    with pytest.raises(RuntimeError, match="history="):
        plain.history()


def test_it_changes_nothing() -> None:
    models = [make_model(), make_model()]
    for model, length in zip(models, (0, 3), strict=True):
        train(weighted(model, history=length), model, 5)
    assert_same(*([p.detach() for p in model.parameters()] for model in models))


def test_tables_and_plots() -> None:
    pytest.importorskip("matplotlib").use("agg")
    pandas = pytest.importorskip("pandas")
    model = make_model()
    optimizer = weighted(model, max_norm=1.0)
    train(optimizer, model, 3)
    frame = optimizer.history().to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == [
        "skipped", "loss 0", "loss 1", "weight 0", "weight 1", "cosine 0 1", "grad_norm",
    ]  # fmt: skip
    figure = optimizer.history().plot()
    assert [axis.get_ylabel() for axis in figure.axes] == ["loss", "weight", "cosine", "grad norm"]
    assert len(figure.axes[0].lines) == 2
    assert "loss 1, subproblem 4" in subproblems_history().columns()


def subproblems_history() -> Any:
    model = make_model()
    optimizer = subproblems(model)
    train(optimizer, model, 1)
    return optimizer.history()


@pytest.mark.parametrize("length", [-1, 2.5, "all"])
def test_lengths_that_cannot_be(length: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="history"):
        weighted(make_model(), history=length)


def test_infinite_losses_and_absent_tasks_are_what_they_were_after_loading() -> None:
    model = make_model()
    optimizer = weighted(model)
    x, y = next(Batches())
    with pytest.warns(UserWarning, match="skipped"):
        optimizer.step(lambda: task_losses(model(x), y) * torch.tensor([1.0, torch.inf]))
    optimizer.step(lambda: [task_losses(model(x), y)[0], None])
    losses = optimizer.history().losses
    assert losses is not None and losses[0, 0, 1].isinf() and losses[1, 0, 1].isnan() and losses[1, 0, 0].isfinite()
    state = optimizer.state_dict()
    resumed = weighted(make_model())
    resumed.load_state_dict(state)
    assert_same(resumed.history().losses, losses)
    del state["param_groups"][0]["weighted"]["history"]["missing"]["losses"]
    with pytest.raises(ValueError, match="alike"):
        weighted(make_model()).load_state_dict(state)


def test_connection_strength_has_its_last_steps_beside_the_rest() -> None:
    """In both phases; absent tasks are NaN, a step with a NaN is marked, and a resumed run goes on with the record."""
    model, batches = network(0), PriorityBatches(0)
    options: dict[str, Any] = {"history": 3, "max_norm": 0.5, "schedule": lambda progress: float(progress < 0.3)}
    optimizer = optimizer_of(model, **options)
    found = []
    for step in range(5):
        loss = batches.draw().loss(model)
        bad = {3: lambda task: loss(task) * (torch.nan if task == 1 else 1)}.get(step, loss)  # noqa: B023
        with pytest.warns(UserWarning, match="infinite or NaN") if step == 3 else nullcontext():
            found.append(optimizer.step(lambda task: None if (step, task) == (4, 0) else bad(task)))  # noqa: B023
    history = optimizer.history()
    assert history.phases.tolist() == [1, 1, 1, 2, 2]
    last = history.last
    assert last is not None and last.losses is not None and last.grad_norm is not None
    assert optimizer.grad_norm is not None
    assert last.steps.tolist() == [2, 3, 4] and last.skipped.flatten().tolist() == [False, True, False]
    torch.testing.assert_close(last.losses[:, 0], torch.stack(found[2:]), equal_nan=True)
    assert last.losses[2, 0].isnan().tolist() == [True, False, False]
    torch.testing.assert_close(last.grad_norm[-1], optimizer.grad_norm)
    resumed = optimizer_of(network(1), **options)
    resumed.load_state_dict(optimizer.state_dict())
    again = resumed.history().last
    assert again is not None and again.losses is not None
    torch.testing.assert_close(again.losses, last.losses, equal_nan=True)


def test_connection_strength_records_nothing_by_default() -> None:
    model = network(0)
    optimizer = optimizer_of(model)
    optimizer.step(PriorityBatches(0).loss(model))
    assert optimizer.history().last is None
    assert "last_steps" not in optimizer.state_dict()["param_groups"][0]["connection_strength"]


@pytest.mark.parametrize("count", [{"points": 1}, {"num_subproblems": 2}, {"num_subproblems": 5}])
def test_norms_of_vertices_have_columns_of_their_own(count: dict[str, int]) -> None:
    """There are T norms and K points: columns of each point ended in an IndexError, or left norms out."""
    model = make_model()
    optimizer = points(model, max_norm=1.0, **count)
    train(optimizer, model, 3)
    history = optimizer.history()
    columns = history.columns()
    assert history.grad_norm is not None and optimizer.grad_norm is not None
    assert [name for name in columns if "norm" in name] == ["grad_norm, vertex 0", "grad_norm, vertex 1"]
    for vertex, norm in enumerate(optimizer.grad_norm):
        assert columns[f"grad_norm, vertex {vertex}"][-1] == norm
    rows = subproblems(model := make_model(), max_norm=1.0)
    train(rows, model, 2)
    assert "grad_norm, subproblem 4" in rows.history().columns()


@pytest.mark.parametrize("skips", [False, True])
def test_the_strength_of_transfers_is_recorded(skips: bool) -> None:
    """Of steps in which one is due; a subproblem that skips its step takes nothing."""
    model = make_model()
    optimizer = subproblems(model, weighting=None, transfer=Mean(0.4, every=2))
    batches = Batches()
    for step in range(4):
        for k in optimizer.subproblems():
            factor = torch.nan if skips and (step, k) == (3, 2) else 1.0
            x, y = next(batches)
            optimizer.backward(factor * task_losses(model(x), y))
        with pytest.warns(UserWarning, match="skipped") if skips and step == 3 else nullcontext():
            optimizer.step()
        optimizer.zero_grad()
    found = optimizer.history().transferred
    assert found is not None
    assert found[[0, 2]].isnan().all()
    expected = torch.full((2, 5), 0.4 * 4 / 5, dtype=torch.float64)
    if skips:
        expected[1, 2] = 0.0
    torch.testing.assert_close(found[[1, 3]], expected)
    assert torch.equal(optimizer.history().columns()["transferred, subproblem 1"][1::2], found[[1, 3], 1])


def test_without_transfers_none_is_recorded() -> None:
    model = make_model()
    optimizer = subproblems(model, transfer=None)
    train(optimizer, model, 2)
    assert optimizer.history().transferred is None
