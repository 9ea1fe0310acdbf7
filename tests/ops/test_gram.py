from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samplers import FLOATS, HALVES, LAYOUTS, Backend, Layout, Sampler, assert_within, rounding, same_bits, unit
from torch import Tensor

from mt2o_ext.ops import reference

NUM_ROWS = (1, 2, 3, 4, 5, 6, 8, 16, 17)
TILE, LANES = 1024, 16  # float32 sums go over a tile, each lane by itself


def run(backend: Backend, rows: Tensor, layout: Layout, *, centre: bool) -> Tensor:
    batch, num_rows, _ = rows.shape
    out = torch.full((batch, len(layout.numels), num_rows, num_rows), torch.nan, dtype=torch.float64)
    partials = torch.full((batch, len(layout.chunks), num_rows * (num_rows + 1) // 2), torch.nan, dtype=torch.float64)
    backend.gram_(out, partials, rows, layout.chunks, centre=centre)
    return out


def oracle(rows: Tensor, layout: Layout, *, centre: bool) -> tuple[Tensor, Tensor]:
    """The Gram matrices in float64, and those of the absolute values: the size of the sums."""
    values = rows.double()  # not written to
    if centre:
        values = values - values[:, :1]  # exact in float64, where the rows are float32
        values = values - values.mean(dim=1, keepdim=True)
    batch, num_rows, _ = rows.shape
    grams = [torch.zeros(batch, len(layout.numels), num_rows, num_rows, dtype=torch.float64) for _ in range(2)]
    for segment, begin, end in layout.chunks.tolist():
        of_chunk = values[..., begin:end]
        for gram, factor in zip(grams, (of_chunk, of_chunk.abs()), strict=True):
            gram[:, segment] += factor @ factor.mT
    return grams[0], grams[1]


def depth(num_rows: int, dtype: torch.dtype, *, centre: bool) -> int:
    """Roundings on the way of one product into the sum; centring costs one per row, and three, for both factors."""
    lanes = LANES if dtype != torch.float64 else LANES // 2
    return TILE // lanes + lanes + (2 * (num_rows + 3) if centre else 0)


def check(
    backend: Backend, sampler: Sampler, num_rows: int, dtype: torch.dtype, *, centre: bool, batch: int = 2
) -> None:
    rows = sampler.rows(batch, num_rows, dtype=dtype)
    expected, size = oracle(rows, sampler.layout, centre=centre)
    if centre:  # what centring loses has the size of the differences, not of the centred rows
        size = size + oracle(rows - rows[:, :1], sampler.layout, centre=False)[1]
        size = size.amax(dim=(-2, -1), keepdim=True)
    actual = run(backend, rows, sampler.layout, centre=centre)
    across = len(sampler.layout.chunks) * 16 * rounding(torch.float64)  # tiles and chunks are added in float64
    assert_within(actual, expected, (depth(num_rows, dtype, centre=centre) * unit(dtype) + across) * size)
    assert same_bits(actual, actual.mT)


@pytest.mark.parametrize("centre", [False, True], ids=["plain", "centred"])
@pytest.mark.parametrize("dtype", FLOATS + HALVES, ids=str)
@pytest.mark.parametrize("numels", LAYOUTS, ids=str)
def test_equals_the_oracle(backend: Backend, numels: tuple[int, ...], dtype: torch.dtype, centre: bool) -> None:
    sampler = Sampler(Layout(numels))
    for num_rows in NUM_ROWS if sum(numels) <= 100 else (1, 2, 3, 5, 17):
        check(backend, sampler, num_rows, dtype, centre=centre)


@given(numels=st.lists(st.integers(0, 5000), max_size=6), num_rows=st.integers(1, 9), centre=st.booleans())
@settings(max_examples=30, deadline=None)
def test_any_layout(backend: Backend, numels: list[int], num_rows: int, centre: bool) -> None:
    check(backend, Sampler(Layout(numels)), num_rows, torch.float32, centre=centre, batch=1)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    size = torch.diagonal(expected, dim1=-2, dim2=-1).sqrt()
    return float(((actual - expected).abs() / (size[..., :, None] * size[..., None, :])).max())


@pytest.mark.parametrize("centre", [False, True], ids=["plain", "centred"])
@pytest.mark.parametrize("num_rows", [2, 5, 16])
def test_long_sums_are_as_good_as_single_products(backend: Backend, num_rows: int, centre: bool) -> None:
    """A float32 sum over a million columns would be wrong by up to 1e-3."""
    layout = Layout((1_000_000,))
    rows = torch.randn(1, num_rows, layout.row, generator=torch.Generator().manual_seed(1))
    expected, _ = oracle(rows, layout, centre=centre)
    assert relative_error(run(backend, rows, layout, centre=centre), expected) <= 1e-7


def test_differences_far_smaller_than_the_rows(backend: Backend) -> None:
    """Rows that agree but for 1e-6: a mean in float32 would leave nothing of their differences."""
    layout = Layout((20_000,))
    sampler = Sampler(layout)
    for num_rows in (2, 3, 5, 16):
        common = sampler.rows(1, 1).expand(1, num_rows, -1)
        rows = common * (1 + 1e-6 * sampler.normal(1, num_rows, layout.row)).float()
        expected, _ = oracle(rows, layout, centre=True)
        assert relative_error(run(backend, rows, layout, centre=True), expected) <= 1e-6
        assert torch.equal(run(backend, common, layout, centre=True), torch.zeros(1, 1, num_rows, num_rows).double())


def test_scratch_is_used_again(backend: Backend) -> None:
    """What an earlier call left in `out` and `partials` does not matter."""
    layout = Layout((5000, 17))
    sampler = Sampler(layout)
    out = torch.empty(1, 2, 4, 4, dtype=torch.float64)
    partials = torch.empty(1, len(layout.chunks), 10, dtype=torch.float64)
    for _ in range(3):
        rows = sampler.rows(1, 4)
        backend.gram_(out, partials, rows, layout.chunks, centre=False)
        assert same_bits(out, run(backend, rows, layout, centre=False))


def test_a_segment_without_columns_has_a_gram_of_zero(backend: Backend) -> None:
    sampler = Sampler(Layout((3, 0, 40)))
    gram = run(backend, sampler.rows(2, 5), sampler.layout, centre=False)
    assert torch.equal(gram[:, 1], torch.zeros(2, 5, 5).double())
    assert bool((torch.diagonal(gram[:, [0, 2]], dim1=-2, dim2=-1) > 0).all())


def test_squares_beyond_the_range_of_float32_of_few_rows(backend: Backend) -> None:
    """Products of up to three rows are summed in float64, so gradients of any size have a Gram matrix."""
    sampler = Sampler(Layout((100,)))
    for scale in (1e-30, 1e30):
        rows = sampler.rows(1, 3, scale=scale)
        expected = torch.full((1, 1, 3, 3), torch.nan, dtype=torch.float64)
        reference.gram_(expected, torch.empty(0), rows.double(), sampler.layout.chunks)
        assert relative_error(run(backend, rows, sampler.layout, centre=False), expected) <= 1e-12
