"""The loop over tasks of connection strength: the same numbers as by closure, a scaler, and ways to leave it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mt2o_ext import ConnectionStrengthFused
from mt2o_ext.priority import mixed, phase_one, phase_two
from support.optim.priority_model import TASKS, Batches, network, optimizer_of, same_parameters

PHASES = [phase_one, phase_two]


def loop(optimizer: ConnectionStrengthFused, loss: Callable[[int], Any], **options: Any) -> None:
    for task in optimizer.tasks():
        assert optimizer.task == task
        optimizer.backward(loss(task), **options)


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_loop_gives_the_bits_of_a_closure(shuffle: bool) -> None:
    models, options = [network(), network()], {"schedule": mixed, "shuffle": shuffle, "max_norm": 1.0, "history": 20}
    by_closure, by_loop = (optimizer_of(model, **options) for model in models)
    batches = Batches()
    for _ in range(10):
        batches.draw()
        expected = by_closure.step(batches.loss(models[0]))
        loop(by_loop, batches.loss(models[1]))
        assert torch.equal(by_loop.step(), expected)
    assert {1, 2} == set(by_loop.history().phases.tolist())
    assert torch.equal(by_loop.history().phases, by_closure.history().phases)
    assert same_parameters(*models)


@pytest.mark.parametrize("schedule", PHASES)
def test_calls_in_one_turn_add_up(schedule: Callable[[float], float]) -> None:
    models = [network(dtype=torch.float64), network(dtype=torch.float64)]
    whole, halves = (optimizer_of(model, schedule=schedule) for model in models)
    loss, other = (Batches(dtype=torch.float64).loss(model) for model in models)
    total = whole.step(loss)
    for task in halves.tasks():
        value = other(task)
        halves.backward(value / 2, retain_graph=True)
        halves.backward(value / 2)
    torch.testing.assert_close(halves.step(), total)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("schedule", PHASES)
def test_a_task_without_data_is_absent(schedule: Callable[[float], float]) -> None:
    models = [network(), network()]
    first, second = (optimizer_of(model, schedule=schedule) for model in models)
    loss, other = (Batches().loss(model) for model in models)
    expected = first.step(lambda task: None if task == 1 else loss(task))
    for task in second.tasks():
        if task != 1:
            second.backward(other(task))
    assert expected.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(second.step(), expected, rtol=0, atol=0, equal_nan=True)
    assert same_parameters(*models)


@pytest.mark.parametrize("schedule", PHASES)
def test_a_scaler_changes_no_bit_and_sees_infinities(schedule: Callable[[float], float]) -> None:
    models = [network(), network()]
    plain, scaled = (optimizer_of(model, schedule=schedule) for model in models)
    scaler, batches = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000), Batches()
    for _ in range(3):
        batches.draw()
        plain.step(batches.loss(models[0]))
        loop(scaled, batches.loss(models[1]), scaler=scaler)
        scaler.step(scaled)
        scaler.update()
    assert same_parameters(*models)
    assert scaler.get_scale() == 1024.0
    before = [p.clone() for p in models[1].heads[1].parameters()]
    loss = batches.loss(models[1])
    loop(scaled, lambda task: loss(task) * (torch.inf if task == 1 else 1.0), scaler=scaler)
    scaler.step(scaled)
    scaler.update()
    assert scaler.get_scale() == 512.0
    assert scaled.skipped_steps.tolist() == [1], "an infinity is no surprise under a scaler: counted, no warning"
    assert all(torch.equal(a, b) for a, b in zip(before, models[1].heads[1].parameters(), strict=True))


def test_a_scaler_has_to_be_known_at_backward() -> None:
    model = network()
    optimizer = optimizer_of(model)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))
    loop(optimizer, Batches().loss(model))
    with pytest.raises(RuntimeError, match="needs the scaler at backward already"):
        scaler.step(optimizer)


@pytest.mark.parametrize("way", ["break", "error"])
def test_a_loop_that_is_left_makes_no_step(way: str) -> None:
    """Nothing but the steps of phase 1 is left of it; the next step draws what this one had drawn."""
    models = [network(), network()]
    first, second = (optimizer_of(model, schedule=mixed, shuffle=True) for model in models)
    batches = Batches()
    for _ in range(8):
        loss, other = (batches.draw().loss(model) for model in models)
        first.step(loss)
        try:
            for _task in second.tasks():
                if way == "error":
                    raise KeyError
                break
        except KeyError:
            pass
        assert all(p.grad is None for p in models[1].parameters())
        with pytest.raises(TypeError, match="no loop over tasks"):
            second.step()
        second.step(other)
    assert torch.equal(first.history().phases, second.history().phases)
    assert same_parameters(*models)


@pytest.mark.parametrize("schedule", PHASES)
def test_a_backward_that_fails_drops_what_its_task_has_given(schedule: Callable[[float], float]) -> None:
    """Its own error comes out, and whoever goes on has the bits of a loop in which nothing failed."""
    models = [network(), network()]
    undisturbed, disturbed = (optimizer_of(model, schedule=schedule) for model in models)
    loss, other = (Batches().loss(model) for model in models)
    loop(undisturbed, loss)
    for task in disturbed.tasks():
        if task == 1:
            models[1].eval()  # statistics of the norms move with each forward pass
            value = other(task)
            disturbed.backward(value)
            with pytest.raises(RuntimeError, match="backward through the graph a second time"):
                disturbed.backward(value)
            assert all(p.grad is None for p in models[1].parameters())
            models[1].train()
        disturbed.backward(other(task))
    assert torch.equal(disturbed.step(), undisturbed.step())
    assert same_parameters(*models)


def test_calls_at_the_wrong_time_are_refused() -> None:
    model = network()
    optimizer, loss = optimizer_of(model), Batches().loss(model)
    with pytest.raises(RuntimeError, match=r"inside of `for task in optimizer.tasks"):
        optimizer.backward(loss(0))
    for task in optimizer.tasks():
        with pytest.raises(RuntimeError, match="one loop over tasks"):
            next(optimizer.tasks())
        with pytest.raises(RuntimeError, match="expected step\\(\\) after the loop"):
            optimizer.step()
        with pytest.raises(RuntimeError, match="expected zero_grad\\(\\) before or after"):
            optimizer.zero_grad()
        optimizer.backward(loss(task))
    with pytest.raises(RuntimeError, match="got another round"):
        next(optimizer.tasks())
    with pytest.raises(RuntimeError, match="got another round"):
        optimizer.step(loss)
    assert optimizer.step(lambda: None).shape == (TASKS,), "trainers hand on closures that return nothing"
    for _ in optimizer.tasks():
        optimizer.backward(None)
    with pytest.raises(ValueError, match="a loss of at least one task"):
        optimizer.step()
