"""A row as a task sees it."""

from __future__ import annotations

import pytest
import torch

from mt2o_ext.ops.reference_mask import kept
from support.backends import Backend
from support.samplers import FLOATS, HALVES, LAYOUTS, Layout, Sampler, same_bits


@pytest.mark.parametrize("dtype", FLOATS + HALVES, ids=str)
@pytest.mark.parametrize("numels", LAYOUTS, ids=str)
def test_zeros_outside_of_the_mask_and_the_same_bits_inside(
    backend: Backend, numels: tuple[int, ...], dtype: torch.dtype
) -> None:
    layout = Layout(numels)
    sampler = Sampler(layout)
    for density in (0.0, 0.5, 1.0):
        values, masks, out = sampler.rows(1, dtype=dtype), sampler.masks(1, density), sampler.poisoned(1, dtype=dtype)
        if layout.inside.any():
            first = int(layout.inside.nonzero()[0])
            values[0, first] = torch.nan
        before = values.clone()
        backend.mask_(out, values, masks, None, layout.chunks)
        seen = torch.where(kept(masks, layout.row), values, torch.zeros((), dtype=dtype))
        assert same_bits(out[:, layout.inside], seen[:, layout.inside])
        assert layout.padding_kept(out)
        assert same_bits(values, before)


def test_whole_tensors_are_copied(backend: Backend) -> None:
    layout = Layout((40, 3000, 17))
    sampler = Sampler(layout)
    values, out, masks = sampler.rows(1), sampler.poisoned(1), sampler.masks(1)
    backend.mask_(out, values, masks, torch.tensor([False, True, False]), layout.chunks)
    bits = kept(masks, layout.row) | (layout.segment_of == 1)
    seen = torch.where(bits & layout.inside, values, torch.zeros(()))
    assert same_bits(out[:, layout.inside], seen[:, layout.inside])
