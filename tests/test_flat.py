"""FlatParameters: where tensors lie, who shows which row, what is copied and what is not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mt2o_ext.flat import FlatParameters, dense_strides

SHAPES = [(3, 5), (), (0,), (17,), (2, 3, 4, 5)]


def make(
    dtype: torch.dtype = torch.float32, num_rows: int = 3, *, stacked: bool = False
) -> tuple[list[nn.Parameter], FlatParameters]:
    generator = torch.Generator().manual_seed(0)
    lead = (num_rows,) if stacked else ()
    parameters = [nn.Parameter(torch.randn((*lead, *shape), generator=generator).to(dtype)) for shape in SHAPES]
    return parameters, FlatParameters(parameters, num_rows, stacked=stacked)


def values(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [p.detach().clone() for p in parameters]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_parameters_become_views_of_aligned_rows(dtype: torch.dtype) -> None:
    parameters, flat = make(dtype)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert flat.theta.dtype == expected and flat.values.dtype == flat.grads.dtype == dtype
    assert (flat.values is flat.theta) == (dtype == expected)
    assert flat.theta.shape == (3, flat.row) and flat.row % 16 == 0 and all(offset % 16 == 0 for offset in flat.offsets)
    before = values(parameters)
    for row in (1, 2, 0):
        flat.activate(row)
        assert same(values(parameters), before)  # all rows start from the parameters
        for p, offset in zip(parameters, flat.offsets, strict=True):
            if p.numel() > 0:
                assert p.data_ptr() == flat.values[row, offset:].data_ptr()


def test_rows_are_apart() -> None:
    parameters, flat = make()
    for row in range(3):
        flat.activate(row)
        for p in parameters:
            p.data.fill_(row)
    for row in (2, 0, 1):
        flat.activate(row)
        assert all((p == row).all() for p in parameters)
    for segment in range(len(SHAPES)):
        rows = flat.rows_of(flat.theta, segment)
        assert rows.shape == (3, *SHAPES[segment]) and all((rows[k] == k).all() for k in range(3))


def test_stacked_parameters_show_all_rows() -> None:
    parameters, flat = make(stacked=True)
    before = values(parameters)
    for p, old in zip(parameters, before, strict=True):
        assert torch.equal(p, old)
    flat.theta.mul_(2)
    assert same(values(parameters), [2 * old for old in before])


def test_strides_without_gaps_are_kept() -> None:
    channels_last = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    p = [nn.Parameter(channels_last), nn.Parameter(torch.randn(6, 8)[:, ::2]), nn.Parameter(torch.randn(4, 3).T)]
    before = values(p)
    FlatParameters(p, 2)
    assert same(values(p), before)
    assert [one.stride() for one in p] == [channels_last.stride(), (4, 1), (1, 3)]
    assert dense_strides((1, 3), (100, 1)) == (100, 1)
    assert dense_strides((2, 3), (0, 0)) == (3, 1)


def test_replaced_parameters_are_seen_and_taken_in() -> None:
    for change in (torch.randn(3, 5), torch.randn(5, 3).T):
        parameters, flat = make()
        assert not flat.replaced(0)
        parameters[0].data = change
        assert flat.replaced(0) and not flat.moved() and flat.reshaped() is None
        flat.adopt(0)
        flat.activate(0)
        assert not flat.replaced(0) and torch.equal(parameters[0], change)
    parameters[0].data = torch.randn(4, 5)
    assert flat.reshaped() == ([3, 5], [4, 5])
    parameters[0].data = torch.randn(3, 5).double()
    assert flat.moved()
    parameters, flat = make()
    parameters[2].data = parameters[2].data.double()  # no address, no element: still another dtype
    assert flat.replaced(0) and flat.moved()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_masters_change_only_where_the_16_bit_value_did(dtype: torch.dtype) -> None:
    parameters, flat = make(dtype)
    master = flat.rows_of(flat.theta, 3)
    with torch.no_grad():
        master.mul_(1 + 2.0**-14)  # rounds to the same 16-bit values
        flat.rows_of(flat.values, 3).copy_(master)
        kept = master.clone()
        flat.mark_changed()
        flat.adopt_rounded(0)
        assert torch.equal(master, kept)
        parameters[3][2] = 9.0
    flat.adopt_rounded(0)
    expected = kept.clone()
    expected[0, 2] = 9.0
    assert torch.equal(master, expected)


def test_gradients_are_collected_added_and_forgotten() -> None:
    parameters, flat = make()
    for p in parameters[1:]:
        p.grad = torch.ones_like(p)
    flat.collect_gradients(1, detach=True)
    assert all(p.grad is None for p in parameters)
    parameters[0].grad, parameters[3].grad = torch.ones(3, 5), torch.ones(17)
    flat.collect_gradients(1, detach=True)
    grads = flat.grads.squeeze(1)
    assert [flat.rows_of(grads, i)[1].unique().tolist() for i in range(5)] == [[1.0], [1.0], [], [2.0], [1.0]]
    assert flat.filled == [[False] * 5, [True] * 5, [False] * 5] and not grads[0].any()
    active = flat.active()
    assert active is not None and active.tolist() == flat.filled
    flat.forget_gradients()
    assert not flat.any_filled()
    parameters[3].grad = torch.full((17,), 5.0)
    flat.collect_gradients(1, detach=False)
    assert parameters[3].grad is not None and flat.filled[1] == [False, False, False, True, False]
    assert (flat.rows_of(grads, 3)[1] == 5).all()


def test_what_is_left_of_an_earlier_gradient_does_not_count() -> None:
    parameters, flat = make()
    found = torch.zeros(3)
    parameters[0].grad = torch.full((3, 5), float("nan"))
    flat.collect_gradients(2, detach=True)
    flat.find_nonfinite(found)
    assert found.tolist() == [0, 0, 1]
    flat.forget_gradients()
    parameters[3].grad = torch.ones(17)
    flat.collect_gradients(2, detach=True)
    flat.find_nonfinite(found.zero_())
    assert found.tolist() == [0, 0, 0]


def test_a_gradient_that_is_not_dense_copies_nothing() -> None:
    parameters, flat = make()
    parameters[3].grad = torch.ones(17)
    parameters[0].grad = torch.ones(3, 5).to_sparse()
    with pytest.raises(TypeError, match="sparse=False"):
        flat.collect_gradients(0, detach=True)
    assert not flat.any_filled() and not flat.grads.any() and parameters[3].grad is not None


def test_centred_gram_per_tensor() -> None:
    parameters, flat = make(torch.float64)
    for row in range(3):
        flat.activate(row)
        for p in parameters:
            p.data.normal_(generator=torch.Generator().manual_seed(row))
    gram = flat.centred_gram()
    for segment in range(len(SHAPES)):
        rows = flat.rows_of(flat.theta, segment).reshape(3, flat.numels[segment])
        centred = rows - rows.mean(0)
        torch.testing.assert_close(gram[segment], centred @ centred.T)


def test_transfer_leaves_out_what_it_is_told_to() -> None:
    _, flat = make()
    flat.set_transfer([True, False, True, False, True])
    assert set(flat.transfer_chunks[:, 0].tolist()) == {0, 4}
    flat.set_transfer([True] * 5)
    assert flat.transfer_chunks is flat.chunks


def test_activation_is_seen_by_autograd() -> None:
    parameters, flat = make()
    product = (parameters[0] * parameters[0]).sum()
    flat.activate(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_gradients_of_several_tasks() -> None:
    """One row of gradients for each task of each subproblem; a tensor is active where any task has a gradient."""
    parameters = [torch.nn.Parameter(torch.randn(3, 2)), torch.nn.Parameter(torch.randn(5))]
    flat = FlatParameters(parameters, 2, num_tasks=3)
    assert flat.grads.shape == (2, 3, flat.row)
    expected = torch.zeros(2, 3, flat.row)
    for row, task, segment in ((0, 2, 0), (1, 0, 0), (1, 1, 1)):
        p, first = parameters[segment], flat.offsets[segment]
        p.grad = torch.randn_like(p)
        expected[row, task, first : first + p.numel()] = p.grad.flatten()
        flat.collect_gradients(row, task=task, detach=True)
        assert p.grad is None
    assert torch.equal(flat.grads, expected)
    active = flat.active()
    assert active is not None and active.tolist() == [[True, False], [True, True]]
    flat.forget_gradients()
    flat.clear_missing()
    assert not flat.grads.any() and not flat.any_filled()
