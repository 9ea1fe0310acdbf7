"""TaskMasks: bits, counts, the view of a task, and steps that move nothing outside of a mask."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mt2o_ext import MT2OFused, WeightedFused
from mt2o_ext.masks import TaskMasks, erk_counts, pack, unpack

TASKS = 3


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model_of(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 2)).to(dtype)


def masks_of(model: nn.Module, density: float = 0.6, **options: Any) -> TaskMasks:
    return TaskMasks(model.named_parameters(), TASKS, density=density, generator=generator(3), **options)


def loss_of(model: nn.Module, task: int, step: int = 0) -> Tensor:
    dtype = next(model.parameters()).dtype
    x = torch.randn(8, 5, generator=generator(10 * step + task)).to(dtype)
    return (model(x) - task).square().mean()


def values(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def bits_equal(one: Tensor, other: Tensor) -> Tensor:
    kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return one.view(kinds[one.itemsize]) == other.view(kinds[other.itemsize])


# ---------------------------------------------------------------------- bits and counts
@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 64, 1001])
def test_bits_are_packed_and_unpacked(size: int) -> None:
    mask = torch.rand(4, size, generator=generator()) < 0.5
    packed = pack(mask)
    assert packed.dtype == torch.uint8 and packed.shape == (4, -(-size // 8))
    assert torch.equal(unpack(packed, size), mask)
    assert pack(torch.tensor([True, False, False, True, False, False, False, False, True])).tolist() == [9, 1]


def test_a_mask_is_one_bit_for_each_element_and_task() -> None:
    model = model_of()
    masks = masks_of(model)
    elements = sum(p.numel() for p in model.parameters())
    assert masks.bits.nbytes == TASKS * -(-elements // 8)


@pytest.mark.parametrize("density", [0.0, 0.03, 0.4, 0.8, 0.97, 1.0])
@pytest.mark.parametrize(
    "shapes", [[(100, 50), (100,), (10, 100), (10,)], [(16, 8, 3, 3), (16,), (2, 1024), (), (3,)], [(7,)]]
)
def test_erk_counts_are_the_budget_and_follow_the_kernel(shapes: list[tuple[int, ...]], density: float) -> None:
    counts = erk_counts(shapes, density)
    sizes = [int(torch.Size(shape).numel()) for shape in shapes]
    assert sum(counts) == round(density * sum(sizes))
    assert all(0 <= count <= size for count, size in zip(counts, sizes, strict=True))
    # Of tensors that are not full, densities are in proportion to the sum of sizes over their product.
    thin = [i for i, (count, size) in enumerate(zip(counts, sizes, strict=True)) if count < size - 1]
    scales = [(counts[i] / sum(shapes[i]), 1 / sum(shapes[i])) for i in thin if len(shapes[i]) > 0]
    for scale, rounding in scales:
        assert abs(scale - scales[0][0]) <= rounding + scales[0][1]


def test_first_masks_are_random_with_exact_counts_in_each_tensor() -> None:
    model = model_of()
    masks = masks_of(model)
    counts = erk_counts([p.shape for p in model.parameters()], 0.6)
    for task in range(TASKS):
        assert [int(mask.sum()) for mask in masks.of(task)] == counts
        assert [mask.shape for mask in masks.of(task)] == [p.shape for p in model.parameters()]
    assert masks.counts().tolist() == [sum(counts)] * TASKS
    overlaps = masks.overlaps()
    assert torch.equal(overlaps.diagonal(), masks.counts()) and overlaps[0, 1] < sum(counts)
    assert torch.equal(masks_of(model).bits, masks.bits)
    other = TaskMasks(model.named_parameters(), TASKS, density=0.6, generator=generator(4))
    assert not torch.equal(other.bits, masks.bits)


def test_masks_of_whole_channels() -> None:
    """Weight and bias of a module together, the density as near as channels allow; others alone."""
    model = nn.ModuleDict({"conv": nn.Conv2d(3, 10, 3), "norm": nn.BatchNorm2d(10), "table": nn.Embedding(6, 4)})
    masks = TaskMasks(model.named_parameters(), 4, density=0.5, generator=generator(1), granularity="channel")
    assert [size for size, _ in masks.channels.layers] == [10, 10, 6] and masks.channels.number == 26
    for task in range(4):
        part = dict(zip(masks.names, masks.of(task), strict=True))
        weight = part["conv.weight"].flatten(1)
        assert torch.equal(weight.all(1), weight.any(1)) and torch.equal(weight[:, 0], part["conv.bias"])
        assert torch.equal(part["norm.weight"], part["norm.bias"])
        assert torch.equal(part["table.weight"].all(1), part["table.weight"].any(1))
    elements = sum(masks.sizes)
    assert all(abs(count / elements - 0.5) < 0.12 for count in masks.counts().tolist())
    assert masks.overlaps()[0, 1] < masks.counts()[0]
    same = TaskMasks(model.named_parameters(), 4, density=0.5, generator=generator(1), granularity="channel")
    assert torch.equal(same.bits, masks.bits)
    half = masks.flat(0)
    half[:3] = ~half[:3]
    with pytest.raises(ValueError, match="masks of whole channels"):
        masks.set_flat(0, half)
    masks.set_flat(0, masks.flat(1))
    numbers = TaskMasks([("a", nn.Parameter(torch.zeros(()))), ("b", nn.Parameter(torch.zeros(3)))], 2, density=0.5,
                        granularity="channel")  # fmt: skip
    assert numbers.channels.number == 4 and numbers.counts().tolist() == [2, 2]


# ---------------------------------------------------------------------- the view
def test_a_task_sees_its_own_part_and_everything_comes_back() -> None:
    model = model_of(torch.float64)
    masks, before, x = masks_of(model), values(model).clone(), torch.ones(2, 5, dtype=torch.float64)
    for task in range(TASKS):
        part = dict(zip(masks.names, masks.of(task), strict=True))
        expected = torch.func.functional_call(model, {n: p.detach() * part[n] for n, p in model.named_parameters()}, x)
        with masks.shown(task):
            assert torch.equal(model(x), expected)
        assert torch.equal(values(model), before)


def test_strange_bits_come_back() -> None:
    model = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-0.0, float("nan"), float("inf")], [1e-42, -float("inf"), 3.0]]))
    before = model.weight.detach().clone()
    masks = TaskMasks(model.named_parameters(), 2, density=0.0)
    with masks.shown(1):
        assert torch.equal(model.weight, torch.zeros(2, 3))
    assert bits_equal(model.weight.detach(), before).all()


@pytest.mark.parametrize("gradients", ["masked", "dense"])
def test_gradients_are_those_at_the_masked_parameters(gradients: str) -> None:
    model = model_of(torch.float64)
    masks = masks_of(model)
    part = dict(zip(masks.names, masks.of(1), strict=True))
    leaves = {n: (p.detach() * part[n]).requires_grad_() for n, p in model.named_parameters()}
    x = torch.randn(8, 5, generator=generator(1)).double()
    (torch.func.functional_call(model, leaves, x) - 1).square().mean().backward()
    with masks.shown(1, gradients=gradients):
        loss_of(model, 1).backward()
    for name, p in model.named_parameters():
        expected = leaves[name].grad
        torch.testing.assert_close(p.grad, expected * part[name] if gradients == "masked" else expected)
    loss_of(model, 1).backward()  # the hooks are gone
    assert any((p.grad[~part[n]] != 0).any() for n, p in model.named_parameters())


def test_some_parameters_are_shown_whole() -> None:
    model = model_of()
    masks = masks_of(model, whole=["2.weight"])
    assert masks.whole == [name == "2.weight" for name in masks.names]
    before, mask = model[2].weight.detach().clone(), masks.of(0)[2]
    with masks.shown(0):
        assert torch.equal(model[2].weight, before) and not torch.equal(model[0].weight, before)
        loss_of(model, 0).backward()
    assert (model[2].weight.grad[~mask] != 0).any()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with masks.held(0, optimizer):
        optimizer.step()
    assert torch.equal(model[2].weight[~mask], before[~mask]) and not torch.equal(model[2].weight, before)


def test_a_graph_does_not_outlive_the_view() -> None:
    model = model_of()
    masks = masks_of(model)
    with masks.shown(0):
        loss = loss_of(model, 0)
    with pytest.raises(RuntimeError, match="inplace operation"):
        loss.backward()


def test_an_exception_leaves_everything_as_it_was() -> None:
    model = model_of()
    masks, before = masks_of(model), values(model).clone()
    with pytest.raises(ZeroDivisionError), masks.shown(0):
        raise ZeroDivisionError
    assert torch.equal(values(model), before)
    with masks.shown(1):
        with pytest.raises(RuntimeError, match="no task to be shown, got task 1"), masks.shown(0):
            pass
        with pytest.raises(RuntimeError, match="no task to be shown"):
            masks.set_flat(0, masks.flat(1))
    assert torch.equal(values(model), before)


# ---------------------------------------------------------------------- steps
OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "SGD": lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1),
    "AdamW": lambda m: torch.optim.AdamW(m.parameters(), lr=0.01, weight_decay=0.1),
    "WeightedFused": lambda m: WeightedFused(m.parameters(), num_tasks=1, lr=0.01, base="adamw"),
    "WeightedFused, SGD": lambda m: WeightedFused(
        [{"params": m.parameters(), "weight_decay": 0.1}], num_tasks=1, lr=0.05, base="sgd"
    ),
}


def one_step(optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> None:
    """Backward, for both kinds of optimizers."""
    if isinstance(optimizer, WeightedFused):
        optimizer.backward([loss()])
    else:
        optimizer.zero_grad()
        loss().backward()


@pytest.mark.parametrize("moments", ["decay", "hold"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_nothing_outside_of_a_mask_moves_in_50_steps(name: str, dtype: torch.dtype, moments: str) -> None:
    """With decay and momentum, after steps of all parameters have filled the moments."""
    model = model_of(dtype)
    masks, optimizer = masks_of(model), OPTIMIZERS[name](model)
    for step in range(3):
        one_step(optimizer, lambda step=step: loss_of(model, 0, step))  # type: ignore[misc]
        optimizer.step()
    inside = masks.flat(1)
    start, started = values(model).clone(), copy.deepcopy([optimizer.state[p] for p in model.parameters()])
    for step in range(50):
        with masks.shown(1):
            one_step(optimizer, lambda step=step: loss_of(model, 1, step))  # type: ignore[misc]
        with masks.held(1, optimizer, moments=moments):
            optimizer.step()
        assert bits_equal(values(model), start)[~inside].all()
    moved = values(model) != start
    assert moved[inside].float().mean() > 0.9
    for p, mask, old in zip(model.parameters(), masks.of(1), started, strict=True):
        for key, value in optimizer.state[p].items():
            if isinstance(value, Tensor) and value.shape == p.shape and (moments == "hold" or key == "master"):
                assert torch.equal(value[~mask], old[key][~mask]), key


def test_a_step_without_the_context_moves_them() -> None:
    """What the test above would miss if momentum and decay did nothing."""
    model = model_of()
    masks, optimizer, start = masks_of(model), OPTIMIZERS["SGD"](model), values(model).clone()
    with masks.shown(1):
        one_step(optimizer, lambda: loss_of(model, 1))
    optimizer.step()
    assert (values(model) != start)[~masks.flat(1)].any()


def test_inside_of_a_mask_a_step_is_that_of_the_part_alone() -> None:
    """AdamW on the elements of the mask, as parameters of their own."""
    model = model_of(torch.float64)
    masks, optimizer = masks_of(model), OPTIMIZERS["AdamW"](model)
    part = masks.of(2)
    twins = [p.detach()[mask].clone().requires_grad_() for p, mask in zip(model.parameters(), part, strict=True)]
    twin = torch.optim.AdamW(twins, lr=0.01, weight_decay=0.1)
    for step in range(10):
        with masks.shown(2):
            one_step(optimizer, lambda step=step: loss_of(model, 2, step))  # type: ignore[misc]
        for leaf, p, mask in zip(twins, model.parameters(), part, strict=True):
            leaf.grad = p.grad[mask].clone()
        with masks.held(2, optimizer):
            optimizer.step()
        twin.step()
    for leaf, p, mask in zip(twins, model.parameters(), part, strict=True):
        torch.testing.assert_close(p[mask], leaf)


def test_a_running_average_outside_of_a_mask_stays() -> None:
    model = model_of()
    masks, optimizer = masks_of(model), WeightedFused(model.parameters(), num_tasks=1, lr=0.1, ema=0.5)
    for step in range(5):
        before = [optimizer.state[p]["ema"].clone() if step else p.detach().clone() for p in model.parameters()]
        with masks.shown(0):
            one_step(optimizer, lambda step=step: loss_of(model, 0, step))  # type: ignore[misc]
        with masks.held(0, optimizer):
            optimizer.step()
        for p, mask, old in zip(model.parameters(), masks.of(0), before, strict=True):
            assert torch.equal(optimizer.state[p]["ema"][~mask], old[~mask])
            assert not torch.equal(optimizer.state[p]["ema"], old)


def test_several_tasks_in_one_step_of_a_weighting() -> None:
    """Each task's gradient is masked before it is weighed; what no task has does not move."""
    model, by_hand = model_of(torch.float64), model_of(torch.float64)
    masks = masks_of(model, density=0.3)
    optimizer = WeightedFused(model.parameters(), num_tasks=TASKS, weighting="upgrad", base="sgd", lr=0.1)
    twin = WeightedFused(by_hand.parameters(), num_tasks=TASKS, weighting="upgrad", base="sgd", lr=0.1)
    union = masks.flat(0) | masks.flat(1) | masks.flat(2)
    start = values(model).clone()
    for _ in range(5):
        for task in optimizer.tasks():
            with masks.shown(task):
                optimizer.backward(loss_of(model, task))
        with masks.held(None, optimizer):
            optimizer.step()
        losses = []
        for task in range(TASKS):
            shown = {n: p * m for (n, p), m in zip(by_hand.named_parameters(), masks.of(task), strict=True)}
            x = torch.randn(8, 5, generator=generator(task)).double()
            losses.append((torch.func.functional_call(by_hand, shown, x) - task).square().mean())
        twin.backward(losses)
        twin.step()
    torch.testing.assert_close(values(model), values(by_hand))
    assert torch.equal(values(model)[~union], start[~union]) and (~union).any()


# ---------------------------------------------------------------------- state and refusals
def test_saved_and_loaded_bit_for_bit() -> None:
    model = model_of()
    masks, file = masks_of(model), io.BytesIO()
    masks.set_flat(2, torch.rand(sum(masks.sizes), generator=generator()) < 0.2)
    torch.save(masks.state_dict(), file)
    file.seek(0)
    other = TaskMasks(model.named_parameters(), TASKS, density=0.1)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.bits, masks.bits)
    for task in range(TASKS):
        assert torch.equal(other.flat(task), masks.flat(task))
    with pytest.raises(RuntimeError, match="size mismatch for bits"):
        TaskMasks(model.named_parameters(), TASKS + 1).load_state_dict(masks.state_dict())
    assert list(masks.parameters()) == [], "the parameters are the model's"


def test_bad_arguments_are_refused() -> None:
    model = model_of()
    named = list(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for given, error, message in [
        (list(model.parameters()), TypeError, "pairs of a name and a parameter"),
        ([*named, named[0]], ValueError, "0.weight twice"),
        ([], ValueError, "at least one parameter"),
        ([("x", torch.zeros(3, dtype=torch.int64))], TypeError, "x of torch.int64"),
        (list(nn.LazyLinear(2).named_parameters()), ValueError, "without a size"),
    ]:
        with pytest.raises(error, match=message):
            TaskMasks(given, 2)  # type: ignore[arg-type]
    for density, error in ((1.1, ValueError), (-0.1, ValueError), ("all", TypeError)):
        with pytest.raises(error, match="density"):
            TaskMasks(named, 2, density=density)  # type: ignore[arg-type]
    for whole in ("embed", None, [3], 1):
        with pytest.raises(TypeError, match="whole as a list"):
            TaskMasks(named, 2, whole=whole)  # type: ignore[arg-type]
    for given in (None, 3, torch.ones(2)):
        with pytest.raises(TypeError, match="named parameters as a list"):
            TaskMasks(given, 2)  # type: ignore[arg-type]
    masks = masks_of(model)
    for task, error in ((-1, IndexError), (TASKS, IndexError), (True, TypeError), (0.0, TypeError)):
        with pytest.raises(error, match=r"expected a? ?task .*0 \.\. 2"), masks.shown(task):  # type: ignore[arg-type]
            pass
    for tasks in (0.5, torch.tensor(1), "all"):
        with pytest.raises(TypeError, match="a task or a list of tasks"), masks.held(tasks, optimizer):  # type: ignore[arg-type]
            pass
    with pytest.raises(ValueError, match="at least one task"), masks.held([], optimizer):
        pass
    with pytest.raises(TypeError, match="expected an optimizer, got Sequential"), masks.held(0, model):  # type: ignore[arg-type]
        pass
    with pytest.raises(ValueError, match="moments as one of"), masks.held(0, optimizer, moments="drop"):
        pass
    several = MT2OFused(model_of().parameters(), num_tasks=2, num_subproblems=2, transfer=None)
    with pytest.raises(ValueError, match="one model, got MT2OFused of 2"), masks.held(0, several):
        pass
    with pytest.raises(ValueError, match=r"shape \[140\], got \[3\]"):
        masks.set_flat(0, torch.ones(3, dtype=torch.bool))
    for mask in (torch.ones(140), None, [True] * 140, torch.ones(140, dtype=torch.bool, device="meta")):
        with pytest.raises(TypeError, match=r"mask .*of bool"):
            masks.set_flat(0, mask)  # type: ignore[arg-type]
    for packed, size, error in (
        (None, 8, TypeError), (torch.ones(1), 8, TypeError), (pack(torch.ones(8).bool()), -1, ValueError),
        (pack(torch.ones(8).bool()), 9, ValueError), (pack(torch.ones(8).bool()), None, TypeError),
    ):  # fmt: skip
        with pytest.raises(error, match="expected"):
            unpack(packed, size)  # type: ignore[arg-type]
    for mask in (None, torch.ones(3), torch.tensor(True)):
        with pytest.raises(TypeError, match="mask of bool"):
            pack(mask)  # type: ignore[arg-type]
