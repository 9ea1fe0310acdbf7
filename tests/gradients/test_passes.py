"""Backward passes that a trainer makes itself: the same numbers, each pass through its function, clear refusals."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mt2o_ext import (
    ConnectionStrengthFused,
    HarmonyFused,
    MT2OFused,
    WeightedBackward,
    WeightedFused,
    weighted_backward,
)
from support.optim.priority_model import TASKS, Batches, network, optimizer_of
from support.optim.towers import WEIGHTINGS, Towers, batch_of, values, weighted


class Trainer:
    """What a trainer's object does: counts, forbids other passes, and scales if it has a scaler."""

    def __init__(self, scaler: Any = None) -> None:
        self.scaler = scaler
        self.keywords: list[set[str]] = []
        self.inside = False

    def backward(self, loss: Tensor, **keywords: Any) -> None:
        self.keywords.append(set(keywords))
        self.inside = True
        try:
            (loss if self.scaler is None else self.scaler.scale(loss)).backward(**keywords)
        finally:
            self.inside = False

    def watched(self, losses: Any) -> Any:
        """The losses, whose backward outside of ours is an error."""

        def hook(grad: Tensor) -> None:
            if not self.inside:
                raise RuntimeError("call the trainer's backward instead")

        watched = [loss * 1.0 for loss in losses]
        for loss in watched:
            loss.register_hook(hook)
        return watched


@pytest.mark.parametrize("how", ["constructor", "call"])
@pytest.mark.parametrize("name", WEIGHTINGS)
@pytest.mark.filterwarnings("ignore:FAMO.* there was no feedback")
def test_weighted(name: str, how: str) -> None:
    trainer, models = Trainer(), [Towers(), Towers()]
    given = {"backward": trainer.backward}
    ours = weighted(models[0], WEIGHTINGS[name](), **(given if how == "constructor" else {}))
    plain = weighted(models[1], WEIGHTINGS[name]())
    for seed in range(3):
        ours.backward(trainer.watched(models[0].losses(batch_of(seed))), **(given if how == "call" else {}))
        ours.step()
        plain.backward(models[1].losses(batch_of(seed)))
        plain.step()
    torch.testing.assert_close(values(models[0]), values(models[1]), rtol=1e-6, atol=1e-7)
    assert trainer.keywords


@pytest.mark.parametrize("name", ["gram", "losses"])
def test_closures_and_loops_over_tasks(name: str) -> None:
    trainer, models = Trainer(), [Towers() for _ in range(3)]
    given = {"backward": trainer.backward, "accumulate": True}
    first, second, plain = (
        weighted(model, WEIGHTINGS[name](), **options)
        for model, options in zip(models, [given, given, {"accumulate": True}], strict=True)
    )
    for seed in range(3):
        first.step(lambda: trainer.watched(models[0].losses(batch_of(seed))))  # noqa: B023
        for task in second.tasks():
            second.backward(trainer.watched(models[1].losses(batch_of(seed)))[task])
        second.step()
        plain.step(lambda: models[2].losses(batch_of(seed)))  # noqa: B023
    torch.testing.assert_close(values(models[0]), values(models[2]), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(values(models[1]), values(models[2]), rtol=1e-6, atol=1e-7)
    assert len(trainer.keywords) == 2 * 3 * 3


@pytest.mark.parametrize("options", [{}, {"front": "vertices", "points": 1}, {"weighting": "cagrad"}], ids=str)
def test_mt2o(options: dict[str, Any]) -> None:
    trainer, models = Trainer(), [Towers(), Towers()]
    torch.manual_seed(0)
    ours = MT2OFused(models[0].parameters(), num_tasks=3, num_subproblems=6, backward=trainer.backward, **options)
    torch.manual_seed(0)
    plain = MT2OFused(models[1].parameters(), num_tasks=3, num_subproblems=6, **options)
    for step in range(3):
        for k in ours.subproblems():
            ours.backward(trainer.watched(models[0].losses(batch_of(9 * step + k))))
        ours.step()
        for k in plain.subproblems():
            plain.backward(models[1].losses(batch_of(9 * step + k)))
        plain.step()
    torch.testing.assert_close(values(models[0]), values(models[1]), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("phase", [0.0, 1.0])
def test_connection_strength(phase: float) -> None:
    trainer, models = Trainer(), [network(0), network(0)]
    ours = optimizer_of(models[0], schedule=lambda _: phase, backward=trainer.backward)
    plain = optimizer_of(models[1], schedule=lambda _: phase)
    loss = Batches(0).loss(models[0])
    ours.step(lambda task: trainer.watched([loss(task)])[0])
    plain.step(Batches(0).loss(models[1]))
    torch.testing.assert_close(values(models[0]), values(models[1]), rtol=0, atol=0)
    assert trainer.keywords == [set()] * TASKS


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("name", ["gram", "losses", "each tensor", "rows, memory"])
def test_weighted_backward(name: str) -> None:
    trainer, models = Trainer(), [Towers(), Towers()]
    given: dict[str, Any] = {"backward": trainer.backward}
    ours, plain = (
        WeightedBackward(model.groups(), num_tasks=3, weighting=WEIGHTINGS[name](), generator=seeded(), **options)
        for model, options in zip(models, [given, {}], strict=True)
    )
    assert torch.equal(ours(trainer.watched(models[0].losses(batch_of(0)))), plain(models[1].losses(batch_of(0))))
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=1e-7)


def test_one_call() -> None:
    trainer, model = Trainer(), Towers()
    weighted_backward(
        trainer.watched(model.losses(batch_of(0))), model.parameters(), weighting="mgda", backward=trainer.backward
    )
    assert trainer.keywords == [{"retain_graph"}, {"retain_graph"}, set()], "the graph is freed by the last one"


def weigh(model: Towers, **options: Any) -> Callable[..., Any]:
    backward = WeightedBackward(model.groups(), num_tasks=3, weighting=WEIGHTINGS["gram"](), **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def one(losses: Any, **given: Any) -> None:
        optimizer.zero_grad()
        backward(losses, **given)
        given["scaler"].step(optimizer)

    return one


def fused(kind: Callable[..., Any]) -> Callable[..., Callable[..., Any]]:
    def make(model: Towers, **options: Any) -> Callable[..., Any]:
        optimizer = kind(model, **options)

        def one(losses: Any, **given: Any) -> None:
            optimizer.backward(losses, **given)
            given["scaler"].step(optimizer)

        return one

    return make


SCALED: dict[str, Callable[..., Callable[..., Any]]] = {
    "weighted": fused(lambda model, **options: weighted(model, WEIGHTINGS["gram"](), **options)),
    "losses": fused(lambda model, **options: weighted(model, WEIGHTINGS["losses"](), **options)),
    "mt2o": fused(
        lambda model, **options: MT2OFused(model.parameters(), num_tasks=3, num_subproblems=1, lr=0.1, **options)
    ),
    "backward": weigh,
}


@pytest.mark.parametrize("name", SCALED)
def test_a_trainer_that_scales_is_not_scaled_twice(name: str) -> None:
    found = []
    for trainers_own in (True, False):
        model, scaler = Towers(), torch.amp.GradScaler("cpu", init_scale=1024.0)
        trainer = Trainer(scaler)
        step = SCALED[name](model, **({"backward": trainer.backward} if trainers_own else {}))
        for seed in range(3):
            step(model.losses(batch_of(seed)), scaler=scaler)
            scaler.update()
        assert bool(trainer.keywords) == trainers_own
        found.append(values(model))
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-7)
    assert not torch.equal(found[0][0], values(Towers())[0])


def test_a_copy_keeps_the_function_itself() -> None:
    trainer, model = Trainer(), Towers()
    optimizer = weighted(model, WEIGHTINGS["gram"](), backward=trainer.backward)
    model, optimizer = copy.deepcopy((model, optimizer))
    optimizer.backward(trainer.watched(model.losses(batch_of(0))))
    assert len(trainer.keywords) == 3, "a copied trainer would have counted for itself"


MAKERS: dict[str, Callable[..., Any]] = {
    "weighted": lambda **options: WeightedFused(nn.Linear(2, 2).parameters(), num_tasks=2, **options),
    "mt2o": lambda **options: MT2OFused(nn.Linear(2, 2).parameters(), num_tasks=2, **options),
    "priority": lambda **options: ConnectionStrengthFused(
        nn.Linear(2, 2).parameters(), connections=[], num_tasks=2, total_steps=1, **options
    ),
    "harmony": lambda **options: HarmonyFused(nn.Linear(2, 2).named_parameters(), num_tasks=2, **options),
    "backward": lambda **options: WeightedBackward(nn.Linear(2, 2).parameters(), num_tasks=2, **options),
}


@pytest.mark.filterwarnings("ignore:no connections")
@pytest.mark.parametrize("name", MAKERS)
def test_what_is_no_function_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match=r"expected backward= as a function .* got str"):
        MAKERS[name](backward="fabric")


@pytest.mark.parametrize("name", ["weighted", "mt2o", "backward"])
def test_batched_passes_are_nobodys(name: str) -> None:
    options: dict[str, Any] = {"weighting": "mgda", "collect": "batched"}
    with pytest.raises(ValueError, match=r'no backward= with collect="batched"'):
        MAKERS[name](backward=Trainer().backward, **options)
    made = MAKERS[name](**options)
    call = made if name == "backward" else made.backward
    with pytest.raises(ValueError, match=r'no backward= with collect="batched"'):
        call([torch.ones((), requires_grad=True)] * 2, backward=Trainer().backward)


def test_features_and_gram_matrices_on_the_way_have_no_passes() -> None:
    model, trainer = Towers(), Trainer()
    backward = WeightedBackward(model.groups(), num_tasks=3, weighting="mgda", backward=trainer.backward)
    z = model.trunk(batch_of(0))
    with pytest.raises(ValueError, match="no backward= with features="):
        backward([head(z).sum() for head in model.heads], features=z)
    light = WeightedBackward(model.groups(), num_tasks=3, weighting="mgda", store=False, backward=trainer.backward)
    with pytest.raises(ValueError, match="no backward= with store=False"):
        light(model.losses(batch_of(0)))
    losses = WeightedBackward(model.groups(), num_tasks=3, weighting="uw", store=False, backward=trainer.backward)
    losses(trainer.watched(model.losses(batch_of(0))))
    assert not trainer.inside and len(trainer.keywords) == 4
