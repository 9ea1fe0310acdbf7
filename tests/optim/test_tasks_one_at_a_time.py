"""Loops over tasks with a mini-batch of each, and tasks without data in a step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mt2o_ext import WeightedBackward, WeightedFused
from mt2o_ext.base import AdamW
from mt2o_ext.weighting import FAMO, MoCo, Needs, Weighting
from support.weighting.problems import METHODS

T = 3
OPTIMIZERS = {name: make for name, make in METHODS.items() if Needs.CROSS not in make().needs}
SHOWN = pytest.mark.parametrize("show_grad", [True, False])


class Net(nn.Module):
    def __init__(self, tasks: Sequence[int] = range(T)) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.trunk = nn.Sequential(nn.Linear(5, 6), nn.Tanh())
        heads = [nn.Linear(6, 2) for _ in range(T)]
        self.heads = nn.ModuleList(heads[task] for task in tasks)
        self.double()

    def loss(self, head: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(7, 5, dtype=torch.float64, generator=generator)
        y = torch.randn(7, 2, dtype=torch.float64, generator=generator)
        return (self.heads[head](self.trunk(x)) - y).square().mean()


def made(model: Net, weighting: Any = "upgrad", **options: Any) -> WeightedFused:
    groups = [{"params": model.trunk.parameters()}]
    groups += [{"params": head.parameters(), "task": task} for task, head in enumerate(model.heads)]
    torch.manual_seed(0)
    defaults = {"num_tasks": len(model.heads), "weighting": weighting, "lr": 0.05, "base": "adamw", "accumulate": True}
    return WeightedFused(groups, **{**defaults, **options})


def loop(optimizer: WeightedFused, loss: Callable[[int], Tensor | None]) -> None:
    for task in optimizer.tasks():
        optimizer.backward(loss(task))


def values(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(torch.equal(p, q) for p, q in zip(one, other, strict=True))


@pytest.mark.parametrize("weighting", ["upgrad", "cagrad", "uw", "gradnorm", "moco", None])
@SHOWN
def test_a_loop_is_a_list_of_losses_bit_for_bit(weighting: Any, show_grad: bool) -> None:
    one, other = Net(), Net()
    looping, listing = made(one, weighting, show_grad=show_grad), made(other, weighting, show_grad=show_grad)
    for step in range(3):
        loop(looping, lambda task, step=step: one.loss(task, 10 * step + task))
        looping.step()
        listing.backward([other.loss(task, 10 * step + task) for task in range(T)])
        listing.step()
    assert same(values(one), values(other))
    assert looping.weights is not None and listing.weights is not None
    assert torch.equal(looping.weights, listing.weights)


def test_each_graph_is_freed_with_its_backward() -> None:
    model = Net()
    optimizer = made(model)
    for task in optimizer.tasks():
        loss = model.loss(task, task)
        optimizer.backward(loss, retain_graph=task == 0)
        if task == 0:
            torch.autograd.grad(loss, model.trunk[0].weight)
            continue
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(loss, model.trunk[0].weight)
    optimizer.step()


def test_the_combined_gradient_is_there_after_the_loop() -> None:
    model, other = Net(), Net()
    optimizer, listing = made(model, base="sgd"), made(other, base="sgd")
    loop(optimizer, lambda task: model.loss(task, task))
    listing.backward([other.loss(task, task) for task in range(T)])
    assert same([p.grad for p in model.parameters()], [p.grad for p in other.parameters()])  # type: ignore[misc]
    before = values(model)
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    assert norm > 1e-3
    optimizer.step()
    moved = torch.cat([(p - q).flatten() for p, q in zip(values(model), before, strict=True)]).norm()
    torch.testing.assert_close(moved, torch.tensor(0.05 * 1e-3, dtype=torch.float64), rtol=1e-4, atol=0)


@SHOWN
def test_loops_add_up_until_the_step(show_grad: bool) -> None:
    one, other = Net(), Net()
    twice, once = made(one, show_grad=show_grad), made(other, show_grad=show_grad)
    for half in range(2):
        loop(twice, lambda task, half=half: 0.5 * one.loss(task, 10 * half + task))
    twice.step()
    once.backward([0.5 * (other.loss(task, task) + other.loss(task, 10 + task)) for task in range(T)])
    once.step()
    torch.testing.assert_close(values(one), values(other), rtol=1e-12, atol=1e-14)


def test_two_backwards_of_one_task_add_up() -> None:
    one, other = Net(), Net()
    twice, once = made(one), made(other)
    for task in twice.tasks():
        for half in range(2):
            twice.backward(0.5 * one.loss(task, 10 * half + task))
    twice.step()
    loop(once, lambda task: 0.5 * (other.loss(task, task) + other.loss(task, 10 + task)))
    once.step()
    torch.testing.assert_close(values(one), values(other), rtol=1e-12, atol=1e-14)


def test_a_scaler_changes_nothing() -> None:
    one, other = Net(), Net()
    plain, scaled = made(one), made(other)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(2):
        loop(plain, lambda task, step=step: one.loss(task, 10 * step + task))
        plain.step()
        for task in scaled.tasks():
            scaled.backward(other.loss(task, 10 * step + task), scaler=scaler)
        scaler.step(scaled)
        scaler.update()
    torch.testing.assert_close(values(one), values(other), rtol=1e-12, atol=1e-14)


# ---------------------------------------------------------------------- absent tasks
WAYS = {
    "None": lambda optimizer, loss: optimizer.backward(None),
    "a constant": lambda optimizer, loss: optimizer.backward(loss.detach()),
    "NaN of an empty mean": lambda optimizer, loss: optimizer.backward(torch.zeros(0).mean()),
    "no call": lambda optimizer, loss: None,
}


@pytest.mark.parametrize("way", WAYS)
@SHOWN
def test_an_absent_task_moves_nothing_of_its_own(way: str, show_grad: bool) -> None:
    """Neither by momentum nor by decay, and the others as without it."""
    model = Net()
    optimizer = made(model, "cagrad", base=AdamW(weight_decay=0.1), show_grad=show_grad)
    for step in range(2):
        loop(optimizer, lambda task, step=step: model.loss(task, 10 * step + task))
        optimizer.step()
    before = values(model.heads[1])
    moments = copy.deepcopy([optimizer.state[p] for p in model.heads[1].parameters()])
    for task in optimizer.tasks():
        loss = model.loss(task, 20 + task)
        if task == 1:
            WAYS[way](optimizer, loss)
        else:
            optimizer.backward(loss)
    assert all(p.grad is None for p in model.heads[1].parameters())
    optimizer.step()
    assert same(values(model.heads[1]), before)
    for p, old in zip(model.heads[1].parameters(), moments, strict=True):
        assert all(torch.equal(torch.as_tensor(optimizer.state[p][key]), torch.as_tensor(old[key])) for key in old)
    assert optimizer.weights is not None and optimizer.weights[0, 1] == 0 and optimizer.skipped_steps.tolist() == [0]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("accumulate", [True, False])
def test_the_others_do_as_an_optimizer_of_them_alone(name: str, accumulate: bool) -> None:
    """Over several steps, as a list with None."""
    model, smaller = Net(), Net([0, 2])
    preferences = [0.2, 0.5, 0.3]
    alone = made(smaller, OPTIMIZERS[name](), preferences=[0.4, 0.6], accumulate=accumulate)
    some = made(model, OPTIMIZERS[name](), preferences=preferences, accumulate=accumulate)
    for step in range(4):
        there = [model.loss(0, 10 * step), None, model.loss(2, 10 * step + 2)]
        some.backward(there)
        some.step()
        alone.backward([smaller.loss(0, 10 * step), smaller.loss(1, 10 * step + 2)])
        alone.step()
        if Needs.FEEDBACK in some._weigher.weighting.needs:
            some.feedback([model.loss(0, 10 * step), None, model.loss(2, 10 * step + 2)])
            alone.feedback([smaller.loss(0, 10 * step), smaller.loss(1, 10 * step + 2)])
        assert some.weights is not None and alone.weights is not None
        assert alone.weights.isfinite().all()
        torch.testing.assert_close(some.weights[..., [0, 2]], alone.weights, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(values(model.trunk), values(smaller.trunk), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(values(model.heads[2]), values(smaller.heads[1]), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("collect", ["sequential", "batched"])
@pytest.mark.parametrize("heads", ["plain", "weighted"])
@pytest.mark.parametrize("weighting", ["upgrad", "uw", "gradnorm", None])
def test_every_way_to_the_gradients_knows_absent_tasks(weighting: Any, heads: str, collect: str) -> None:
    results = []
    for accumulate in (True, False):
        model = Net()
        optimizer = made(model, weighting, heads=heads, collect=collect, accumulate=accumulate)
        before = values(model.heads[0])
        for step in range(2):
            optimizer.step(lambda m=model, step=step: [None, *(m.loss(task, 10 * step + task) for task in (1, 2))])
        assert same(values(model.heads[0]), before)
        results.append(values(model))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


def test_a_closure_may_leave_tasks_out() -> None:
    model = Net()
    optimizer = made(model, FAMO(), accumulate=False)
    losses = optimizer.step(lambda: [model.loss(0, 0), model.loss(1, 1), None])
    assert losses is not None and losses[:2].isfinite().all() and losses[2].isnan()
    state = optimizer._weigher.weighting.state_dict()
    assert (state["logits"][0, :2] != 0).all() and state["logits"][0, 2] == 0


def test_a_task_is_absent_if_no_backward_of_the_step_had_it() -> None:
    model = Net()
    optimizer = made(model)
    before = values(model.heads[2])
    optimizer.backward([model.loss(0, 0), None, None])
    optimizer.backward([None, model.loss(1, 1), None])
    optimizer.step()
    assert optimizer.weights is not None and (optimizer.weights[0] > 0).tolist() == [True, True, False]
    assert same(values(model.heads[2]), before)


def test_a_used_gradient_is_not_clipped_and_used_again() -> None:
    """Where a parameter gets none in the next step, also without heads."""
    model = Net([0, 1])
    optimizer = WeightedFused(list(model.parameters()), num_tasks=2, weighting="upgrad", lr=0.1)
    optimizer.backward([model.loss(0, 0), model.loss(1, 1)])
    optimizer.step()
    before = values(model.heads[1])
    optimizer.backward([model.loss(0, 0), model.loss(0, 1)])
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    optimizer.step()
    assert same(values(model.heads[1]), before)


def test_memories_of_absent_tasks_stay() -> None:
    model = Net()
    weighting = MoCo()
    optimizer = made(model, weighting)
    loop(optimizer, lambda task: model.loss(task, task))
    optimizer.step()
    before = {name: table.clone() for name, table in weighting.state_dict().items()}
    loop(optimizer, lambda task: None if task == 1 else model.loss(task, task))
    optimizer.step()
    after = weighting.state_dict()
    assert torch.equal(after["memory.tracked.0"][:, 1], before["memory.tracked.0"][:, 1])
    assert not torch.equal(after["memory.tracked.0"][:, 0], before["memory.tracked.0"][:, 0])


def test_one_task_for_each_batch_trains_all() -> None:
    model = Net()
    optimizer = made(model, "mgda", accumulate=False)
    first = [model.loss(task, task).item() for task in range(T)]
    for step in range(60):
        optimizer.backward([model.loss(task, task) if task == step % T else None for task in range(T)])
        optimizer.step()
    assert all(model.loss(task, task).item() < 0.9 * first[task] for task in range(T))


# ---------------------------------------------------------------------- mistakes
def test_a_step_without_any_task_is_an_error() -> None:
    model = Net()
    optimizer = made(model)
    with pytest.raises(ValueError, match="expected a loss of at least one task, got none"):
        optimizer.backward([None] * T)
    with pytest.raises(ValueError, match="constants"):
        optimizer.backward([torch.ones(())] * T)
    loop(optimizer, lambda task: None)
    with pytest.raises(RuntimeError, match="needs gradients"):
        optimizer.step()


def test_none_outside_of_a_loop_is_an_error() -> None:
    with pytest.raises(TypeError, match="got None: it stands for one task"):
        made(Net()).backward(None)


def test_inside_of_a_loop_a_task_has_one_loss() -> None:
    model = Net()
    optimizer = made(model)
    for task in optimizer.tasks():
        with pytest.raises(TypeError, match=f"the loss of task {task} as a tensor, got list"):
            optimizer.backward([model.loss(other, 0) for other in range(T)])
        with pytest.raises(ValueError, match=r"one scalar loss of task \d, got shape \[3\]"):
            optimizer.backward(torch.stack([model.loss(other, 0) for other in range(T)]))
        with pytest.raises(RuntimeError, match=r"step\(\) after the loop"):
            optimizer.step()
        with pytest.raises(RuntimeError, match="one loop over tasks"):
            next(optimizer.tasks())
        optimizer.backward(model.loss(task, task))
    optimizer.step()
    assert optimizer.weights is not None and (optimizer.weights > 0).all(), "mistakes have dropped nothing"


def test_a_backward_that_fails_drops_the_loop_so_far() -> None:
    model = Net()
    optimizer = made(model)
    for task in optimizer.tasks():
        if task == 1:
            loss = model.loss(task, task)
            loss.backward()
            with pytest.raises(RuntimeError, match="second time"):
                optimizer.backward(loss)
            model.zero_grad()
        else:
            optimizer.backward(model.loss(task, task))
    optimizer.step()
    assert optimizer.weights is not None and (optimizer.weights[0] > 0).tolist() == [False, False, True]


def test_weights_that_come_first_need_accumulate() -> None:
    model = Net()
    for weighting in ("uw", None):
        optimizer = made(model, weighting, accumulate=False)
        with pytest.raises(RuntimeError, match="accumulate=True"):
            next(optimizer.tasks())


def test_a_loop_that_is_left_is_told_of() -> None:
    model = Net()
    optimizer = made(model)
    for task in optimizer.tasks():
        optimizer.backward(model.loss(task, task))
        if task == 0:
            break
    with pytest.warns(UserWarning, match="tasks 1, 2 have no gradients, because the loop"):
        optimizer.step()
    for task in optimizer.tasks():  # to the end, and said so: no warning
        optimizer.backward(model.loss(task, task) if task == 0 else None)
    optimizer.step()


def test_a_loop_after_a_failed_one_begins_anew() -> None:
    one, other = Net(), Net()
    failing, plain = made(one), made(other)
    with pytest.raises(KeyError):  # noqa: PT012
        for task in failing.tasks():
            failing.backward(one.loss(task, 50 + task))
            raise KeyError(task)
    loop(failing, lambda task: one.loss(task, task))
    failing.step()
    loop(plain, lambda task: other.loss(task, task))
    plain.step()
    assert same(values(one), values(other))


def test_zero_grad_in_a_loop_is_refused() -> None:
    """A habit of loops over mini-batches, which would train on the last task alone."""
    one, other = Net(), Net()
    first, second = made(one), made(other)
    for task in first.tasks():
        if task == 1:
            with pytest.raises(RuntimeError, match="before or after the loop"):
                first.zero_grad()
        first.backward(one.loss(task, task))
    first.step()
    first.zero_grad()
    loop(second, lambda task: other.loss(task, task))
    second.step()
    assert same(values(one), values(other))


def test_a_weighting_with_a_table_of_another_form_says_where_its_tasks_are() -> None:
    """The one thing that a weighting of one's own has to declare."""

    class Pairs(Weighting):
        needs = Needs.GRAM

        def _initial_state(self, ones: Tensor) -> dict[str, Tensor]:
            return {"seen": torch.zeros_like(ones[:, :, None] * ones[:, None])}

        def _axes_of_tasks(self, name: str) -> tuple[int, ...]:
            return (1, 2)

        def _weights(self, context: Any) -> Tensor:
            self._state["seen"] = self._state["seen"] + 1
            return torch.ones_like(context.preferences)

    model, weighting = Net(), Pairs()
    optimizer = made(model, weighting)
    loop(optimizer, lambda task: None if task == 1 else model.loss(task, task))
    optimizer.step()
    assert weighting.state_dict()["seen"][0].tolist() == [[1, 0, 1], [0, 0, 0], [1, 0, 1]]


def test_a_task_that_comes_in_the_second_loop_is_no_surprise(recwarn: pytest.WarningsRecorder) -> None:
    model = Net()
    optimizer = made(model)
    for micro in range(2):
        loop(optimizer, lambda task: None if task == 1 and micro == 0 else model.loss(task, micro) / 2)  # noqa: B023
    optimizer.step()
    assert not list(recwarn)


def test_a_loop_of_backward_that_is_left_early_says_so() -> None:
    model = Net()
    backward = WeightedBackward(model.trunk.parameters(), num_tasks=T, weighting="upgrad")
    rounds = backward.tasks()
    backward(model.loss(next(rounds), 0))
    with pytest.warns(UserWarning, match="tasks 1, 2 have no gradients.*nothing was combined"):
        rounds.close()  # type: ignore[attr-defined]
    assert all(p.grad is None for p in model.trunk.parameters())


@SHOWN
def test_a_task_that_is_absent_at_first_makes_no_warning(show_grad: bool, recwarn: pytest.WarningsRecorder) -> None:
    """The shared parameters have gradients in both loops, and the head in the second one."""
    model = Net()
    optimizer = made(model, show_grad=show_grad)
    loop(optimizer, lambda task: None if task == 1 else model.loss(task, task))
    loop(optimizer, lambda task: model.loss(task, task))
    optimizer.step()
    assert [str(warning.message) for warning in recwarn] == []
