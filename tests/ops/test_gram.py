from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mt2o_ext.ops import cut_chunks
from support.backends import Backend
from support.ops.gram_oracle import allowed, diagonal_of, exact, relative_error, run
from support.samplers import FLOATS, HALVES, LAYOUTS, Layout, Sampler, assert_within, same_bits

NUM_ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17)
EACH_DTYPE = pytest.mark.parametrize("dtype", FLOATS + HALVES, ids=str)
EACH_LAYOUT = pytest.mark.parametrize("numels", LAYOUTS, ids=str)
CENTRED = pytest.mark.parametrize("centre", [False, True], ids=["plain", "centred"])


def check(
    backend: Backend, sampler: Sampler, num_rows: int, dtype: torch.dtype, *, centre: bool, batch: int = 2
) -> None:
    """All pairs, cross products, and the diagonals of both."""
    layout = sampler.layout
    rows = sampler.rows(batch, num_rows, dtype=dtype)
    for others in (None, sampler.rows(batch, num_rows, dtype=dtype)):
        expected, _ = exact(rows, layout, others, centre=centre)
        limit = allowed(rows, layout, others, centre=centre)
        gram = run(backend, rows, layout, others, centre=centre)
        assert_within(gram, expected, limit)
        assert others is not None or same_bits(gram, gram.mT)
        squares = run(backend, rows, layout, others, centre=centre, diagonal=True)
        assert_within(squares, diagonal_of(expected), diagonal_of(limit.expand_as(expected)))


@CENTRED
@EACH_DTYPE
@EACH_LAYOUT
def test_equals_the_oracle(backend: Backend, numels: tuple[int, ...], dtype: torch.dtype, centre: bool) -> None:
    sampler = Sampler(Layout(numels))
    for num_rows in NUM_ROWS if sum(numels) <= 100 else (1, 2, 3, 5, 17):
        check(backend, sampler, num_rows, dtype, centre=centre)


@given(numels=st.lists(st.integers(0, 5000), max_size=6), num_rows=st.integers(1, 9), centre=st.booleans())
@settings(max_examples=30, deadline=None)
def test_any_layout(backend: Backend, numels: list[int], num_rows: int, centre: bool) -> None:
    check(backend, Sampler(Layout(numels)), num_rows, torch.float32, centre=centre, batch=1)


@pytest.mark.parametrize("num_rows", [63, 64, 256])
def test_as_many_rows_as_there_may_be(backend: Backend, num_rows: int) -> None:
    check(backend, Sampler(Layout((300, 3))), num_rows, torch.float32, centre=False, batch=1)


@CENTRED
@pytest.mark.parametrize("num_rows", [2, 5, 16])
def test_long_sums_are_as_good_as_single_products(backend: Backend, num_rows: int, centre: bool) -> None:
    """A float32 sum over so many columns would be wrong by 1e-4, and by 1e-6 in sixteen parts."""
    layout = Layout((300_000,))
    generator = torch.Generator().manual_seed(1)
    rows, others = (torch.randn(1, num_rows, layout.row, generator=generator) for _ in range(2))
    for y in (None, others):
        gram = run(backend, rows, layout, y, centre=centre)
        assert relative_error(gram, rows, layout, y, centre=centre) <= 1e-7


def test_differences_far_smaller_than_the_rows(backend: Backend) -> None:
    """Rows that agree but for 1e-6: a mean in float32 would leave nothing of their differences."""
    layout = Layout((20_000,))
    sampler = Sampler(layout)
    for num_rows in (2, 3, 5, 16):
        common = sampler.rows(1, 1).expand(1, num_rows, -1)
        rows, others = (common * (1 + 1e-6 * sampler.normal(1, num_rows, layout.row)).float() for _ in range(2))
        for y in (None, others):
            gram = run(backend, rows, layout, y, centre=True)
            assert relative_error(gram, rows, layout, y, centre=True) <= 1e-6
        nothing = torch.zeros(1, 1, num_rows, num_rows).double()
        assert torch.equal(run(backend, common, layout, centre=True), nothing)
        assert torch.equal(run(backend, common, layout, rows, centre=True), nothing)


@pytest.mark.parametrize("num_rows", [3, 5, 8])
def test_cross_products_of_rows_with_themselves_are_all_pairs(backend: Backend, num_rows: int) -> None:
    sampler = Sampler(Layout((5000, 17)))
    rows = sampler.rows(2, num_rows)
    pairs, cross = (run(backend, rows, sampler.layout, others) for others in (None, rows))
    swapped = run(backend, rows.flip(1), sampler.layout, rows)
    if backend.name != "reference":  # a pair is summed in the order of its columns, whatever else there is
        assert same_bits(pairs, cross)
        assert same_bits(swapped, cross.flip(-2))
    assert_within(cross, pairs, allowed(rows, sampler.layout))


def test_pieces_of_chunks_have_the_sums_of_chunks(backend: Backend) -> None:
    """On a GPU small models are multiplied by pieces, of which there are more."""
    whole = Layout((20_000, 1, 300, 2049))
    sampler = Sampler(whole)
    cut = Layout(whole.numels)
    cut.chunks = torch.tensor(cut_chunks(whole.chunks.tolist(), 1024))
    assert len(cut.chunks) > len(whole.chunks)
    for num_rows in (2, 3, 5, 16):
        rows = sampler.rows(2, num_rows)
        assert_within(run(backend, rows, cut), exact(rows, whole)[0], allowed(rows, whole))


def test_scratch_is_used_again(backend: Backend) -> None:
    """What an earlier call left in `out` and `partials` does not matter."""
    layout = Layout((5000, 17))
    sampler = Sampler(layout)
    out = torch.empty(1, 2, 4, 4, dtype=torch.float64)
    partials = torch.empty(1, len(layout.chunks), 10, dtype=torch.float64)
    for _ in range(3):
        rows = sampler.rows(1, 4)
        backend.gram_(out, partials, rows, None, layout.chunks, centre=False, diagonal=False)
        assert same_bits(out, run(backend, rows, layout))


def test_a_segment_without_columns_has_a_gram_of_zero(backend: Backend) -> None:
    sampler = Sampler(Layout((3, 0, 40)))
    for others in (None, sampler.rows(2, 5)):
        gram = run(backend, sampler.rows(2, 5), sampler.layout, others)
        assert torch.equal(gram[:, 1], torch.zeros(2, 5, 5).double())
        assert bool((diagonal_of(gram[:, [0, 2]]) != 0).all())


def test_the_rows_are_only_read(backend: Backend) -> None:
    """Also where they are out of range, and are scaled."""
    sampler = Sampler(Layout((3000, 17)))
    tensors: list[Tensor] = [sampler.rows(1, 6, scale=1e-30), sampler.rows(1, 6, scale=1e30)]
    before = [tensor.clone() for tensor in tensors]
    for centre in (False, True):
        run(backend, tensors[0], sampler.layout, tensors[1], centre=centre)
        run(backend, tensors[0], sampler.layout, centre=centre)
    assert all(same_bits(old, new) for old, new in zip(before, tensors, strict=True))
