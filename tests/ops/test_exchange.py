"""Bits that change places: exactly so many, the smallest and the largest scores, and of equal ones the first."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mt2o_ext.masks.harmony import exchanged
from mt2o_ext.ops import EXCHANGE_BINS, EXCHANGE_STATE
from mt2o_ext.ops.reference_mask import kept
from support.backends import Backend
from support.samplers import LAYOUTS, Layout, Sampler


def run(backend: Backend, layout: Layout, masks: Tensor, scores: Tensor, amount: int, chunks: Tensor) -> Tensor:
    after = masks.clone()
    counts = torch.full((len(masks), len(chunks), EXCHANGE_BINS), -7, dtype=torch.int32)
    state = torch.full((len(masks), EXCHANGE_STATE), -7)
    backend.exchange_(after, counts, state, scores, chunks, amount=amount)
    return after


def check(backend: Backend, layout: Layout, masks: Tensor, scores: Tensor, amount: int) -> None:
    """Against the functions of `Harmony`, element by element."""
    after = run(backend, layout, masks, scores, amount, layout.chunks)
    before, found = kept(masks, layout.row), kept(after, layout.row)
    assert torch.equal(found[:, ~layout.inside], before[:, ~layout.inside])
    for bits, new, own in zip(before[:, layout.inside], found[:, layout.inside], scores[:, layout.inside], strict=True):
        assert torch.equal(new, exchanged(bits, own, own, amount))


@pytest.mark.parametrize("numels", LAYOUTS, ids=str)
@pytest.mark.parametrize("density", [0.0, 0.3, 0.9, 1.0])
def test_equals_harmony(backend: Backend, numels: tuple[int, ...], density: float) -> None:
    layout = Layout(numels)
    sampler = Sampler(layout)
    scores = sampler.rows(3)
    scores[1] = torch.randint(-3, 4, (layout.row,), generator=sampler.generator).float() * 0.5  # many are equal
    scores[1, ::3] *= -0.0
    masks = sampler.masks(3, density)
    for amount in (0, 1, 2, 100, 10**6):
        check(backend, layout, masks, scores, amount)


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_any_scores(backend: Backend, data: st.DataObject) -> None:
    layout = Layout(data.draw(st.lists(st.integers(0, 3000), min_size=1, max_size=4), label="numels"))
    sampler = Sampler(layout, seed=data.draw(st.integers(0, 5)))
    values = data.draw(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=9), label="values")
    picked = torch.randint(len(values), (2, layout.row), generator=sampler.generator)
    scores = torch.tensor(values, dtype=torch.float32)[picked]
    check(backend, layout, sampler.masks(2), scores, data.draw(st.integers(0, 3000), label="amount"))


def test_columns_outside_of_the_chunks_do_not_count(backend: Backend) -> None:
    layout = Layout((100, 3000, 50))
    sampler = Sampler(layout)
    masks, scores = sampler.masks(2), sampler.rows(2)
    scores[:, layout.segment_of == 1] *= 1e6
    chunks = layout.chunks[layout.chunks[:, 0] != 1].contiguous()
    before, after = (kept(m, layout.row) for m in (masks, run(backend, layout, masks, scores, 5, chunks)))
    assert torch.equal(before[:, layout.segment_of == 1], after[:, layout.segment_of == 1])
    assert (before != after).sum(1).tolist() == [10, 10]
