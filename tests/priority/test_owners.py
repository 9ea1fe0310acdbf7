"""Owners of channels (Eq. 7 and 10), degenerate cases, invariances; channels of a weight as they lie in memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mt2o_ext.ops import PriorityRecord
from mt2o_ext.priority import Connection, TaskNorm, channel_owners
from mt2o_ext.priority.owners import TIE, LayerSums
from support.priority_strengths import channel_of_elements, filters, randomised

CPU = torch.device("cpu")


def owners(strengths: list[list[float]] | Tensor, *sizes: int, faithful: bool = True) -> list[int]:
    values = torch.as_tensor(strengths, dtype=torch.float64)
    result = channel_owners(values, LayerSums(sizes or (values.shape[1],), CPU), faithful=faithful)
    return result.tolist()


def test_shares_not_strengths_decide() -> None:
    """Task 1 is stronger everywhere, but its strength is spread."""
    strengths = [[9.0, 1.0, 1.0], [100.0, 90.0, 90.0]]
    assert owners(strengths) == owners(strengths, faithful=False) == [0, 1, 1]


def test_layers_are_normalised_by_themselves() -> None:
    strengths = [[2.0, 1.0, 100.0, 1.0], [1.0, 1.0, 1.0, 1.0]]
    assert owners(strengths, 2, 2) == [0, 1, 0, 1]


@given(sizes=st.lists(st.integers(2, 9), min_size=1, max_size=4), tasks=st.integers(1, 4), seed=st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_equals_the_formulas(sizes: list[int], tasks: int, seed: int) -> None:
    strengths = torch.rand(tasks, sum(sizes), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    expected: list[int] = []
    for part in strengths.split(sizes, dim=1):
        top = [max(range(tasks), key=lambda i, p=p: part[i, p] / part[i].sum()) for p in range(part.shape[1])]
        expected += top if len(set(top)) > 1 else [-1] * len(top)
    assert owners(strengths, *sizes) == expected
    general = owners(strengths, *sizes, faithful=False)
    assert all(a == b or b == -1 for a, b in zip(general, expected, strict=True))


@pytest.mark.parametrize("faithful", [True, False])
def test_permutations_of_channels_and_tasks(faithful: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    strengths = torch.rand(3, 12, dtype=torch.float64, generator=generator)
    before = torch.tensor(owners(strengths, faithful=faithful))
    channels, tasks = torch.randperm(12, generator=generator), torch.randperm(3, generator=generator)
    assert owners(strengths[:, channels], faithful=faithful) == before[channels].tolist()
    renamed = torch.tensor(owners(strengths[tasks], faithful=faithful))
    assert tasks[renamed].tolist() == before.tolist()


def test_norms_that_are_all_the_same_give_no_owner() -> None:
    strengths = torch.rand(1, 7, dtype=torch.float64).expand(3, 7)
    for faithful in (True, False):
        assert owners(strengths, faithful=faithful) == [-1] * 7


def test_ties() -> None:
    """Exact ones: to the lowest task, or to nobody; near ones likewise in the general mode only."""
    strengths = torch.tensor([[0.25, 0.5, 0.25], [0.25, 0.25, 0.5]], dtype=torch.float64)
    assert owners(strengths) == [0, 0, 1]
    assert owners(strengths, faithful=False) == [-1, 0, 1]
    for distance, owner in ((0.4 * TIE, -1), (4 * TIE, 1)):
        near = strengths.clone()
        near[1, 0] *= 1 + distance
        assert owners(near) == [1, 0, 1]
        assert owners(near, faithful=False) == [owner, 0, 1]


def test_zero_strengths() -> None:
    """A filter of zeros, a task without any strength, a layer without any."""
    assert owners([[0.0, 2.0, 1.0], [0.0, 1.0, 2.0]]) == [0, 0, 1]
    assert owners([[0.0, 2.0, 1.0], [0.0, 1.0, 2.0]], faithful=False) == [-1, 0, 1]
    assert owners([[0.0, 0.0, 0.0], [1.0, 1.0, 2.0]], faithful=False) == [1, 1, 1]
    assert owners([[0.0, 0.0, 0.0], [1.0, 1.0, 2.0]]) == [-1, -1, -1], "one owner for the whole layer"
    assert owners(torch.zeros(3, 4)) == owners(torch.zeros(3, 4), faithful=False) == [-1] * 4


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_strengths_that_are_not_finite_have_no_owner(bad: float) -> None:
    """And change nothing for the other channels."""
    strengths = torch.tensor([[3.0, 1.0, 2.0, 1.0], [1.0, 2.0, 1.0, 3.0]], dtype=torch.float64)
    expected = owners(strengths[:, [0, 1, 3]])
    strengths[1, 2] = bad
    for faithful in (True, False):
        assert owners(strengths, faithful=faithful) == [*expected[:2], -1, expected[2]]


def test_one_task_owns_nothing_in_the_faithful_mode() -> None:
    assert owners(torch.ones(1, 5)) == [-1] * 5


def test_scaling_a_filter_with_its_variance_changes_no_owner() -> None:
    """W_p -> a W_p, var_p -> a^2 var_p for all tasks, eps = 0: the same function, the same owners."""
    conv = nn.Conv2d(3, 8, 3)
    norm = randomised(TaskNorm.convert(nn.BatchNorm2d(8, eps=0.0), 3))
    connection = Connection("conv", conv, norm)
    before = connection.strengths()
    with torch.no_grad():
        factors = 2.0 ** torch.arange(-4, 4)
        conv.weight *= factors[:, None, None, None]
        for one in norm.norms:
            one.running_var *= factors**2
    assert torch.equal(connection.strengths(), before)


def test_a_running_variance_of_zero() -> None:
    """eps bounds the gain; without it the channel has no owner."""
    for eps, usable in ((1e-5, True), (0.0, False)):
        norm = randomised(TaskNorm.convert(nn.BatchNorm2d(4, eps=eps), 2))
        norm.norms[1].running_var[2] = 0.0
        strengths = Connection("conv", nn.Conv2d(1, 4, 1), norm).strengths()
        assert bool(strengths.isfinite().all()) == usable
        assert (owners(strengths)[2] == -1) == (not usable)


MEMORY: dict[str, nn.Module] = {
    "convolution": nn.Conv2d(3, 6, 3),
    "channels last": nn.Conv2d(3, 6, 3).to(memory_format=torch.channels_last),
    "grouped": nn.Conv2d(4, 6, 3, groups=2),
    "transposed": nn.ConvTranspose2d(4, 6, 3),
    "transposed, channels last": nn.ConvTranspose2d(4, 6, 3).to(memory_format=torch.channels_last),
    "transposed and grouped": nn.ConvTranspose2d(4, 6, 2, groups=2),
    "transposed, grouped, channels last": nn.ConvTranspose2d(4, 6, 2, groups=2).to(memory_format=torch.channels_last),
    "transposed, one output": nn.ConvTranspose1d(4, 1, 2),
    "linear": nn.Linear(5, 7),
    "one row": nn.Linear(5, 1),
    "three dimensions": nn.Conv3d(2, 4, 2),
}


@pytest.mark.parametrize("name", MEMORY)
def test_channels_of_a_weight_in_memory(name: str) -> None:
    """Every element belongs to the output channel whose filter it is in."""
    layer = MEMORY[name]
    weight: Tensor = layer.weight.detach()
    memory = torch.as_strided(weight, (weight.numel(),), (1,))
    with torch.no_grad():
        memory.copy_(torch.arange(weight.numel()))
    connection = Connection(name, layer, None, strength=lambda _: torch.ones(2, len(filters(layer))))
    records = [
        PriorityRecord(0, part.first_channel, part.channels, part.offset, part.length, part.runs)
        for part in connection.weight_ranges(weight.stride())
    ]
    channel = channel_of_elements(records, weight.numel())
    for p, elements in enumerate(filters(layer)):
        assert channel[elements.flatten().long()].unique().tolist() == [p]


def test_rows_of_attention_in_memory() -> None:
    attention = nn.MultiheadAttention(8, 4)
    connection = Connection("attention", attention, None, before=True, strength=lambda _: torch.ones(2, 4))
    (part,) = connection.weight_ranges(attention.in_proj_weight.stride())
    record = PriorityRecord(0, *(part.first_channel, part.channels, part.offset, part.length, part.runs))
    expected = torch.arange(4).repeat_interleave(2).repeat(3)
    assert torch.equal(channel_of_elements([record], 3 * 8 * 8).reshape(24, 8), expected[:, None].expand(24, 8))
    bias = connection.bias_range()
    record = PriorityRecord(0, *(bias.first_channel, bias.channels, bias.offset, bias.length, bias.runs))
    assert torch.equal(channel_of_elements([record], 24), expected)
