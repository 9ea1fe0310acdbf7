from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mt2o_ext.ops import reference
from support.backends import Backend
from support.samplers import FLOATS, LAYOUTS, ROWS, Layout, Sampler, assert_within, same_bits, unit, widened


def per_column(mix: Tensor, layout: Layout) -> Tensor:
    """The mix of each column: [P, K, K]."""
    return mix.expand(len(layout.segment_of), *mix.shape) if mix.dim() == 2 else mix[layout.segment_of.clamp_min(0)]


def check(backend: Backend, layout: Layout, theta: Tensor, mix: Tensor) -> Tensor:
    rows = theta.shape[0]
    actual, expected = theta.clone(), widened(theta)
    backend.transfer_(actual, mix, layout.chunks)
    reference.transfer_(expected, mix, layout.chunks)
    # Each difference is rounded, its factor is, and the sum of K products; the last sum has the size of the result.
    coupling = (mix - torch.eye(rows, dtype=torch.float64)).abs()
    differences = (theta.double() - theta[:1].double()).abs()
    moved = torch.einsum("pkj,jp->kp", per_column(coupling, layout), differences)
    allowed = unit(theta.dtype) * ((rows + 3) * moved + expected.abs())
    assert_within(actual[:, layout.inside], expected[:, layout.inside], allowed[:, layout.inside])
    assert layout.padding_kept(actual)
    return actual


def mixes(sampler: Sampler, rows: int) -> dict[str, Tensor]:
    segments = len(sampler.layout.numels)
    return {
        "dense": sampler.mix(rows, rows),
        "sparse": sampler.mix(rows, rows, density=0.3),
        "some rows of the identity": sampler.mix(rows, rows, identity_rows=range(0, rows, 2)),
        "one matrix for each segment": sampler.mix(segments, rows, rows, density=0.7),
        "average": torch.full((rows, rows), 1 / rows, dtype=torch.float64),
    }


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("numels", LAYOUTS, ids=str)
def test_equals_the_oracle(backend: Backend, numels: tuple[int, ...], dtype: torch.dtype) -> None:
    sampler = Sampler(Layout(numels))
    for rows in ROWS if sum(numels) <= 100 else (1, 5, 17):
        for mix in mixes(sampler, rows).values():
            check(backend, sampler.layout, sampler.rows(rows, dtype=dtype), mix)


@given(numels=st.lists(st.integers(0, 5000), max_size=6), rows=st.integers(1, 9), per_segment=st.booleans())
@settings(max_examples=30, deadline=None)
def test_any_layout(backend: Backend, numels: list[int], rows: int, per_segment: bool) -> None:
    sampler = Sampler(Layout(numels))
    shape = (len(numels), rows, rows) if per_segment else (rows, rows)
    check(backend, sampler.layout, sampler.rows(rows), sampler.mix(*shape, density=0.5))


def test_more_rows_than_scratch_holds_of_a_whole_tile(backend: Backend) -> None:
    sampler = Sampler(Layout((2500, 7)))
    for rows in (64, 256):
        check(backend, sampler.layout, sampler.rows(rows), sampler.mix(rows, rows, density=0.1))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_identity_changes_no_bit(backend: Backend, dtype: torch.dtype) -> None:
    sampler = Sampler(Layout((4097, 17)))
    for rows in ROWS:
        theta = sampler.rows(rows, dtype=dtype)
        theta[:, 5], theta[:, 4096] = -0.0, -0.0
        after = check(backend, sampler.layout, theta, torch.eye(rows, dtype=torch.float64))
        assert same_bits(after, theta)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_rows_of_the_identity_keep_their_bits(backend: Backend, dtype: torch.dtype) -> None:
    sampler = Sampler(Layout((4097, 17)))
    for rows in ROWS:
        theta = sampler.rows(rows, dtype=dtype)
        after = check(backend, sampler.layout, theta, sampler.mix(rows, rows, identity_rows=range(1, rows, 2)))
        assert same_bits(after[1::2], theta[1::2])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_row_that_diverged_stays_with_those_that_take_from_it(backend: Backend, dtype: torch.dtype) -> None:
    sampler = Sampler(Layout((100,)))
    theta = sampler.rows(6, dtype=dtype)
    theta[2, :100] = torch.inf
    mix = sampler.mix(6, 6, identity_rows=(0, 3, 5))
    after = theta.clone()
    backend.transfer_(after, mix, sampler.layout.chunks)
    assert same_bits(after[[0, 3, 5]], theta[[0, 3, 5]])
    assert not bool(torch.isfinite(after[4]).any())


@pytest.mark.parametrize("rows", [2, 5, 16])
def test_what_all_rows_have_in_common_passes_through(backend: Backend, rows: int) -> None:
    """Shifting all rows shifts the result; the errors have the size of the differences, not of the shift."""
    layout = Layout((3000,))
    sampler = Sampler(layout)
    mix = sampler.mix(rows, rows)
    near = torch.randint(-512, 513, (rows, layout.row), generator=sampler.generator).float() / 1024
    shifted = near + 4096.0  # exact, and so are the differences
    identical = torch.full_like(near, 1 / 3)
    for theta in (near, shifted, identical):
        theta[:, ~layout.inside] = torch.nan
    blended, blended_shifted = widened(near), shifted.clone()
    reference.transfer_(blended, mix, layout.chunks)
    backend.transfer_(blended_shifted, mix, layout.chunks)
    # One rounding of the result at 4096; the rest is that of the differences.
    allowed = 4097 * unit(torch.float32) + (rows + 3) * unit(torch.float32) * 2 * rows
    assert_within(blended_shifted[:, :3000], blended[:, :3000] + 4096.0, allowed)
    assert same_bits(check(backend, layout, identical, mix), identical)


def test_segments_without_chunks_are_left_alone(backend: Backend) -> None:
    layout = Layout((100, 3000, 50))
    sampler = Sampler(layout)
    theta = sampler.rows(4)
    after = theta.clone()
    backend.transfer_(after, sampler.mix(4, 4), layout.chunks[layout.chunks[:, 0] != 1].contiguous())
    alone = layout.segment_of == 1
    assert same_bits(after[:, alone], theta[:, alone])
    assert not bool((after == theta)[:, layout.segment_of == 0].all())
    assert layout.padding_kept(after)
