"""FlatParameters: where tensors lie, who shows which row, what is copied and what is not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mt2o_ext.gradients.layout import dense_strides
from mt2o_ext.optim.flat import FlatParameters

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
    assert flat.theta.dtype == expected and flat.values.dtype == dtype
    assert (flat.values is flat.theta) == (dtype == expected)
    assert (
        flat.theta.shape == (3, flat.width)
        and flat.width % 16 == 0
        and all(offset % 16 == 0 for offset in flat.offsets)
    )
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
