"""GradientTable: gradients are taken as they are, and read where they lie or from one buffer, with the same results."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mt2o_ext.gradients.layout import Layout
from mt2o_ext.gradients.table import GradientTable, Source

SHAPES = [(3, 5), (), (0,), (17,), (2, 3, 4, 5)]


def make(num_rows: int = 3, num_tasks: int = 1, *, stacked: bool = False) -> tuple[list[nn.Parameter], GradientTable]:
    lead = (num_rows,) if stacked else ()
    parameters = [nn.Parameter(torch.randn((*lead, *shape))) for shape in SHAPES]
    return parameters, GradientTable(Layout(parameters, num_rows, stacked=stacked), num_tasks)


def fill(table: GradientTable, parameters: list[nn.Parameter], seed: int = 0) -> None:
    """Gradients of all tasks and rows, but for some."""
    generator = torch.Generator().manual_seed(seed)
    for slot in range(len(table.tensors)):
        for segment, p in enumerate(parameters):
            if (slot + segment) % 4 != 1:
                row, task = divmod(slot, table.num_tasks)
                table.put(row, task, segment, torch.randn(p.shape, generator=generator))


def test_grad_is_taken_as_it_is_added_and_forgotten() -> None:
    parameters, table = make()
    given = [torch.ones_like(p) for p in parameters[1:]]
    for p, grad in zip(parameters[1:], given, strict=True):
        p.grad = grad
    table.take(1)
    assert all(p.grad is None for p in parameters)
    assert all(table.at(1, 0, segment) is grad for segment, grad in enumerate(given, start=1))
    parameters[0].grad, parameters[3].grad = torch.ones(3, 5), torch.ones(17)
    table.take(1)
    assert [t.unique().tolist() for t in table.tensors[1] if t is not None] == [[1.0], [1.0], [], [2.0], [1.0]]
    assert table.filled == [[False] * 5, [True] * 5, [False] * 5]
    active = table.active()
    assert active is not None and active.tolist() == table.filled
    assert table.rows_with_gradients() == [False, True, False] and table.reached() == [True] * 5
    table.forget(0)
    assert table.filled[1] == [True] * 5
    table.forget()
    assert table.filled == [[False] * 5] * 3


def test_grad_that_is_kept_is_not_copied_and_counts_alone() -> None:
    parameters, table = make(1)
    for _ in range(2):
        parameters[3].grad = torch.full((17,), 5.0)
        table.take(keep=True)
        assert table.at(0, 0, 3) is parameters[3].grad
    assert table.filled == [[False, False, False, True, False]]


def test_what_is_left_of_an_earlier_gradient_does_not_count() -> None:
    for flat in (False, True):
        parameters, table = make()
        found = torch.zeros(3)
        parameters[0].grad = torch.full((3, 5), torch.nan)
        table.take(2)
        if flat:
            table.flat()
        table.find_nonfinite(found)
        assert found.tolist() == [0, 0, 1]
        table.forget()
        parameters[3].grad = torch.ones(17)
        table.take(2)
        if flat:
            table.flat()
        table.find_nonfinite(found.zero_())
        assert found.tolist() == [0, 0, 0]


def test_a_gradient_that_is_not_dense_takes_nothing() -> None:
    parameters, table = make()
    parameters[3].grad = torch.ones(17)
    parameters[0].grad = torch.ones(3, 5).to_sparse()
    with pytest.raises(TypeError, match="sparse=False"):
        table.take()
    assert not any(map(any, table.filled)) and parameters[3].grad is not None


def results(table: GradientTable, source: Source) -> list[Tensor]:
    """All that kernels make of the gradients."""
    table._source = source
    weights = torch.rand(table.layout.num_rows, table.num_tasks, dtype=torch.float64)
    out = torch.zeros(table.layout.num_rows, table.layout.width)
    table.combine(out, weights.fill_(0.75))
    found = torch.zeros(table.layout.num_rows)
    table.find_nonfinite(found)
    return [out, found, table.gram().clone(), table.gram(diagonal=True).clone()]


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("num_tasks", [1, 3])
def test_kernels_give_the_same_bits_from_addresses_and_from_the_buffer(num_tasks: int, stacked: bool) -> None:
    shapes = [(4, 4), (16,), (2, 8)]  # slices of a bank are aligned
    lead = (2,) if stacked else ()
    parameters = [nn.Parameter(torch.randn(*lead, *shape)) for shape in shapes]
    table = GradientTable(Layout(parameters, 2, stacked=stacked), num_tasks)
    fill(table, parameters)
    source = table.source()
    assert source.addresses is not None and source.addresses.shape == (2, num_tasks, 3)
    by_address = results(table, source)
    assert all(map(torch.equal, by_address, results(table, Source(table.flat(), None))))


@pytest.mark.parametrize("stacked", [False, True])
def test_gradients_in_other_places_are_copied(stacked: bool) -> None:
    """Views at odd places, other strides, other dtypes, sparse ones; slices of a bank that are not aligned."""
    _, table = make(2, stacked=stacked)
    lead = (2,) if stacked else ()
    odd = torch.randn(*lead, 18)[..., 1:]
    turned = torch.randn(*lead, 5, 3).mT
    double = torch.randn(*lead, 2, 3, 4, 5, dtype=torch.float64)
    for segment, grad in ((3, odd), (0, turned), (4, double)):
        table.put(0, 0, segment, grad)
    if not stacked:
        table.put(1, 0, 0, turned.to_sparse())
    expected = torch.zeros(2, 1, table.layout.width)
    for segment, grad in ((3, odd), (0, turned), (4, double)):
        rows = table.layout.rows_of(expected[:, 0], segment)
        (rows if stacked else rows[0]).copy_(grad)
    if not stacked:
        table.layout.rows_of(expected[:, 0], 0)[1].copy_(turned)
    out = torch.zeros(2, table.layout.width)
    table.combine(out, torch.ones(2, 1, dtype=torch.float64))
    assert torch.equal(out, expected[:, 0])


def test_the_buffer_has_zeros_where_there_is_no_gradient() -> None:
    parameters, table = make(2, 3)
    fill(table, parameters)
    assert table.flat().ne(0).any()
    table.forget()
    assert not table.flat().any()
    assert table.fill([[True] * 5] * 6) is table.flat() and all(map(all, table.filled))


def test_several_tasks_of_several_rows() -> None:
    """A parameter is active where any task has a gradient."""
    parameters = [nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(5))]
    table = GradientTable(Layout(parameters, 2), 3)
    expected = torch.zeros(2, 3, table.layout.width)
    for row, task, segment in ((0, 2, 0), (1, 0, 0), (1, 1, 1)):
        p, first = parameters[segment], table.layout.offsets[segment]
        p.grad = torch.randn_like(p)
        expected[row, task, first : first + p.numel()] = p.grad.flatten()
        table.take(row, task)
    active = table.active()
    assert active is not None and active.tolist() == [[True, False], [True, True]]
    assert torch.equal(table.flat(), expected)
