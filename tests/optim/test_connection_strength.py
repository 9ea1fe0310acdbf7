"""Both phases against explicit steps: what the paper's equations say, with every base rule."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mt2o_ext.base import SGD, Adam, AdamW, BaseRule
from mt2o_ext.priority import find_connections, mixed, phase_one, phase_two, sequential
from mt2o_ext.priority.phases import PhaseDraw
from support.optim.priority_model import TASKS, Batches, Network, network, optimizer_of, same_parameters

RULES: dict[str, tuple[BaseRule, Callable[..., torch.optim.Optimizer]]] = {
    "sgd": (SGD(weight_decay=0.01), lambda p, lr: torch.optim.SGD(p, lr, weight_decay=0.01)),
    "momentum": (SGD(0.9), lambda p, lr: torch.optim.SGD(p, lr, 0.9)),
    "nesterov": (SGD(0.9, nesterov=True), lambda p, lr: torch.optim.SGD(p, lr, 0.9, nesterov=True)),
    "adam": (Adam(weight_decay=0.01), lambda p, lr: torch.optim.Adam(p, lr, weight_decay=0.01)),
    "adamw": (AdamW(), lambda p, lr: torch.optim.AdamW(p, lr)),
    "amsgrad": (AdamW(amsgrad=True), lambda p, lr: torch.optim.AdamW(p, lr, amsgrad=True)),
}
EACH_RULE = pytest.mark.parametrize("rule", RULES)


def assert_close(model: nn.Module, expected: nn.Module) -> None:
    """To 1e-8: a bias before a norm has a gradient of rounding errors, which Adam divides by its eps of 1e-8."""
    for (name, value), other in zip(model.state_dict().items(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-7, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}")


@EACH_RULE
def test_phase_one_is_a_step_for_each_task(rule: str) -> None:
    """Eq. 9: T times zero_grad (to None), forward, backward, step: inactive heads and norms do not move."""
    ours, theirs = RULES[rule]
    model = network(dtype=torch.float64)
    expected = copy.deepcopy(model)
    optimizer = optimizer_of(model, base=ours, schedule=phase_one)
    other = theirs(expected.parameters(), 1e-2)
    batches = Batches(dtype=torch.float64)
    for _ in range(4):
        batches.draw()
        losses = optimizer.step(batches.loss(model))
        for task in range(TASKS):
            other.zero_grad()
            loss = batches.loss(expected)(task)
            loss.backward()
            other.step()
            torch.testing.assert_close(losses[task], loss.detach())
    assert_close(model, expected)


def projected_gradients(model: Network, loss: Callable[[int], Tensor], *, faithful: bool) -> dict[str, Tensor]:
    """Algorithm 1 as it is written: strengths and owners of each layer, then projection of one task's gradient on
    another's; tensors and Python, nothing of the package's kernels."""
    gradients = []
    for task in range(TASKS):
        model.zero_grad()
        loss(task).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    model.zero_grad()
    for connection in find_connections(model):
        conv, norms = connection.layer, connection.norm.norms
        shares = []
        for one in norms:
            gain = one.weight.detach() / (one.running_var + one.eps).sqrt()
            strength = gain.square() * conv.weight.detach().square().sum((1, 2, 3))
            shares.append(strength / strength.sum())
        owner = torch.stack(shares).argmax(0)
        if faithful and len(owner.unique()) == 1:
            continue
        names = [f"{connection.name}.weight"] + ([] if faithful else [f"{connection.name}.bias"])
        for i in range(TASKS):
            mine = torch.cat([gradients[i][name][owner == i].flatten() for name in names])
            for j in range(TASKS):
                others = torch.cat([gradients[j][name][owner == i].flatten() for name in names])
                product = mine @ others
                if i != j and product < 0:
                    for name in names:
                        gradients[j][name][owner == i] -= product / (mine @ mine) * gradients[i][name][owner == i]
    return {
        name: sum(gradient[name] for gradient in gradients if name in gradient) for name, _ in model.named_parameters()
    }  # type: ignore[misc]


@EACH_RULE
@pytest.mark.parametrize("mode", ["faithful", "general"])
def test_phase_two_is_algorithm_one(rule: str, mode: str) -> None:
    ours, theirs = RULES[rule]
    model = network(dtype=torch.float64)
    expected = copy.deepcopy(model)
    optimizer = optimizer_of(model, base=ours, mode=mode)
    other = theirs(expected.parameters(), 1e-2)
    batches = Batches(dtype=torch.float64)
    for _ in range(4):
        batches.draw()
        optimizer.step(batches.loss(model))
        gradients = projected_gradients(expected, batches.loss(expected), faithful=mode == "faithful")
        for name, p in expected.named_parameters():
            p.grad = gradients[name]
        other.step()
    assert_close(model, expected)
    history = optimizer.history()
    assert bool((history.conflicts > 0).all()), "every owner met a conflict at least once, so this test is one"


def plain_sum_steps(model: Network, batches: Batches, steps: int) -> None:
    other = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(steps):
        other.zero_grad()
        for task in range(TASKS):
            batches.loss(model)(task).backward()
        other.step()


@pytest.mark.parametrize("mode", ["faithful", "general"])
def test_norms_that_are_all_the_same_give_the_plain_sum(mode: str) -> None:
    model = network(dtype=torch.float64, apart=False)
    expected = copy.deepcopy(model)
    batches = Batches(dtype=torch.float64)
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = 0.0  # statistics stay the same for all tasks
    optimizer = optimizer_of(model, mode=mode)
    optimizer.step(batches.loss(model))
    for norm in (module for module in expected.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = 0.0
    plain_sum_steps(expected, batches, 1)
    assert_close(model, expected)
    assert torch.equal(optimizer.history().shares[0, :, -1], torch.ones(2))


@pytest.mark.parametrize("schedule", [phase_one, phase_two])
@EACH_RULE
def test_one_task_is_the_base_rule(rule: str, schedule: Callable[[float], float]) -> None:
    ours, theirs = RULES[rule]
    model = network(num_tasks=1, dtype=torch.float64)
    expected = copy.deepcopy(model)
    batches = Batches(num_tasks=1, dtype=torch.float64)
    optimizer, other = optimizer_of(model, base=ours, schedule=schedule), theirs(expected.parameters(), 1e-2)
    for _ in range(3):
        optimizer.step(batches.loss(model))
        other.zero_grad()
        batches.loss(expected)(0).backward()
        other.step()
    assert_close(model, expected)


@pytest.mark.parametrize("grouped", [False, True], ids=["one group", "heads in groups"])
def test_heads_and_norms_of_other_tasks_stay(grouped: bool) -> None:
    """Not a bit of them moves while another task takes its step, with momentum and decay that would."""
    model = network()
    params: Any = list(model.named_parameters())
    if grouped:
        heads = [{"params": head.parameters(), "task": task} for task, head in enumerate(model.heads)]
        params = [{"params": model.trunk.parameters()}, *heads]
    optimizer = optimizer_of(model)
    optimizer = type(optimizer)(
        params, connections=find_connections(model), num_tasks=TASKS, total_steps=9, schedule=phase_one, lr=0.1
    )
    batches = Batches()
    optimizer.step(batches.loss(model))
    after: list[dict[str, Tensor]] = []

    def watched(task: int) -> Tensor:
        after.append({name: p.detach().clone() for name, p in model.named_parameters()})
        return batches.loss(model)(task)

    optimizer.step(watched)
    after.append({name: p.detach().clone() for name, p in model.named_parameters()})
    for task in range(TASKS):
        for name, value in after[task + 1].items():
            of = [i for i in range(TASKS) if f"heads.{i}." in name or f"norms.{i}." in name]
            assert torch.equal(value, after[task][name]) == (bool(of) and of != [task]), (task, name)
    head = optimizer.state[model.heads[0].weight]
    assert float(head["step"]) == 2
    assert float(optimizer.state[model.trunk[0].weight]["step"]) == 2 * TASKS


@pytest.mark.parametrize("schedule", [phase_one, phase_two, mixed])
def test_heads_in_groups_change_nothing(schedule: Callable[[float], float]) -> None:
    first, second = network(), network()
    heads = [{"params": head.parameters(), "task": task} for task, head in enumerate(second.heads)]
    one = optimizer_of(first, schedule=schedule)
    other = type(one)(
        [{"params": second.trunk.parameters()}, *heads],
        connections=find_connections(second), num_tasks=TASKS, total_steps=10, schedule=schedule, lr=1e-2,
    )  # fmt: skip
    batches = Batches()
    for _ in range(5):
        batches.draw()
        one.step(batches.loss(first))
        other.step(batches.loss(second))
    assert same_parameters(first, second)


def test_a_head_never_gets_the_gradient_of_another_task() -> None:
    model = network(dtype=torch.float64)
    expected = copy.deepcopy(model)
    results = []
    for net, leak in ((model, 1.0), (expected, 0.0)):
        heads = [{"params": head.parameters(), "task": task} for task, head in enumerate(net.heads)]
        optimizer = type(optimizer_of(net))(
            [{"params": net.trunk.parameters()}, *heads],
            connections=find_connections(net), num_tasks=TASKS, total_steps=10, schedule=phase_two, lr=1e-2,
        )  # fmt: skip
        batches = Batches(dtype=torch.float64)

        def loss(task: int, net: Network = net, leak: float = leak, batches: Batches = batches) -> Tensor:
            others = sum(head.weight.sum() for i, head in enumerate(net.heads) if i != task)
            return batches.loss(net)(task) + leak * others

        optimizer.step(loss)
        results.append(net)
    assert_close(*results)


def test_order_of_tasks_is_shuffled() -> None:
    model = network()
    optimizer = optimizer_of(model, schedule=phase_one, shuffle=True, seed=1)
    batches, calls = Batches(), list[int]()

    def loss(task: int) -> Tensor:
        calls.append(task)
        return batches.loss(model)(task)

    for _ in range(8):
        optimizer.step(loss)
    orders = [tuple(calls[i : i + TASKS]) for i in range(0, len(calls), TASKS)]
    assert all(sorted(order) == list(range(TASKS)) for order in orders)
    assert len(set(orders)) > 1


def test_probability_of_phase_one() -> None:
    """1 - e / E: within five standard deviations in each tenth of a long run; the sequential schedule switches once."""
    total = 20_000
    draw = PhaseDraw(mixed, total, None, shuffle=False, seed=3)
    phases = torch.tensor([draw.next(2)[0] for _ in range(total)])
    for tenth, part in enumerate(phases.split(total // 10)):
        expected = 1 - (tenth + 0.5) / 10
        deviation = math.sqrt(expected * (1 - expected) / len(part))
        assert abs(float((part == 1).double().mean()) - expected) < 5 * deviation
    draw = PhaseDraw(sequential, 10, None, shuffle=False, seed=3)
    assert [draw.next(2)[0] for _ in range(10)] == [1] * 5 + [2] * 5


def test_phases_of_epochs() -> None:
    draw = PhaseDraw(mixed, 400, 20, shuffle=False, seed=0)
    epochs = [{draw.next(2)[0] for _ in range(20)} for _ in range(20)]
    assert all(len(epoch) == 1 for epoch in epochs)
    assert epochs[0] == {1}, "e = 0: phase 1 for sure"
    assert {2} in epochs


def test_all_ranks_draw_the_same() -> None:
    """The generator is the optimizer's own: what else draws random numbers does not matter."""
    draws = []
    for rank in range(2):
        draw = PhaseDraw(mixed, 50, None, shuffle=True, seed=7)
        torch.manual_seed(rank)
        draws.append([(draw.next(3), torch.rand(rank)) for _ in range(50)])
    assert [own for own, _ in draws[0]] == [own for own, _ in draws[1]]


def test_channels_last_and_half_precision() -> None:
    """Memory formats change nothing but rounding; 16-bit models run, with sums in float32."""
    model, other = network(dtype=torch.float64), network(dtype=torch.float64).to(memory_format=torch.channels_last)
    batches = Batches(dtype=torch.float64)
    for net in (model, other):
        optimizer = optimizer_of(net)
        for _ in range(3):
            optimizer.step(batches.loss(net))
    assert_close(model, other)
    low = network().bfloat16()
    optimizer, batches = optimizer_of(low), Batches(dtype=torch.bfloat16)
    losses = [float(optimizer.step(batches.loss(low)).sum()) for _ in range(10)]
    assert losses[-1] < losses[0]


def test_a_layer_that_a_task_does_not_use() -> None:
    """General: its gradient counts as zero.  Faithful: the layer takes the plain sum."""
    for mode in ("general", "faithful"):
        model = network(dtype=torch.float64)
        batches = Batches(dtype=torch.float64)
        optimizer = optimizer_of(model, mode=mode, base=SGD())

        def loss(task: int, net: Network = model, batches: Batches = batches) -> Tensor:
            if task == 2:
                return (net.heads[2].weight.square()).sum()
            return batches.loss(net)(task)

        before = model.trunk[3].weight.detach().clone()
        gradients = []
        for task in range(2):
            model.zero_grad()
            copy.deepcopy(batches).loss(model)(task).backward()
            gradients.append(model.trunk[3].weight.grad.clone())
        optimizer.step(loss)
        change = (before - model.trunk[3].weight.detach()) / 1e-2
        is_plain = torch.allclose(change, gradients[0] + gradients[1], rtol=1e-9)
        assert is_plain == (mode == "faithful")
