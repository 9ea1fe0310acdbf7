"""Inner products of rows of any size: squares beyond the range of float32, zeros, infinities and NaN."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from support.backends import Backend
from support.ops.gram_oracle import diagonal_of, exact, relative_error, run
from support.samplers import FLOATS, HALVES, Layout, Sampler, same_bits

NUM_ROWS = (2, 3, 4, 5, 8, 17)
LAYOUT = Layout((100, 5000, 33))  # tiles with and without tails
BAD = (torch.nan, torch.inf, -torch.inf)
# Products of up to three rows are exact in float64; of more, a tile of float32 sums has 64 roundings in each lane.
TOLERANCE = {True: 1e-12, False: 1e-6}


def check(backend: Backend, rows: Tensor, others: Tensor | None = None, *, centre: bool = False) -> None:
    tolerance = TOLERANCE[rows.shape[1] <= 3 and not centre]
    assert relative_error(run(backend, rows, LAYOUT, others, centre=centre), rows, LAYOUT, others, centre=centre) <= (
        tolerance
    )


@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e-20, 1e-17, 1e17, 1e20, 1e30, 1e37])
@pytest.mark.parametrize("num_rows", NUM_ROWS)
def test_squares_beyond_the_range_of_float32(backend: Backend, num_rows: int, scale: float) -> None:
    sampler = Sampler(LAYOUT)
    rows, usual = sampler.rows(2, num_rows, scale=scale), sampler.rows(2, num_rows)
    check(backend, rows)
    check(backend, rows, usual)
    check(backend, usual, rows)
    check(backend, rows, rows.flip(1))
    if scale < 1e37:  # differences are twice as large
        check(backend, rows, centre=True)


def test_subnormal_rows(backend: Backend) -> None:
    """A few units of 2^-149: their products with one another are 2^-298."""
    sampler = Sampler(LAYOUT)
    for num_rows in NUM_ROWS:
        rows = torch.ldexp((3 * sampler.rows(1, num_rows)).round(), torch.tensor(-149))
        assert float(rows.nan_to_num().abs().max()) < 1e-43
        check(backend, rows)
        check(backend, rows, sampler.rows(1, num_rows, scale=1e30))


@given(
    exponents=st.lists(st.integers(-36, 36), min_size=2, max_size=9),
    of_columns=st.lists(st.integers(-36, 36), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_mixed_scales(backend: Backend, exponents: list[int], of_columns: list[int], seed: int) -> None:
    """A scale for each row, and stretches of a row of quite another: what is small adds nothing, and does no harm."""
    sampler = Sampler(LAYOUT, seed)
    rows, others = (sampler.rows(1, len(exponents)).double() for _ in range(2))
    scales = torch.tensor(exponents).double()[:, None].expand(-1, LAYOUT.row).clone()
    for index, exponent in enumerate(of_columns):
        scales[index % len(exponents), 700 * index : 700 * index + 300 * (index + 1)] = exponent
    check(backend, (rows * 10**scales).float())
    check(backend, (rows * 10**scales).float(), (others * 10 ** scales.flip(0)).float())


@pytest.mark.parametrize("num_rows", NUM_ROWS)
def test_rows_of_zeros(backend: Backend, num_rows: int) -> None:
    """Products with zeros are zero, next to rows of any size; and zero in some tiles is not zero in all."""
    sampler = Sampler(LAYOUT)
    for scale in (1e-30, 1.0, 1e30):
        rows = sampler.rows(1, num_rows, scale=scale)
        rows[:, 0] = 0.0
        rows[:, 1, 1200:] = 0.0
        for others in (None, rows.flip(1)):
            gram = run(backend, rows, LAYOUT, others)
            expected, _ = exact(rows, LAYOUT, others)
            assert torch.equal(gram[:, :, 0], torch.zeros_like(gram[:, :, 0]))
            lengths = diagonal_of(exact(rows, LAYOUT)[0]).sqrt()
            size = lengths[..., :, None] * (lengths if others is None else lengths.flip(-1))[..., None, :]
            assert bool(((gram - expected).abs() <= TOLERANCE[num_rows <= 3] * size).all())


def test_diagonals_of_any_size(backend: Backend) -> None:
    """Squares are summed in float64 for any number of rows."""
    sampler = Sampler(LAYOUT)
    for num_rows in NUM_ROWS:
        rows = sampler.rows(1, num_rows).double()
        rows = (rows * 10 ** torch.linspace(-36, 36, num_rows)[:, None]).float()
        for others in (None, rows.flip(1).contiguous()):
            squares = run(backend, rows, LAYOUT, others, diagonal=True)
            expected, size = map(diagonal_of, exact(rows, LAYOUT, others))
            assert bool(((squares - expected).abs() <= 1e-12 * size).all())


@pytest.mark.parametrize("dtype", FLOATS + HALVES, ids=str)
@pytest.mark.parametrize("bad", BAD)
def test_what_is_not_finite_shows_in_its_row_and_no_other(backend: Backend, dtype: torch.dtype, bad: float) -> None:
    sampler = Sampler(LAYOUT)
    for num_rows in NUM_ROWS:
        rows, others = (sampler.rows(1, num_rows, dtype=dtype) for _ in range(2))
        good = [run(backend, rows, LAYOUT, y) for y in (None, others)]
        row, segment = num_rows - 1, 1
        rows[0, row, 3000] = bad
        for y, before in zip((None, others), good, strict=True):
            gram = run(backend, rows, LAYOUT, y)
            hit = torch.zeros(num_rows, num_rows, dtype=torch.bool)
            hit[row] = True
            hit[:, row] |= y is None
            assert torch.equal(torch.isfinite(gram[0, segment]), ~hit)
            gram[0, segment, hit] = before[0, segment, hit]
            assert same_bits(gram, before)
        squares = run(backend, rows, LAYOUT, diagonal=True)
        assert torch.equal(torch.isfinite(squares[0, segment]), torch.arange(num_rows) != row)
        assert bool(squares[0, segment, row] == abs(bad)) != (bad != bad)  # squares of infinities are infinite, not NaN


def test_what_is_not_finite_beside_rows_out_of_range(backend: Backend) -> None:
    """The same tile holds a NaN, an infinity, and rows that are scaled."""
    sampler = Sampler(LAYOUT)
    rows = sampler.rows(1, 8).double() * 10 ** torch.tensor([-30.0, 0, 30, -30, 0, 30, -36, 36])[:, None]
    rows = rows.float()
    rows[0, 1, 200], rows[0, 5, 201] = torch.nan, torch.inf
    fine = [0, 2, 3, 4, 6, 7]
    for others in (None, rows):
        gram = run(backend, rows, LAYOUT, others)
        assert torch.isfinite(gram[0, 1]).sum() == len(fine) ** 2
        assert relative_error(gram[:, :, fine][..., fine], rows[:, fine], LAYOUT) <= TOLERANCE[False]
        assert torch.equal(torch.isnan(diagonal_of(gram)[0, 1]), torch.arange(8) == 1)
        assert torch.equal(torch.isinf(diagonal_of(gram)[0, 1]), torch.arange(8) == 5)


def test_half_precision_is_as_exact_as_float32(backend: Backend) -> None:
    """Rows of 16 bits are widened without loss: the errors are those of the sums alone."""
    layout = Layout((200_000,))
    for dtype in HALVES:
        for num_rows in (3, 8):
            rows = Sampler(layout).rows(1, num_rows, dtype=dtype)
            assert relative_error(run(backend, rows, layout), rows, layout) <= 1e-7
            gram = run(backend, rows, layout)
            if backend.name != "reference":
                assert same_bits(gram, run(backend, rows.float(), layout))
