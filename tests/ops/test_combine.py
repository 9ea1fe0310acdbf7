from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mt2o_ext.ops import reference
from support.backends import Backend
from support.samplers import (
    FLOATS,
    HALVES,
    LAYOUTS,
    Layout,
    Sampler,
    assert_within,
    rounding,
    rows_and_tasks,
    unit,
    widened,
)

DTYPES = [(dtype, dtype) for dtype in FLOATS + HALVES] + [(dtype, torch.float32) for dtype in HALVES]


def allowed_error(grads: Tensor, weights: Tensor, expected: Tensor, out: torch.dtype) -> Tensor:
    """T products of rounded weights, T - 1 sums, the rounding of the result (its last place, if it is subnormal)."""
    size = torch.einsum("kt,ktp->kp", weights.abs(), grads.double().abs())
    last = expected.abs() * rounding(out) + torch.finfo(out).smallest_normal * rounding(out)
    return (weights.shape[1] + 1) * unit(grads.dtype) * size * (1 + rounding(out)) + last


def check(
    backend: Backend, sampler: Sampler, rows: int, tasks: int, dtype: torch.dtype, out_dtype: torch.dtype
) -> None:
    layout = sampler.layout
    grads, weights = sampler.rows(rows, tasks, dtype=dtype), sampler.weights(rows, tasks)
    out = sampler.poisoned(rows, dtype=out_dtype)
    expected = widened(out)
    backend.combine_(out, grads, weights, layout.chunks)
    reference.combine_(expected, grads.double(), weights, layout.chunks)
    allowed = allowed_error(grads, weights, expected, out_dtype)
    assert_within(out[:, layout.inside], expected[:, layout.inside], allowed[:, layout.inside])
    assert layout.padding_kept(out)


@pytest.mark.parametrize(("dtype", "out_dtype"), DTYPES, ids=str)
@pytest.mark.parametrize("numels", LAYOUTS, ids=str)
def test_equals_the_oracle(
    backend: Backend, numels: tuple[int, ...], dtype: torch.dtype, out_dtype: torch.dtype
) -> None:
    sampler = Sampler(Layout(numels))
    for rows, tasks in rows_and_tasks(numels):
        check(backend, sampler, rows, tasks, dtype, out_dtype)


@given(numels=st.lists(st.integers(0, 5000), max_size=6), rows=st.integers(1, 6), tasks=st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_any_layout(backend: Backend, numels: list[int], rows: int, tasks: int) -> None:
    check(backend, Sampler(Layout(numels)), rows, tasks, torch.float32, torch.float32)


def test_columns_outside_of_the_chunks_are_not_written(backend: Backend) -> None:
    layout = Layout((100, 3000, 50))
    sampler = Sampler(layout)
    out, grads = sampler.poisoned(2), sampler.rows(2, 3)
    chunks = layout.chunks[layout.chunks[:, 0] != 1].contiguous()
    backend.combine_(out, grads, sampler.weights(2, 3), chunks)
    written = (layout.segment_of == 0) | (layout.segment_of == 2)
    assert torch.equal(torch.isfinite(out), written.expand(2, -1))


def test_gradients_that_rows_share(backend: Backend) -> None:
    """Rows may lie anywhere a multiple of sixteen elements apart: also on top of one another."""
    sampler = Sampler(Layout((300,)))
    shared, weights = sampler.rows(1, 2).expand(4, 2, -1), sampler.weights(4, 2)
    out, expected = sampler.poisoned(4), sampler.poisoned(4)
    backend.combine_(out, shared, weights, sampler.layout.chunks)
    backend.combine_(expected, shared.contiguous(), weights, sampler.layout.chunks)
    assert torch.equal(out[:, :300], expected[:, :300])
