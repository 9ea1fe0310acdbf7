"""Random numbers by key, stream and ids."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch

from mt2o_ext.weighting import Draw, WeightingContext
from mt2o_ext.weighting.draw import meeting_orders, shared_order

MASK = 2**64 - 1


def key(number: int) -> Draw:
    return Draw(torch.tensor(number, dtype=torch.int64))


def mixed(number: int) -> int:
    """SplitMix64's finalizer on Python's integers."""
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & MASK
    return number ^ (number >> 31)


def expected(number: int, stream: int, *ids: int) -> int:
    golden = 0x9E3779B97F4A7C15
    bits = mixed((number + golden * (stream + 1)) & MASK)
    for each in ids:
        bits = mixed(((each + 1) * golden + bits) & MASK)
    return bits


@pytest.mark.parametrize("number", [0, 1, -1, 2**62 + 12345, -(2**63)])
@pytest.mark.parametrize("stream", [0, 1, 7])
def test_bits_are_the_hash_of_key_stream_and_ids(number, stream):
    ids = torch.tensor([[0, 1, 2**31]]), torch.tensor([[0], [5]])
    bits = key(number).bits(stream, *ids)
    for i, j in itertools.product(range(2), range(3)):
        want = expected(number & MASK, stream, int(ids[0][0, j]), int(ids[1][i, 0]))
        assert int(bits[i, j]) & MASK == want


def test_uniform_numbers_are_uniform_and_independent():
    ids = torch.arange(200_000)
    numbers = torch.stack([key(3).uniform(0, ids), key(3).uniform(1, ids), key(4).uniform(0, ids)])
    assert (numbers > 0).all() and (numbers < 1).all()
    # Four standard deviations of a mean, of a variance, of a correlation.
    assert (numbers.mean(1) - 0.5).abs().max() < 4 * (1 / 12 / 200_000) ** 0.5
    assert (numbers.var(1) - 1 / 12).abs().max() < 4 * (1 / 180 / 200_000) ** 0.5
    beside = torch.cat([numbers[:, 1:], numbers[:, :-1]])
    assert (torch.corrcoef(beside) - torch.eye(6)).abs().max() < 4 * 200_000**-0.5
    assert len(set(key(3).bits(0, ids).tolist())) == 200_000


def test_normal_and_exponential_numbers_have_their_moments():
    ids = torch.arange(200_000)
    numbers = key(5).normal(0, ids)
    for power, moment in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        powered = numbers**power
        assert abs(float(powered.mean()) - moment) < 4 * float(powered.std()) * 200_000**-0.5
    waits = key(5).exponential(9, ids)
    assert abs(float(waits.mean()) - 1) < 4 * 200_000**-0.5
    assert abs(float(waits.var()) - 1) < 4 * 8**0.5 * 200_000**-0.5


def test_a_generator_gives_one_key_and_advances_by_it():
    one, other = (torch.Generator().manual_seed(11) for _ in range(2))
    first = Draw.new(one)
    assert torch.equal(first.key, Draw.new(other).key)
    assert torch.equal(one.get_state(), other.get_state())
    assert not torch.equal(first.key, Draw.new(one).key)


def test_numbers_do_not_depend_on_what_else_was_drawn():
    draw = key(8)
    before = draw.uniform(2, torch.arange(5))
    draw.normal(0, torch.arange(100))
    assert torch.equal(draw.uniform(2, torch.arange(5)), before)
    assert torch.equal(draw.uniform(2, torch.arange(3, 5)), before[3:])


@pytest.mark.parametrize("bad", [1, torch.tensor(1.0), torch.tensor([1])])
def test_a_key_that_is_no_integer_tensor_is_refused(bad):
    with pytest.raises(TypeError, match="int64"):
        Draw(bad)


def context(number: int, num_rows: int, num_tasks: int, tasks: torch.Tensor | None = None) -> WeightingContext:
    preferences = torch.full((num_rows, num_tasks), 1 / num_tasks, dtype=torch.float64)
    return WeightingContext(preferences=preferences, draw=key(number), tasks=tasks)


def test_all_orders_are_equally_frequent():
    rows = 60_000
    orders = [tuple(order) for order in shared_order(context(2, rows, 3)).tolist()]
    counts = Counter(orders)
    assert len(counts) == 6
    # Chi squared with five degrees of freedom is above 20.5 once in a thousand.
    assert sum((count - rows / 6) ** 2 / (rows / 6) for count in counts.values()) < 20.5
    meetings = meeting_orders(context(2, rows, 3))
    for row in range(3):
        counts = Counter(map(tuple, meetings[:, row].tolist()))
        assert sum((count - rows / 6) ** 2 / (rows / 6) for count in counts.values()) < 20.5


def test_orders_follow_the_names_of_the_tasks():
    names = torch.tensor([3, 0, 2, 1])
    plain, renamed = meeting_orders(context(5, 2, 4)), meeting_orders(context(5, 2, 4, names))
    assert torch.equal(names[renamed], plain[:, names])
    plain, renamed = shared_order(context(5, 2, 4)), shared_order(context(5, 2, 4, names))
    assert torch.equal(names[renamed], plain)
