"""HarmonyFused: the steps of TaskMasks around another optimizer, and what masks mean for the rest of the contract."""

from __future__ import annotations

import copy
import io
import pickle
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mt2o_ext import HarmonyFused, WeightedFused
from mt2o_ext.base import SGD, AdamW
from mt2o_ext.masks import CosineBudget, Harmony, TaskMasks

TASKS = 3


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model_of(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 2)).to(dtype)


def loss_of(model: nn.Module, task: int, step: int = 0) -> Tensor:
    dtype = next(model.parameters()).dtype
    x = torch.randn(8, 5, generator=generator(10 * step + task)).to(dtype)
    return (model(x) - task).square().mean()


def made(model: nn.Module, **options: Any) -> HarmonyFused:
    usual = {"num_tasks": TASKS, "density": 0.6, "generator": generator(), "lr": 0.01}
    return HarmonyFused(model.named_parameters(), **{**usual, **options})


def values(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def bits_equal(one: Tensor, other: Tensor) -> Tensor:
    kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return one.view(kinds[one.itemsize]) == other.view(kinds[other.itemsize])


# ---------------------------------------------------------------------- the twin in plain torch
def twin_steps(model: nn.Module, optimizer: Any, masks: TaskMasks, step: int, tasks: list[int], moments: str) -> None:
    """A step of WeightedFused for some tasks under TaskMasks."""
    one = optimizer._num_tasks == 1
    if one:
        with masks.shown(tasks[0]):
            optimizer.backward([loss_of(model, tasks[0], step)])
    else:
        for task in optimizer.tasks():
            if task in tasks:
                with masks.shown(task):
                    optimizer.backward(loss_of(model, task, step))
    with masks.held(tasks, optimizer, moments=moments):
        optimizer.step()


@pytest.mark.parametrize("turns", ["one", "all"])
@pytest.mark.parametrize("moments", ["decay", "hold"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("base", ["adamw", "sgd"])
def test_50_steps_are_those_of_task_masks_bit_for_bit(base: str, dtype: torch.dtype, moments: str, turns: str) -> None:
    model, twin = model_of(dtype), model_of(dtype)
    rule = AdamW(weight_decay=0.1) if base == "adamw" else SGD(momentum=0.9, weight_decay=0.1)
    options = {"base": rule, "lr": 0.01, "ema": 0.9}
    optimizer = made(model, moments=moments, turns=turns, **options)
    masks = TaskMasks(twin.named_parameters(), TASKS, density=0.6, generator=generator())
    assert torch.equal(masks.bits, optimizer.masks.bits)
    several = {"num_tasks": TASKS, "accumulate": True} if turns == "all" else {"num_tasks": 1}
    peer = WeightedFused(twin.parameters(), show_grad=False, **several, **options)
    for step in range(50):
        tasks = list(range(TASKS)) if turns == "all" else [step % TASKS]
        losses = optimizer.step(lambda task, step=step: loss_of(model, task, step))
        assert losses.isfinite().nonzero()[:, 0].tolist() == tasks
        twin_steps(twin, peer, masks, step, tasks, moments)
        assert bits_equal(values(model), values(twin)).all(), f"step {step}"
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        for key, value in peer.state[q].items():
            if isinstance(value, Tensor):
                assert torch.equal(optimizer.state[p][key], value), key


def test_50_steps_follow_torch_adamw() -> None:
    model, twin = model_of(torch.float64), model_of(torch.float64)
    optimizer = made(model, whole=["2.weight"], base=AdamW(weight_decay=0.1))
    masks = TaskMasks(twin.named_parameters(), TASKS, density=0.6, whole=["2.weight"], generator=generator())
    peer = torch.optim.AdamW(twin.parameters(), lr=0.01, weight_decay=0.1)
    for step in range(50):
        for task in optimizer.tasks():
            optimizer.backward(loss_of(model, task, step))
        optimizer.step()
        with masks.shown(task):
            loss_of(twin, task, step).backward()
        with masks.held(task, peer):
            peer.step()
        peer.zero_grad()
    torch.testing.assert_close(values(model), values(twin), rtol=1e-9, atol=1e-11)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(optimizer.state[p]["exp_avg"], peer.state[q]["exp_avg"], rtol=1e-9, atol=1e-12)


def test_some_tasks_and_absent_ones_are_as_if_there_were_no_others() -> None:
    """Elements of none of the tasks that have a loss keep their bits."""
    for tasks, absent in (([0, 2], set()), ([0, 1, 2], {1}), ([2, 0], set()), ([1, 2], {1})):
        model, twin = model_of(), model_of()
        optimizer = made(model, base=SGD(momentum=0.9, weight_decay=0.1))
        masks = TaskMasks(twin.named_parameters(), TASKS, density=0.6, generator=generator())
        options = {"base": SGD(momentum=0.9, weight_decay=0.1), "lr": 0.01}
        peer = WeightedFused(twin.parameters(), num_tasks=TASKS, accumulate=True, show_grad=False, **options)
        there = sorted(set(tasks) - absent)
        for step in range(4):
            for task in optimizer.tasks(tasks):
                optimizer.backward(None if task in absent else loss_of(model, task, step))
            losses = optimizer.step()
            assert losses.isfinite().nonzero()[:, 0].tolist() == there
            twin_steps(twin, peer, masks, step, there, "decay")
            torch.testing.assert_close(values(model), values(twin), rtol=1e-6, atol=1e-8)
        union = torch.stack([masks.flat(task) for task in there]).any(0)
        assert bits_equal(values(model), values(model_of()))[~union].all()


def test_gradients_are_shortened_before_they_are_masked() -> None:
    for turns in ("one", "all"):
        model, twin = model_of(torch.float64), model_of(torch.float64)
        optimizer = made(model, turns=turns, max_norm=0.25, base=SGD())
        masks = optimizer.masks
        expected = torch.zeros(values(model).shape, dtype=torch.float64)
        tasks = [0] if turns == "one" else range(TASKS)
        norms = torch.full((TASKS,), torch.nan, dtype=torch.float64)
        for task in tasks:
            leaves = {
                n: (p.detach() * m).requires_grad_()
                for (n, p), m in zip(twin.named_parameters(), masks.of(task), strict=True)
            }
            x = torch.randn(8, 5, generator=generator(task)).double()
            loss = (torch.func.functional_call(twin, leaves, x) - task).square().mean()
            gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(leaves.values()))])
            norms[task] = gradient.norm()
            shortened = gradient * min(1.0, 0.25 / gradient.norm().item())
            expected += shortened * masks.flat(task) / len(tasks)
        optimizer.step(lambda task, model=model: loss_of(model, task))
        torch.testing.assert_close(values(model), values(twin) - 0.01 * expected)
        torch.testing.assert_close(optimizer.grad_norm, norms, equal_nan=True)
        assert norms.nan_to_num().max() > 0.25


# ---------------------------------------------------------------------- the view
def test_the_model_is_what_the_task_sees_and_then_whole_again() -> None:
    model = model_of()
    optimizer, before = made(model), values(model).clone()
    places = [p.data_ptr() for p in model.parameters()]
    for task in optimizer.tasks([1, 2]):
        for p, mask in zip(model.parameters(), optimizer.masks.of(task), strict=True):
            assert torch.equal(p == 0, ~mask)
        optimizer.backward(loss_of(model, task))
    assert torch.equal(values(model), before)
    assert [p.data_ptr() for p in model.parameters()] == places, "nothing was copied back"
    optimizer.step()
    with optimizer.shown(2):
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        output = model(torch.ones(2, 5))
    file.seek(0)
    alone = model_of()
    alone.load_state_dict(torch.load(file))
    assert torch.equal(alone(torch.ones(2, 5)), output)
    assert not torch.equal(values(alone), values(model)) and (values(alone) == 0).any()
    assert len(file.getvalue()) < 4000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_running_average_of_a_task_is_shown(dtype: torch.dtype) -> None:
    model = model_of(dtype)
    optimizer = made(model, ema=0.5)
    for step in range(6):
        optimizer.step(lambda task, step=step: loss_of(model, task, step))
    averages = [optimizer.state[p]["ema"].clone() for p in model.parameters()]
    with optimizer.shown(1, ema=True):
        for p, average, mask in zip(model.parameters(), averages, optimizer.masks.of(1), strict=True):
            assert torch.equal(p, (average * mask).to(dtype))
    with pytest.raises(ValueError, match="ema=True"), made(model_of()).shown(0, ema=True):
        pass


def changed_inside(model: nn.Module, optimizer: HarmonyFused) -> None:
    with optimizer.shown(0):
        model[0].weight.data.add_(1.0)
        loss_of(model, 0).backward()


@torch.no_grad()
def changed_in_a_turn(optimizer: HarmonyFused) -> None:
    for _ in optimizer.tasks():
        optimizer.param_groups[0]["params"][0].add_(1.0)


def looped(model: nn.Module, optimizer: HarmonyFused, step: int = 0) -> None:
    for task in optimizer.tasks():
        optimizer.backward(loss_of(model, task, step))
    optimizer.step()


def failing(optimizer: HarmonyFused) -> None:
    for _ in optimizer.tasks():
        raise ZeroDivisionError


def test_changes_and_gradients_in_a_view_are_dropped_with_a_warning() -> None:
    model = model_of()
    optimizer = made(model)
    for task in optimizer.tasks():
        optimizer.backward(loss_of(model, task))
    before, kept = values(model).clone(), [p.grad for p in model.parameters()]
    optimizer.step()
    before = values(model).clone()
    with pytest.warns(UserWarning, match="the changes are dropped"):
        changed_inside(model, optimizer)
    assert torch.equal(values(model), before)
    assert [p.grad for p in model.parameters()] == kept
    other = made(model_of())
    with pytest.warns(UserWarning, match="the changes are dropped"):
        changed_in_a_turn(other)
    assert torch.equal(values(model_of()), torch.cat([p.detach().flatten() for p in other.param_groups[0]["params"]]))


def test_a_state_dict_of_a_task_stays_what_it_was() -> None:
    """Those of several tasks may be collected; neither another view nor a step changes them."""
    model = model_of()
    optimizer = made(model)
    found, copies = [], []
    for task in range(TASKS):
        with optimizer.shown(task):
            found.append(model.state_dict())
            copies.append(copy.deepcopy(found[-1]))
    trained(model, optimizer, range(3))
    for states, copied in zip(found, copies, strict=True):
        torch.testing.assert_close(states, copied, rtol=0, atol=0)
    assert not torch.equal(found[0]["2.weight"], found[1]["2.weight"])


def test_a_copy_of_the_optimizer_is_refused_where_a_task_is_shown() -> None:
    """The copy would take what the task sees for the whole model."""
    model = model_of()
    optimizer = made(model)
    with optimizer.shown(1):
        alone = copy.deepcopy(model)  # a model of this task
        for copied in (copy.deepcopy, pickle.dumps):
            with pytest.raises(RuntimeError, match=r"leave shown\(\)"):
                copied((model, optimizer))
        with pytest.raises(RuntimeError, match=r"leave shown\(\)"):  # the model beside it would be that of the task
            optimizer.state_dict()
        assert (alone[2].weight == 0).any()
    for _ in optimizer.tasks():
        with pytest.raises(RuntimeError, match=r"leave shown\(\)"):
            copy.deepcopy(optimizer)
        break
    twin, other = copy.deepcopy((model, optimizer))
    trained(model, optimizer, range(2))
    trained(twin, other, range(2))
    assert torch.equal(values(model), values(twin))


def test_a_graph_does_not_outlive_its_turn() -> None:
    model = model_of()
    optimizer = made(model)
    for task in optimizer.tasks():
        loss = loss_of(model, task)
    with pytest.raises(RuntimeError, match="inplace operation"):
        loss.backward()


def test_what_is_changed_between_steps_counts() -> None:
    """Parameters, replaced ones, and masks."""
    model = model_of()
    optimizer = made(model, base=SGD())
    optimizer.step(lambda task: loss_of(model, task))
    with torch.no_grad():
        model[0].weight.mul_(2.0)
    model[2].weight.data = torch.ones(7, 9)
    optimizer.masks.set_flat(1, torch.zeros(140, dtype=torch.bool))
    before = values(model).clone()
    optimizer.step(lambda task: loss_of(model, task))
    assert torch.equal(values(model), before)
    with optimizer.shown(1):
        assert not values(model).any()
    with optimizer.shown(0):
        assert (model[2].weight == 1).any()
    optimizer.step(lambda task: loss_of(model, task))
    assert not torch.equal(values(model), before)


def test_a_loop_that_is_left_or_fails_makes_no_step() -> None:
    model = model_of()
    optimizer, before = made(model, turns="all"), values(model).clone()
    for task in optimizer.tasks():
        optimizer.backward(loss_of(model, task))
        if task == 1:
            break
    assert torch.equal(values(model), before)
    with pytest.raises(ZeroDivisionError):
        failing(optimizer)
    assert torch.equal(values(model), before)
    with pytest.raises(TypeError, match="no loop over tasks"):
        optimizer.step()
    optimizer.step(lambda task: loss_of(model, task))
    assert not torch.equal(values(model), before)


# ---------------------------------------------------------------------- masks that change
def trained(model: nn.Module, optimizer: HarmonyFused, steps: range) -> None:
    for step in steps:
        optimizer.step(lambda task, step=step: loss_of(model, task, step))


def harmonious(model: nn.Module, **options: Any) -> HarmonyFused:
    return made(model, budget=CosineBudget(steps=12, high=9, low=2), interval=3, ema=0.9, **options)


@pytest.mark.parametrize("granularity", ["element", "channel"])
def test_masks_change_at_an_interval_and_by_the_rule(granularity: str) -> None:
    model, twin = model_of(torch.float64), model_of(torch.float64)
    options = {"granularity": granularity}
    optimizer, peer = harmonious(model, **options), made(twin, ema=0.9, **options)
    counts = optimizer.masks.counts()
    seen = [optimizer.masks.bits.clone()]
    for step in range(9):
        optimizer.step(lambda task, step=step: loss_of(model, task, step))
        peer.step(lambda task, step=step: loss_of(twin, task, step))
        if step % 3 == 2:
            amount = CosineBudget(steps=12, high=9, low=2)(step + 1)
            Harmony().update(peer.masks, lambda task, step=step: loss_of(twin, task, step), amount)
        assert torch.equal(optimizer.masks.bits, peer.masks.bits), f"step {step}"
        assert torch.equal(values(model), values(twin))
        seen.append(optimizer.masks.bits.clone())
    if granularity == "element":
        assert torch.equal(optimizer.masks.counts(), counts)
    changes = [not torch.equal(one, other) for one, other in pairwise(seen)]
    assert changes == [False, False, True] * 3


def test_masks_of_whole_channels_are_drawn_exchanged_added_and_thawed() -> None:
    """`granularity=` counts where the optimizer draws the masks itself, also later."""
    model = model_of()
    model[2].bias.requires_grad_(False)
    optimizer = HarmonyFused(model[:4].named_parameters(), num_tasks=TASKS, density=0.5, granularity="channel")

    def check(number: int) -> None:
        assert len(optimizer.masks.names) == number
        places = {name: place for place, name in enumerate(optimizer.masks.names)}
        for task in range(TASKS):
            masks = optimizer.masks.of(task)
            for name in ("0", "2", ""):
                weight, bias = (places.get(f"{name}.{kind}".lstrip(".")) for kind in ("weight", "bias"))
                if weight is not None:
                    rows = masks[weight]
                    assert torch.equal(rows.all(1), rows.any(1))
                    assert bias is None or torch.equal(rows[:, 0], masks[bias])

    check(3)
    optimizer.exchange(lambda task: loss_of(model, task), 2)
    check(3)
    model[2].bias.requires_grad_(True)
    trained(model, optimizer, range(2))
    check(4)
    optimizer.add_param_group({"params": list(model[4].named_parameters())})
    check(6)
    optimizer.exchange(lambda task: loss_of(model, task), 2)
    check(6)
    for task in range(TASKS):
        optimizer.masks.set_flat(task, optimizer.masks.flat(task))
    elements = made(model_of(), density=0.5)
    whole = made(model_of(), density=0.5, granularity="channel")
    before = whole.masks.bits.clone()
    with pytest.raises(ValueError, match="whole channels"):
        whole.load_state_dict(elements.state_dict())
    assert torch.equal(whole.masks.bits, before)


@pytest.mark.parametrize("rule", [Harmony(), Harmony(3.0, importance="magnitude", grow_grad="masked", max_norm=None)])
def test_masks_over_several_buffers_and_with_whole_tensors_change_by_the_rule(rule: Harmony) -> None:
    """Tensors of two dtypes lie in two buffers, a third one has a head."""

    def mixed() -> tuple[nn.ModuleList, nn.Linear]:
        parts = nn.ModuleList([model_of(torch.float64)[0], model_of(torch.float32)[2], model_of(torch.float64)[4]])
        return parts, nn.Linear(2, 1).double()

    def loss(parts: nn.ModuleList, head: nn.Linear, task: int) -> Tensor:
        x = torch.randn(8, 5, generator=generator(task)).double()
        hidden = parts[1](parts[0](x).tanh().float()).double().tanh()
        return (head(parts[2](hidden)) - task).square().mean()

    (parts, head), (twin, other) = mixed(), mixed()
    other.load_state_dict(head.state_dict())
    groups = [{"params": list(parts.named_parameters())}, {"params": list(head.named_parameters()), "task": 0}]
    optimizer = HarmonyFused(
        groups, num_tasks=TASKS, density=0.5, whole=["1.weight"], generator=generator(), harmony=rule
    )
    masks = TaskMasks(twin.named_parameters(), TASKS, density=0.5, whole=["1.weight"], generator=generator())
    assert len(optimizer._buffers.flats) == 3 and torch.equal(masks.bits, optimizer.masks.bits)
    for amount in (1, 7, 500):
        optimizer.exchange(lambda task: loss(parts, head, task), amount)
        rule.update(masks, lambda task: loss(twin, other, task), amount)
        assert torch.equal(optimizer.masks.bits, masks.bits)


def test_an_exchange_waits_for_a_task_without_data() -> None:
    model = model_of()
    optimizer = harmonious(model)
    bits, there = optimizer.masks.bits.clone(), [False]

    def closure(task: int) -> Tensor | None:
        return loss_of(model, task) if task < 2 or there[0] else None

    for _ in range(2):
        optimizer.step(closure)
    optimizer.step(lambda task: loss_of(model, task))
    assert not optimizer.due and not torch.equal(optimizer.masks.bits, bits)
    bits = optimizer.masks.bits.clone()
    for task in (0, 1, 0):  # then it is the turn of task 0
        for _ in optimizer.tasks(task):
            optimizer.backward(loss_of(model, task))
        optimizer.step()
    optimizer.exchange(closure)
    assert optimizer.due and torch.equal(optimizer.masks.bits, bits)
    optimizer.step(lambda task: loss_of(model, task) if task < 2 else torch.zeros(()))
    assert optimizer.due and torch.equal(optimizer.masks.bits, bits), "a constant is no loss"
    with pytest.warns(UserWarning, match="do so after a later one: expected finite gradients of task 2"):
        optimizer.step(lambda task: loss_of(model, task) * (torch.nan if task == 2 else 1.0))
    assert optimizer.due and torch.equal(optimizer.masks.bits, bits)
    there[0] = True
    optimizer.exchange(closure)
    assert not optimizer.due and not torch.equal(optimizer.masks.bits, bits)


@pytest.mark.parametrize("skips", [True, False])
def test_one_strange_mini_batch_in_an_exchange_ends_no_run(skips: bool) -> None:
    """The step is made by then; the masks wait, as for a task without data."""
    model = model_of()
    optimizer = harmonious(model, skip_nonfinite=skips)
    bits, strange = optimizer.masks.bits.clone(), [False]

    def loss(task: int) -> Tensor:
        of_exchange = optimizer.due
        return loss_of(model, task, task) * (torch.nan if strange[0] and of_exchange and task == 1 else 1.0)

    for _ in range(2):
        optimizer.step(loss)
    strange[0] = True
    if not skips:
        with pytest.raises(ValueError, match="finite gradients of task 1"):
            optimizer.step(loss)
        return
    with pytest.warns(UserWarning, match="masks were to change after this step, .*finite gradients of task 1"):
        optimizer.step(loss)
    assert torch.equal(optimizer.masks.bits, bits) and optimizer.due
    strange[0] = False
    optimizer.step(loss)
    assert not torch.equal(optimizer.masks.bits, bits) and not optimizer.due
    assert not bool(optimizer.skipped_steps.any())


def test_the_loop_says_when_masks_are_due() -> None:
    model = model_of()
    optimizer = harmonious(model)
    bits = optimizer.masks.bits.clone()
    due = []
    for step in range(5):
        for task in optimizer.tasks():
            optimizer.backward(loss_of(model, task, step))
        optimizer.step()
        due.append(optimizer.due)
    assert due == [False, False, True, True, True]
    with pytest.warns(UserWarning, match=r"every 3 steps, and have not for 6: .* optimizer.exchange"):
        looped(model, optimizer)
    assert torch.equal(optimizer.masks.bits, bits)
    optimizer.exchange(lambda task: loss_of(model, task))
    assert not optimizer.due and not torch.equal(optimizer.masks.bits, bits)


def test_an_exchange_touches_nothing_but_masks_and_all_of_them_or_none() -> None:
    model = model_of()
    optimizer = made(model)
    trained(model, optimizer, range(2))
    before, bits = values(model).clone(), optimizer.masks.bits.clone()
    with pytest.raises(ValueError, match="finite gradients of task 2"):
        optimizer.exchange(lambda task: loss_of(model, task) * (torch.nan if task == 2 else 1.0), 5)
    with pytest.raises(ValueError, match="with a graph of task 0"):
        optimizer.exchange(lambda task: loss_of(model, task).detach(), 5)
    with pytest.raises(ValueError, match="expected an amount, got none"):
        optimizer.exchange(lambda task: loss_of(model, task))
    with pytest.raises(ValueError, match="amount >= 0"):
        optimizer.exchange(lambda task: loss_of(model, task), -1)
    assert torch.equal(optimizer.masks.bits, bits)
    optimizer.exchange(lambda task: loss_of(model, task), 0)
    assert torch.equal(optimizer.masks.bits, bits)
    optimizer.exchange(lambda task: loss_of(model, task), 5)
    assert not torch.equal(optimizer.masks.bits, bits)
    assert torch.equal(values(model), before)
    assert all(p.grad is None for p in model.parameters())
    for _ in optimizer.tasks():
        with pytest.raises(RuntimeError, match="the whole model"):
            optimizer.exchange(lambda task: loss_of(model, task), 5)


# ---------------------------------------------------------------------- state
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("how", ["saved", "copied", "pickled"])
def test_a_run_goes_on_bit_for_bit(how: str, dtype: torch.dtype) -> None:
    model = model_of(dtype)
    optimizer = harmonious(model, history=3)
    trained(model, optimizer, range(7))
    if how == "saved":
        file = io.BytesIO()
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        other = model_of(dtype)
        again = harmonious(other, history=3, generator=generator(99))
        other.load_state_dict(saved["model"])
        again.load_state_dict(saved["optimizer"])
    elif how == "copied":
        other, again = copy.deepcopy((model, optimizer))
    else:
        other, again = pickle.loads(pickle.dumps((model, optimizer)))
    trained(model, optimizer, range(7, 14))
    trained(other, again, range(7, 14))
    assert bits_equal(values(model), values(other)).all()
    assert torch.equal(optimizer.masks.bits, again.masks.bits)
    torch.testing.assert_close(optimizer.state_dict()["state"], again.state_dict()["state"], rtol=0, atol=0)
    torch.testing.assert_close(optimizer.history().losses, again.history().losses, rtol=0, atol=0, equal_nan=True)


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    model = model_of()
    optimizer = made(model)
    trained(model, optimizer, range(2))
    before = copy.deepcopy(optimizer.state_dict())
    other = made(model_of(), num_tasks=2).state_dict()
    with pytest.raises(ValueError, match="`masks`"):
        optimizer.load_state_dict(other)
    peer = WeightedFused(model_of().parameters(), num_tasks=2)
    with pytest.raises(ValueError, match="expected the state of a HarmonyFused"):
        optimizer.load_state_dict(peer.state_dict())
    after = optimizer.state_dict()
    torch.testing.assert_close(after["state"], before["state"], rtol=0, atol=0)
    assert torch.equal(after["param_groups"][0]["harmony"]["masks"], before["param_groups"][0]["harmony"]["masks"])


def test_frozen_added_and_thawed_parameters() -> None:
    """A frozen one has no mask and moves nowhere; one that is added or thawed gets a mask of its own."""
    model = model_of()
    model[2].bias.requires_grad_(False)
    optimizer = HarmonyFused(model[:4].named_parameters(), num_tasks=TASKS, density=0.6, generator=generator(), lr=0.01)
    assert optimizer.masks.names == ["0.weight", "0.bias", "2.weight"]
    frozen = model[2].bias.detach().clone()
    old = optimizer.masks.flat(1)
    trained(model, optimizer, range(2))
    optimizer.add_param_group({"params": list(model[4].named_parameters()), "lr": 0.02})
    assert optimizer.masks.names[3:] == ["weight", "bias"]
    assert torch.equal(optimizer.masks.flat(1)[: len(old)], old)
    assert 0 < int(optimizer.masks.of(0)[3].sum()) < 14
    assert torch.equal(model[2].bias, frozen)
    model[2].bias.requires_grad_(True)
    before = [p.detach().clone() for p in model.parameters()]
    for step in range(2, 8):
        optimizer.step(lambda task, step=step: loss_of(model, task, step))
    masks = dict(zip(map(id, optimizer.masks.parameters_with_masks), range(9), strict=False))
    assert id(model[2].bias) in masks
    for p, old_p in zip(model.parameters(), before, strict=True):
        union = torch.stack([optimizer.masks.of(task)[masks[id(p)]] for task in range(TASKS)]).any(0)
        assert torch.equal(p[~union], old_p[~union]) and not torch.equal(p, old_p)


@pytest.mark.parametrize("turns", ["one", "all"])
@pytest.mark.parametrize("max_norm", [None, 0.1])
def test_heads_have_no_masks_and_follow_their_own_task(turns: str, max_norm: float | None) -> None:
    trunk, heads = model_of(), [nn.Linear(2, 1) for _ in range(TASKS)]
    groups = [{"params": list(head.parameters()), "task": task} for task, head in enumerate(heads)]
    optimizer = HarmonyFused(
        [{"params": list(trunk.parameters())}, *groups],
        num_tasks=TASKS, density=0.6, lr=0.01, turns=turns, max_norm=max_norm, base=SGD(),
    )  # fmt: skip
    assert len(optimizer.masks.names) == 6
    before = [head.weight.detach().clone() for head in heads]

    def loss(task: int) -> Tensor:
        return (heads[task](trunk(torch.ones(4, 5))) - 3.0).square().mean()

    with optimizer.shown(0):
        grads = torch.autograd.grad(loss(0), [*trunk.parameters(), heads[0].weight, heads[0].bias])
    optimizer.step(loss)
    norm = torch.cat([g.flatten() for g in grads]).norm()
    factor = 1.0 if max_norm is None else min(1.0, max_norm / norm.item())
    torch.testing.assert_close(heads[0].weight, before[0] - 0.01 * factor * grads[-2])
    assert torch.equal(heads[1].weight, before[1]) == (turns == "one")
    with optimizer.shown(1):
        assert not bool((heads[1].weight == 0).any())


def test_masks_that_are_added_count_from_the_next_step() -> None:
    model = model_of()
    masks = TaskMasks(model[0].named_parameters(), 2, density=0.5)
    optimizer = HarmonyFused(model.parameters(), num_tasks=2, masks=masks, base=SGD(), lr=0.1)
    optimizer.step(lambda task: loss_of(model, task))
    masks.add([("4.weight", model[4].weight)], density=0.5)
    before, mask = model[4].weight.detach().clone(), masks.of(1)[2]
    optimizer.step(lambda task: loss_of(model, task))
    assert torch.equal(model[4].weight != before, mask)
    with optimizer.shown(0):
        assert torch.equal(model[4].weight == 0, ~masks.of(0)[2])


def test_more_than_all_elements_change_places_and_odd_counts_are_refused() -> None:
    model = model_of()
    optimizer, twin = made(model), made(model_of())
    optimizer.exchange(lambda task: loss_of(model, task), 10**30)
    assert torch.equal(optimizer.masks.counts(), twin.masks.counts())
    assert not torch.equal(optimizer.masks.bits, twin.masks.bits)
    state = optimizer.state_dict()
    for key in ("steps", "exchanged"):
        odd = copy.deepcopy(state)
        odd["param_groups"][0]["harmony"][key] = float("inf")
        with pytest.raises(ValueError, match=f"`{key}`"):
            optimizer.load_state_dict(odd)


def test_masks_of_some_parameters() -> None:
    model = model_of()
    masks = TaskMasks(model[0].named_parameters(), 2, density=0.5)
    optimizer = HarmonyFused(model.parameters(), num_tasks=2, masks=masks, base=SGD(), lr=0.1)
    assert optimizer.masks is masks
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step(lambda task: loss_of(model, task))
    assert torch.equal(model[0].weight[~masks.of(0)[0]], before[0][~masks.of(0)[0]])
    assert bool((model[4].weight != before[4]).all())
    with optimizer.shown(1):
        assert bool((model[4].weight != 0).all()) and bool((model[0].weight == 0).any())


def test_other_orders_of_memory() -> None:
    """channels_last weights lie in another order than their masks are counted."""
    model = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    optimizer = HarmonyFused(model.named_parameters(), num_tasks=2, density=0.5, base=SGD(), lr=0.1)
    before = model.weight.detach().clone()
    x = torch.randn(2, 4, 5, 5, generator=generator())
    with optimizer.shown(0):
        assert torch.equal(model.weight == 0, ~optimizer.masks.of(0)[0])
    optimizer.step(lambda task: model(x).square().mean())
    assert torch.equal(model.weight != before, optimizer.masks.of(0)[0])
    optimizer.exchange(lambda task: model(x).square().mean() + task * model(x).mean(), 20)
    with optimizer.shown(1):
        assert torch.equal(model.weight == 0, ~optimizer.masks.of(1)[0])


# ---------------------------------------------------------------------- the rest of the contract
def test_a_gradient_that_is_not_finite_moves_nothing() -> None:
    for options in ({}, {"max_norm": 1.0}, {"turns": "all"}):
        model = model_of()
        optimizer = made(model, **options)
        trained(model, optimizer, range(1))
        before, state = values(model).clone(), copy.deepcopy(optimizer.state_dict()["state"])
        with pytest.warns(UserWarning, match="infinite or NaN"):
            optimizer.step(lambda task, model=model: loss_of(model, task) * torch.nan)
        assert torch.equal(values(model), before)
        torch.testing.assert_close(optimizer.state_dict()["state"], state, rtol=0, atol=0)
        assert optimizer.skipped_steps.tolist() == [1]


def test_a_task_without_data_alone_says_how_to_go_on() -> None:
    """The turn stays with this task, so that its step has to be another's."""
    model = model_of()
    optimizer = made(model)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"only task 0 was asked.*tasks\(another\)"):
            optimizer.step(lambda task: None)
    for task in optimizer.tasks(1):
        optimizer.backward(loss_of(model, task))
    optimizer.step()
    assert not torch.equal(values(model), values(model_of()))
    every = made(model_of(), turns="all")
    with pytest.raises(ValueError, match="at least one task") as caught:
        every.step(lambda task: None)
    assert "was asked" not in str(caught.value)


def test_a_grad_scaler_changes_nothing_but_what_overflows() -> None:
    model, twin = model_of(), model_of()
    optimizer, plain = made(model, max_norm=0.5), made(twin, max_norm=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(6):
        for task in optimizer.tasks():
            optimizer.backward(loss_of(model, task, step), scaler=scaler)
        scaler.step(optimizer)
        scaler.update()
        plain.step(lambda task, step=step: loss_of(twin, task, step))
    torch.testing.assert_close(values(model), values(twin))
    before = values(model).clone()
    for task in optimizer.tasks():
        optimizer.backward(loss_of(model, task) * torch.inf, scaler=scaler)
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(values(model), before) and scaler.get_scale() == 2.0**9


def test_schedulers_and_groups() -> None:
    model = model_of()
    groups = [{"params": list(model[0].parameters()), "lr": 0.0}, {"params": list(model[2:].parameters())}]
    optimizer = HarmonyFused(groups, num_tasks=2, lr=0.1, base=SGD())
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    before = values(model).clone()
    optimizer.step(lambda task: loss_of(model, task))
    scheduler.step()
    assert torch.equal(values(model)[:54], before[:54]) and not torch.equal(values(model), before)
    assert optimizer.param_groups[1]["lr"] == 0.05


def test_the_task_is_known_in_a_closure_without_arguments() -> None:
    model = model_of()
    optimizer, seen = made(model, turns="all"), []

    def closure() -> Tensor:
        seen.append(optimizer.task)
        return loss_of(model, optimizer.task)

    optimizer.step(closure)
    assert seen == [0, 1, 2]
    with pytest.raises(RuntimeError, match=r"optimizer\.task to be read in"):
        _ = optimizer.task


def test_bad_arguments_are_refused_before_anything_is_changed() -> None:
    model = model_of()
    masks = TaskMasks(model.named_parameters(), 2)
    strange = TaskMasks(model_of().named_parameters(), TASKS)
    for options, error, message in (
        ({"num_tasks": 0}, ValueError, "num_tasks >= 1"),
        ({"num_tasks": 5000}, ValueError, "num_tasks <= 1024"),
        ({"turns": "two"}, ValueError, "turns as one of"),
        ({"moments": "drop"}, ValueError, "moments as one of"),
        ({"density": 1.5}, ValueError, "density"),
        ({"whole": "embed"}, TypeError, "whole as a list"),
        ({"whole": None}, TypeError, "whole as a list"),
        ({"whole": [3]}, TypeError, "whole as a list"),
        ({"interval": 5}, ValueError, "budget= beside interval="),
        ({"interval": 0, "budget": CosineBudget(5)}, ValueError, "interval >= 1"),
        ({"budget": 7}, TypeError, "budget as a CosineBudget"),
        ({"harmony": 7}, TypeError, "harmony as a Harmony"),
        ({"max_norm": -1.0}, ValueError, "max_norm > 0"),
        ({"masks": masks, "generator": None, "density": None}, ValueError, "masks of 3 tasks, got some of 2"),
        ({"masks": strange, "generator": None, "density": None}, ValueError, "got one of 0.weight"),
        ({"masks": strange}, ValueError, "density=, generator= would have no effect"),
        ({"granularity": "layer"}, ValueError, "granularity as one of"),
        ({"masks": 3, "generator": None, "density": None}, TypeError, "masks as a TaskMasks"),
        ({"fused": True}, TypeError, "no argument fused="),
    ):
        with pytest.raises(error, match=message):
            made(model, **options)
    frozen = model_of().requires_grad_(False)
    with pytest.raises(ValueError, match="at least one trainable parameter"):
        made(frozen)
    optimizer = made(model)
    for chosen, error, message in (
        ([], ValueError, "at least one task"),
        (3, IndexError, r"task 0 \.\. 2"),
        ([0, 0], ValueError, "every task once"),
        (True, TypeError, "task as an int"),
        ("all", TypeError, "a task or a list of tasks"),
        (0.5, TypeError, "a task or a list of tasks"),
    ):
        with pytest.raises(error, match=message):
            next(optimizer.tasks(chosen))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="inside of `for task"):
        optimizer.backward(loss_of(model, 0))
    for _ in optimizer.tasks():
        for call in (lambda: next(optimizer.tasks()), lambda: optimizer.step(lambda task: loss_of(model, task))):
            with pytest.raises(RuntimeError, match="one loop over tasks"):
                call()
        with pytest.raises(RuntimeError, match="inside"):
            optimizer.step()
        with pytest.raises(TypeError, match="loss of task 0 as a tensor"):
            optimizer.backward(3.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a loss of at least one task"):
        optimizer.step()
    with pytest.raises(IndexError, match=r"task 0 \.\. 2"), optimizer.shown(7):
        pass
    with optimizer.shown(0):
        with pytest.raises(RuntimeError, match="the whole model"), optimizer.shown(1):
            pass
        with pytest.raises(RuntimeError, match="the whole model"):
            optimizer.step(lambda task: loss_of(model, task))
