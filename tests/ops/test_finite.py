from __future__ import annotations

import pytest
import torch
from torch import Tensor

from support.backends import Backend
from support.samplers import FLOATS, HALVES, LAYOUTS, Layout, Sampler

BAD = (torch.nan, torch.inf, -torch.inf)


def found(backend: Backend, grads: Tensor, layout: Layout) -> list[float]:
    flags = torch.zeros(len(grads))
    backend.finite_(flags, grads, layout.chunks)
    return flags.tolist()


@pytest.mark.parametrize("dtype", FLOATS + HALVES, ids=str)
@pytest.mark.parametrize("numels", LAYOUTS, ids=str)
def test_hits_the_row_and_no_other(backend: Backend, numels: tuple[int, ...], dtype: torch.dtype) -> None:
    """One bad number in turn at each position of a short tensor, at the edges of chunks of a long one."""
    layout = Layout(numels)
    grads = Sampler(layout).rows(3, 2, dtype=dtype)
    assert found(backend, grads, layout) == [0.0, 0.0, 0.0]
    edges = {column for _, begin, end in layout.chunks.tolist() for column in (begin, begin + 31, end - 17, end - 1)}
    columns = set(range(layout.row)) if layout.row <= 48 else edges
    for column in sorted(columns & set(layout.inside.nonzero().flatten().tolist())):
        for row, bad in enumerate(BAD):
            task = column % 2
            good = grads[row, task, column].clone()
            grads[row, task, column] = bad
            assert found(backend, grads, layout) == [float(k == row) for k in range(3)], (column, bad)
            grads[row, task, column] = good


@pytest.mark.parametrize("dtype", FLOATS + HALVES, ids=str)
def test_the_largest_and_the_smallest_numbers_are_finite(backend: Backend, dtype: torch.dtype) -> None:
    layout = Layout((5000, 17))
    limits = torch.finfo(dtype)
    for value in (limits.max, limits.min, limits.tiny, limits.smallest_normal * limits.eps, -0.0):
        assert found(backend, torch.full((2, 3, layout.row), value, dtype=dtype), layout) == [0.0, 0.0]


def test_flags_that_are_set_stay(backend: Backend) -> None:
    layout = Layout((40,))
    grads = Sampler(layout).rows(3, 1)
    grads[2, 0, 39] = torch.nan
    flags = torch.tensor([1.0, 0.0, 0.0])
    backend.finite_(flags, grads, layout.chunks)
    assert flags.tolist() == [1.0, 0.0, 1.0]


def test_columns_outside_of_the_chunks_are_not_looked_at(backend: Backend) -> None:
    layout = Layout((100, 3000, 50))
    grads = Sampler(layout).rows(2, 2)
    grads[:, :, layout.segment_of == 1] = torch.nan
    flags = torch.zeros(2)
    backend.finite_(flags, grads, layout.chunks[layout.chunks[:, 0] != 1].contiguous())
    assert flags.tolist() == [0.0, 0.0]


def test_the_gradients_are_only_read(backend: Backend) -> None:
    layout = Layout((100,))
    grads = Sampler(layout).rows(2, 2)
    before = grads.clone()
    found(backend, grads, layout)
    torch.testing.assert_close(grads, before, rtol=0, atol=0, equal_nan=True)
