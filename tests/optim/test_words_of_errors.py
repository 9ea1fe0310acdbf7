"""Errors of loops, fronts and state dicts say what was done and what to do, where torch's own words would not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mt2o_ext import MT2OFused, WeightedFused
from mt2o_ext.pareto.learned import PreferenceInput
from support.optim.problems import make_model
from support.optim.towers import Towers, batch_of

HINT = r"(?s)modified by an inplace operation.*Did the model take a step, or show other parameters .* the losses anew"


@pytest.mark.parametrize("weighting", [None, "upgrad"])
def test_a_graph_of_other_parameters(weighting: str | None) -> None:
    """Forward, a look at another point, backward."""
    model = Towers()
    optimizer = MT2OFused(model.parameters(), num_tasks=3, front="vertices", points=1, weighting=weighting)
    losses = model.losses(batch_of(0))
    with optimizer.at([1.0, 0.0, 0.0]):
        pass
    with pytest.raises(RuntimeError, match=HINT):
        optimizer.backward(losses)
    optimizer.backward(model.losses(batch_of(0)))
    optimizer.step()


def test_a_step_between_forward_and_backward() -> None:
    model = Towers()
    optimizer = WeightedFused(model.parameters(), num_tasks=3, weighting="upgrad")
    stale = model.losses(batch_of(0))
    optimizer.step(lambda: model.losses(batch_of(1)))
    with pytest.raises(RuntimeError, match=HINT):
        optimizer.backward(stale)


@pytest.mark.parametrize("front", ["vertices", "rows"])
@pytest.mark.parametrize("weighting", [None, "upgrad"])
def test_losses_on_another_device(front: Any, weighting: str | None) -> None:
    """Nothing is changed: the step after it has the bits of one without it."""
    models = [Towers(), Towers()]
    same: Any = {"num_tasks": 3, "num_subproblems": 3, "front": front, "weighting": weighting}
    same |= {"transfer": None} if front == "rows" else {}
    optimizers = []
    for model in models:
        torch.manual_seed(0)  # of the points
        optimizers.append(MT2OFused(model.parameters(), **same))
    away = [loss.to("meta") for loss in models[1].losses(batch_of(0))]
    with pytest.raises(ValueError, match=r"losses on cpu, the device .* got one on meta: .* or move the model before"):
        optimizers[1].step(lambda: away)
    for optimizer, model in zip(optimizers, models, strict=True):
        optimizer.step(lambda model=model: model.losses(batch_of(0)))
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


def test_a_loop_over_losses_without_graphs() -> None:
    model = Towers()
    optimizer = WeightedFused(model.parameters(), num_tasks=3, weighting="upgrad")
    for task in optimizer.tasks():
        with torch.no_grad():
            optimizer.backward(model.losses(batch_of(0))[task])
    with pytest.raises(RuntimeError, match=r"no loss of the loop over tasks.* had a graph: were they detached"):
        optimizer.step()
    for _ in optimizer.tasks():
        optimizer.backward(None)
    with pytest.raises(RuntimeError, match=r"call optimizer.backward"):
        optimizer.step()


# ---------------------------------------------------------------- evaluations
def front_of(found: Any, **options: Any) -> Any:
    optimizer = MT2OFused(make_model().parameters(), num_tasks=2, num_subproblems=3, transfer=None)
    return optimizer.front(lambda: found, **options)


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "nothing": (None, TypeError, r"expected losses from evaluate\(\), got None"),
    "vector": ((torch.ones(2), {"acc": torch.ones(3)}), ValueError, r"the metric 'acc' .* as 1 number\(s\), got 3"),
    "word": ((torch.ones(2), {"acc": "high"}), TypeError, r"the metric 'acc' .* got 'high'"),
}


@pytest.mark.parametrize("name", BAD)
def test_evaluations_that_are_none(name: str) -> None:
    found, kind, text = BAD[name]
    with pytest.raises(kind, match=text):
        front_of(found)


def test_metrics_with_the_name_of_a_task_are_told_apart() -> None:
    front = front_of((torch.tensor([1.0, 2.0]), {"a": 0.5, "top": 0.25}), task_names=["a", "b"])
    assert str(front).splitlines()[1].split() == ["w(a)", "w(b)", "a", "b", "metric(a)", "top"]


def test_learned_fronts_take_metrics_too() -> None:
    network = PreferenceInput(nn.Linear(4, 2), num_tasks=2)

    def evaluate(model: nn.Module) -> Any:
        found = model(torch.ones(3, 2))
        return found.square().mean(0), {"size": found.numel()}

    front = network.front(evaluate, rays=4, models=True)
    assert front.metrics["size"].tolist() == [6.0] * 4 and len(front.states) == 4
    with pytest.raises(TypeError, match="got None"):
        network.front(lambda model: None)  # type: ignore[arg-type, return-value]


# ---------------------------------------------------------------- state dicts of vertices
def vertices(**options: Any) -> MT2OFused:
    return MT2OFused(make_model().parameters(), num_tasks=2, front="vertices", **options)


def test_another_number_of_points() -> None:
    with pytest.raises(ValueError, match=r"1 points in each step \(points=\), got one of 3: .* points=3.*branch_from"):
        vertices(points=1).load_state_dict(vertices(points=3).state_dict())


def test_no_running_average_to_load() -> None:
    with pytest.raises(ValueError, match=r"expected `ema` of parameter 0 \(2 vertices\), got none: .* ema=None"):
        vertices(points=1, ema=0.9).load_state_dict(vertices(points=1).state_dict())
