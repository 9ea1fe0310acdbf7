"""Task gradients in tables: those of torch.autograd.grad, and nothing else changed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bench.measure import peak_bytes
from mt2o_ext.gradients.collect import TaskSlots, collect_gram, collect_sum
from mt2o_ext.gradients.layout import Layout
from mt2o_ext.gradients.passes import Pass
from mt2o_ext.gradients.table import GradientTable

T = 3
WAYS = ["sequential", "batched"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


class Model(nn.Module):
    """A trunk with a tied, a frozen, an unused and a channels-last parameter, and a head for each task."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
        self.tied = nn.Linear(12, 12)
        self.frozen = nn.Linear(12, 12).requires_grad_(False)
        self.unused = nn.Parameter(torch.randn(5))
        self.heads = nn.ModuleList(nn.Linear(12, 1) for _ in range(T))
        self.to(dtype)

    def losses(self, x: Tensor) -> list[Tensor]:
        z = self.conv(x).flatten(1)
        z = self.frozen(self.tied(self.tied(z).tanh()).tanh())
        return [head(z).square().mean() for head in self.heads]

    def shared(self) -> list[nn.Parameter]:
        return [p for name, p in self.named_parameters() if not name.startswith("heads")]


def make(dtype: torch.dtype = torch.float32) -> tuple[Model, GradientTable, GradientTable, TaskSlots, Tensor]:
    model = Model(dtype)
    trunk, heads = table_of(model.shared(), num_tasks=T), table_of(list(model.heads.parameters()))
    tasks = [[None] * len(trunk.layout.parameters), [task for task in range(T) for _ in range(2)]]
    return model, trunk, heads, TaskSlots([trunk, heads], tasks, T), torch.randn(4, 2, 4, 4).to(dtype)


def table_of(parameters: list[nn.Parameter], num_rows: int = 1, *, num_tasks: int = 1) -> GradientTable:
    return GradientTable(Layout(parameters, num_rows), num_tasks)


def expected_of(model: Model, x: Tensor, parameters: list[nn.Parameter]) -> list[list[Tensor | None]]:
    live = [p for p in parameters if p.requires_grad]
    rows = []
    for loss in model.losses(x):
        grads = dict(zip(live, torch.autograd.grad(loss, live, allow_unused=True, retain_graph=True), strict=True))
        rows.append([grads.get(p) for p in parameters])
    return rows


def close(actual: Tensor | None, expected: Tensor) -> None:
    assert actual is not None
    factor = 8 * torch.finfo(expected.dtype).eps
    torch.testing.assert_close(actual, expected, rtol=factor, atol=factor * max(1.0, expected.abs().max().item()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("how", WAYS)
def test_gradients_of_trunk_and_heads(how: str, dtype: torch.dtype) -> None:
    model, trunk, heads, slots, x = make(dtype)
    slots.collect(model.losses(x), 0, how, Pass())
    for task, row in enumerate(expected_of(model, x, trunk.layout.parameters)):
        for segment, grad in enumerate(row):
            assert trunk.filled[task][segment] == (grad is not None)
            if grad is not None:
                close(trunk.at(0, task, segment), grad)
    for segment, p in enumerate(heads.layout.parameters):
        [own] = torch.autograd.grad(model.losses(x)[segment // 2], [p])
        close(heads.at(0, 0, segment), own)
    assert all(heads.filled[0])


@pytest.mark.parametrize("how", WAYS)
def test_several_calls_add_up_until_they_are_forgotten(how: str) -> None:
    model, trunk, _, slots, x = make()
    slots.collect(model.losses(x), 0, how, Pass())
    slots.collect(model.losses(2 * x), 0, how, Pass())
    first, second = (expected_of(model, batch, trunk.layout.parameters) for batch in (x, 2 * x))
    for task in range(T):
        for segment, (one, other) in enumerate(zip(first[task], second[task], strict=True)):
            if one is not None and other is not None:
                close(trunk.at(0, task, segment), one + other)
    trunk.forget()
    slots.collect(model.losses(x), 0, how, Pass())
    close(trunk.at(0, 1, 1), first[1][1])  # type: ignore[arg-type]


@pytest.mark.parametrize("how", WAYS)
def test_grad_is_left_as_it_was_and_others_are_as_after_any_backward(how: str) -> None:
    model, trunk, _, _, x = make()
    slots = TaskSlots([trunk], [[None] * len(trunk.layout.parameters)], T)
    kept = torch.ones_like(model.tied.weight)
    model.tied.weight.grad = kept
    slots.collect(model.losses(x), 0, how, Pass())
    assert model.tied.weight.grad is kept and torch.equal(kept, torch.ones_like(kept))
    heads = set(model.heads.parameters())
    assert all(p.grad is None for p in model.parameters() if p is not model.tied.weight and p not in heads)
    for task, head in enumerate(model.heads):  # which are in no slot: as after any backward, where it is one for each
        expected = torch.autograd.grad(model.losses(x)[task], list(head.parameters()))
        for p, grad in zip(head.parameters(), expected, strict=True):
            assert (p.grad is None) if how == "batched" else torch.equal(p.grad, grad)


@pytest.mark.parametrize("how", WAYS)
def test_hooks_of_the_user_see_each_gradient(how: str) -> None:
    model, trunk, _, slots, x = make()
    model.tied.weight.register_hook(lambda grad: 2 * grad)
    slots.collect(model.losses(x), 0, how, Pass())
    segment = next(i for i, p in enumerate(trunk.layout.parameters) if p is model.tied.weight)
    for task, row in enumerate(expected_of(model, x, trunk.layout.parameters)):
        close(trunk.at(0, task, segment), row[segment])  # type: ignore[arg-type]


@pytest.mark.parametrize("how", WAYS)
def test_the_graph_is_kept_on_request(how: str) -> None:
    model, trunk, _, slots, x = make()
    losses = model.losses(x)
    slots.collect(losses, 0, how, Pass(retain_graph=True))
    slots.collect(losses, 0, how, Pass())
    close(trunk.at(0, 0, 1), 2 * expected_of(model, x, trunk.layout.parameters)[0][1])  # type: ignore[operator]
    with pytest.raises(RuntimeError, match="second time"):
        slots.collect(losses, 0, how, Pass())
    assert all(p.grad is None for p in model.parameters())


def test_sparse_gradients_are_added_to_dense_ones() -> None:
    embedding = nn.Embedding(6, 4, sparse=True)
    flat = table_of([embedding.weight], num_tasks=2)
    slots = TaskSlots([flat], [[None]], 2)
    for _ in range(2):
        z = embedding(torch.tensor([1, 1, 5]))
        slots.collect([z.sum(), z.square().sum()], 0, "sequential", Pass())
    expected = torch.zeros(6, 4).index_add_(0, torch.tensor([1, 1, 5]), torch.full((3, 4), 2.0))
    close(flat.at(0, 0, 0), expected)
    close(flat.at(0, 1, 0), 2 * expected * embedding.weight.detach())


def test_losses_of_nothing_that_is_asked_for() -> None:
    other = nn.Parameter(torch.ones(3))
    flat = table_of([nn.Parameter(torch.ones(2)).requires_grad_(False)], num_tasks=2)
    slots = TaskSlots([flat], [[None]], 2)
    for how in WAYS:
        slots.collect([other.sum(), other.sum()], 0, how, Pass(retain_graph=True))
    assert not any(map(any, flat.filled))


def test_rows_of_several_subproblems_are_apart() -> None:
    p = nn.Parameter(torch.randn(5))
    flat = table_of([p], 3, num_tasks=2)
    slots = TaskSlots([flat], [[None]], 2)
    for row in (2, 0):
        slots.collect([(row + 1) * p.sum(), (row + 1) * p.square().sum()], row, "sequential", Pass())
    assert flat.filled == [[True], [True], [False], [False], [True], [True]]
    for row in (0, 2):
        close(flat.at(row, 0, 0), torch.full((5,), row + 1.0))
        close(flat.at(row, 1, 0), 2 * (row + 1) * p.detach())


def test_a_weighted_sum_goes_to_the_places_of_the_first_task() -> None:
    model, trunk, _, slots, x = make()
    collect_sum(sum(model.losses(x)), slots.shared(0), way=Pass())  # type: ignore[arg-type]
    rows = expected_of(model, x, trunk.layout.parameters)
    for segment, grads in enumerate(zip(*rows, strict=True)):
        if grads[0] is not None:
            close(trunk.at(0, 0, segment), torch.stack(grads).sum(0))  # type: ignore[arg-type]
    assert not any(map(any, trunk.filled[1:]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gram_of_gradients_that_are_not_stored(dtype: torch.dtype) -> None:
    model, trunk, _, slots, x = make(dtype)
    slots.collect(model.losses(x), 0, "batched", Pass())
    gram = collect_gram(torch.stack(model.losses(x)), trunk.layout.parameters)
    stored = trunk.gram()[0]
    size = stored.diagonal(dim1=1, dim2=2).amax(1)[:, None, None]
    assert ((gram - stored).abs() <= 1e-6 * size).all()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("how", WAYS)
def test_no_more_memory_than_the_gradients_of_one_parameter(how: str) -> None:
    layers = [nn.Linear(64, 64, bias=False) for _ in range(12)]
    flat = table_of([layer.weight for layer in layers], num_tasks=4)
    slots = TaskSlots([flat], [[None] * len(layers)], 4)
    x = torch.randn(1, 64)

    def losses() -> list[Tensor]:
        return list(nn.Sequential(*layers)(x)[0, :4].unbind())

    slots.collect(losses(), 0, how, Pass())
    one = layers[0].weight.numel() * 4
    allowed = {"sequential": 1, "batched": 4}[how] * one
    graph = losses()
    assert peak_bytes(lambda: slots.collect(graph, 0, how, Pass())) <= 2 * allowed + 16384
