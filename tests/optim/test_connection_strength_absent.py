"""Connection strength in steps in which some tasks have no data."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mt2o_ext.base import SGD, AdamW
from mt2o_ext.priority import find_connections, phase_one, phase_two
from support.optim.priority_model import Batches, Network, network, optimizer_of

NOTHING: dict[str, Callable[[], Tensor | None]] = {"None": lambda: None, "a constant": lambda: torch.zeros(())}


def without(batches: Batches, model: Network, absent: tuple[int, ...], nothing: Any = lambda: None) -> Any:
    loss = batches.loss(model)
    return lambda task: nothing() if task in absent else loss(task)


def of_task(model: Network, task: int) -> list[Tensor]:
    return [p.detach().clone() for p in model.heads[task].parameters()]


@pytest.mark.parametrize("nothing", NOTHING)
def test_phase_one_makes_no_step_for_an_absent_task(nothing: str) -> None:
    model = network(dtype=torch.float64)
    expected = copy.deepcopy(model)
    optimizer = optimizer_of(model, base=AdamW(), schedule=phase_one)
    other = torch.optim.AdamW(expected.parameters(), 1e-2)
    batches = Batches(dtype=torch.float64)
    for step in range(4):
        absent = (1,) if step > 1 else ()
        losses = optimizer.step(without(batches, model, absent, NOTHING[nothing]))
        assert losses.isnan().tolist() == [task in absent for task in range(3)]
        for task in (task for task in range(3) if task not in absent):
            other.zero_grad()
            batches.loss(expected)(task).backward()
            other.step()
    for (name, value), wanted in zip(model.state_dict().items(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-7, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("mode", ["faithful", "general"])
def test_phase_two_is_that_of_the_others_alone(mode: str) -> None:
    """An absent task owns no channel, and a layer that it gives no gradient is projected all the same."""
    model, smaller = network(dtype=torch.float64), network(num_tasks=2, dtype=torch.float64)
    of_all = model.state_dict()
    second = {name: re.sub(r"(heads|norms)\.1\.", r"\1.2.", name) for name in smaller.state_dict()}
    smaller.load_state_dict({name: of_all[source] for name, source in second.items()})
    batches = Batches(dtype=torch.float64)
    optimizer, alone = (optimizer_of(m, schedule=phase_two, mode=mode, base=SGD()) for m in (model, smaller))
    before = of_task(model, 1)
    for _ in range(3):
        batches.draw()
        loss = batches.loss(smaller)
        targets = batches.targets
        losses = optimizer.step(without(batches, model, (1,)))
        batches.targets = targets[[0, 2]]
        expected = alone.step(loss)
        torch.testing.assert_close(losses[[0, 2]], expected, rtol=1e-9, atol=1e-12)
    assert all(torch.equal(p, old) for p, old in zip(of_task(model, 1), before, strict=True))
    torch.testing.assert_close(of_task(model, 2), of_task(smaller, 1), rtol=1e-9, atol=1e-12)
    conflicts = optimizer.history().conflicts
    torch.testing.assert_close(conflicts[:, [0, 2]], alone.history().conflicts)
    assert not conflicts[:, 1].any() and len(find_connections(model)) > 0


@pytest.mark.parametrize("schedule", [phase_one, phase_two])
def test_a_step_without_any_task_is_an_error_and_changes_nothing(schedule: Callable[[float], float]) -> None:
    model = network()
    optimizer = optimizer_of(model, schedule=schedule)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match="expected a loss of at least one task, got none"):
        optimizer.step(lambda task: None)
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert optimizer.last_phase == 0 and len(optimizer.history().phases) == 0
