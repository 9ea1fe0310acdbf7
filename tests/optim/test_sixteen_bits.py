"""What is written to 16-bit parameters counts, whichever way it was written: float32 masters yield by value."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mt2o_ext import MT2OFused, WeightedFused
from mt2o_ext.base import SGD
from support.optim.priority_model import Batches, network, optimizer_of

LR = 2.0**-13  # less than half a unit of any 16-bit value near 1: only masters see a step of gradient 1

Step = Callable[[], object]


def losses_of(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [torch.stack([p.float().sum() for p in parameters]).sum() for _ in range(2)]


def one_task(p: list[nn.Parameter]) -> Step:
    optimizer = WeightedFused(p, num_tasks=1, base=SGD(), lr=LR)
    return lambda: optimizer.step(lambda: losses_of(p)[:1])


def two_tasks(p: list[nn.Parameter]) -> Step:
    optimizer = WeightedFused(p, num_tasks=2, base=SGD(), lr=LR, weighting="MGDA")
    return lambda: optimizer.step(lambda: losses_of(p))


def one_subproblem(p: list[nn.Parameter]) -> Step:
    optimizer = MT2OFused(p, num_tasks=1, num_subproblems=1, base=SGD(), lr=LR)
    return lambda: optimizer.step(lambda: losses_of(p)[:1])


def three_subproblems(p: list[nn.Parameter]) -> Step:
    optimizer = MT2OFused(p, num_tasks=2, num_subproblems=3, base=SGD(), lr=LR, transfer=None)
    return lambda: optimizer.step(lambda: losses_of(p))


def stacked(p: list[nn.Parameter]) -> Step:
    optimizer = MT2OFused(p, num_tasks=1, num_subproblems=4, base=SGD(), lr=LR, transfer=None, stacked=True)
    return lambda: optimizer.step(lambda: torch.stack([q.float().flatten(1).sum(1) for q in p]).sum(0).unsqueeze(1))


WAYS = {
    "clamp_": lambda p: [q.data.clamp_(-1, 1) for q in p],
    "copy_": lambda p: [q.data.copy_(torch.ones_like(q)) for q in p],
    "slice": lambda p: [q.data.__setitem__(slice(None), 1.0) for q in p],
    "foreach": lambda p: torch._foreach_copy_([q.data for q in p], [torch.ones_like(q) for q in p]),
    "buffer protocol": lambda p: [q.data.view(torch.int16).numpy().fill(ONE[q.dtype]) for q in p],
    "no_grad": lambda p: [q.detach().fill_(1.0) for q in p],
    "replaced": lambda p: [setattr(q, "data", torch.ones_like(q)) for q in p],
}
ONE = {dtype: int(torch.ones(1, dtype=dtype).view(torch.int16)) for dtype in (torch.bfloat16, torch.float16)}


@pytest.mark.parametrize("dtype", ONE, ids=str)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "make", [one_task, two_tasks, one_subproblem, three_subproblems, stacked], ids=lambda make: make.__name__
)
def test_a_write_counts(make: Callable[[list[nn.Parameter]], Step], way: str, dtype: torch.dtype) -> None:
    p = [nn.Parameter(torch.full(shape, 2.0, dtype=dtype)) for shape in ((4, 3), (4, 2, 5))]
    step = make(p)
    step()
    WAYS[way](p)
    step()
    for q in p:
        assert (q == 1).all(), q  # one master step is too small to be seen, the old master is far away


@pytest.mark.parametrize("way", ["clamp_", "foreach", "buffer protocol"])
def test_a_write_counts_for_connection_strength(way: str) -> None:
    model = network(dtype=torch.bfloat16)
    optimizer, p = optimizer_of(model, base=SGD(), lr=2.0**-20), list(model.parameters())
    closure = Batches(dtype=torch.bfloat16).loss(model)
    with torch.no_grad():
        for q in p:
            q.fill_(2.0)
    optimizer.step(closure)
    WAYS[way](p)
    optimizer.step(closure)
    for q in p:
        assert (q - 1).abs().max() < 0.1, q


@pytest.mark.parametrize("dtype", ONE, ids=str)
def test_masters_of_what_nobody_wrote_are_kept(dtype: torch.dtype) -> None:
    """Many steps that a 16-bit value cannot see add up, also beside a value that is written at each step."""
    p = nn.Parameter(torch.ones(10, dtype=dtype))
    step = one_task([p])
    for _ in range(2**9):
        p.data[3] = 1.0
        step()
    expected = torch.full((10,), 1 - 2.0**-4)
    expected[3] = 1.0
    assert torch.equal(p.detach().float(), expected)
