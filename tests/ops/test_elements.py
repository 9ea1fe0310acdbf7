"""Family `elements`: every backend against the definitions, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mt2o_ext.weighting.draw import Draw
from support.backends import Backend
from support.samplers import FLOATS, HALVES, LAYOUTS, Layout, Sampler, assert_within, rounding, same_bits, unit, widened

DTYPES = FLOATS + HALVES
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
EACH_LAYOUT = pytest.mark.parametrize("numels", LAYOUTS, ids=str)
TINY = 1e-7  # float16 rounds to multiples of 2^-24
FINITE = torch.tensor([True, False, True])


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_kept(layout: Layout, before: Tensor, after: Tensor) -> None:
    """What is not finite, and what is between the tensors, stays as it was, bit for bit."""
    assert same_bits(after[1], before[1])
    assert same_bits(after[..., ~layout.inside], before[..., ~layout.inside])


@EACH_DTYPE
@EACH_LAYOUT
@pytest.mark.parametrize("shown", [False, True])
def test_track(backend: Backend, numels: tuple[int, ...], dtype: torch.dtype, shown: bool) -> None:
    layout = Layout(numels)
    sampler = Sampler(layout)
    grads, memory = sampler.rows(3, 2, dtype=dtype), sampler.rows(3, 2, dtype=wide(dtype))
    keep, fresh = sampler.weights(3, 2), sampler.weights(3, 2)
    old, before = memory.clone(), grads.clone()
    backend.track_(grads, memory, keep, fresh, FINITE, layout.chunks, shown=shown)
    kept, added = widened(old) * keep[..., None], widened(before) * fresh[..., None]
    inside = (FINITE[:, None, None] & layout.inside).expand_as(memory)
    assert_within(memory[inside], (kept + added)[inside], (4 * unit(dtype) * (kept.abs() + added.abs()))[inside])
    check_kept(layout, old, memory)
    check_kept(layout, before, grads)
    assert same_bits(grads, torch.where(inside, memory.to(dtype), before) if shown else before)


@EACH_DTYPE
@EACH_LAYOUT
@pytest.mark.parametrize("tasks", [1, 3, 9])
def test_feed(backend: Backend, numels: tuple[int, ...], dtype: torch.dtype, tasks: int) -> None:
    layout, beta = Layout(numels), 0.9
    sampler = Sampler(layout)
    grads, memory = sampler.rows(3, tasks, dtype=dtype), sampler.rows(3, tasks, dtype=wide(dtype))
    last, weights = sampler.rows(3, dtype=wide(dtype)), sampler.weights(3, tasks)
    now, before = sampler.uniform(3), sampler.uniform(3)
    old, given = last.clone(), grads.clone()
    backend.feed_(grads, last, memory, weights, now, before, FINITE, layout.chunks, beta=beta)
    terms = widened(memory) * weights[..., None]
    direction, size = terms.sum(1), terms.abs().sum(1)
    first = (direction * now[:, None] - beta * widened(old) * before[:, None]) / (1 - beta)
    inside = (FINITE[:, None] & layout.inside).expand_as(last)
    assert_within(last[inside], direction[inside], ((tasks + 2) * unit(dtype) * size)[inside])
    bound = (tasks + 8) * unit(dtype) * (size + widened(old).abs()) / (1 - beta) + rounding(dtype) * first.abs()
    assert_within(grads[:, 0][inside], first[inside], bound[inside])
    assert not bool(grads[:, 1:].transpose(1, 2)[inside].any())
    check_kept(layout, old, last)
    check_kept(layout, given, grads)


@EACH_DTYPE
@EACH_LAYOUT
def test_excess(backend: Backend, numels: tuple[int, ...], dtype: torch.dtype) -> None:
    """Some columns have 0 / 0, which counts as 0."""
    layout, tasks = Layout(numels), 3
    sampler = Sampler(layout)
    grads, squares = sampler.rows(3, tasks, dtype=dtype), sampler.positive_rows(3, tasks, dtype=wide(dtype))
    zero = layout.inside & (torch.arange(layout.row) % 5 == 0)
    grads[..., zero], squares[..., zero] = 0.0, 0.0
    out = torch.full((3, len(numels), tasks), torch.nan, dtype=torch.float64)
    partials = torch.full((3, len(layout.chunks), tasks), torch.nan, dtype=torch.float64)
    old, given = squares.clone(), grads.clone()
    backend.excess_(out, partials, squares, grads, FINITE, layout.chunks)
    added = widened(given).square()
    total = widened(old) + added
    ratio = torch.where(total > 0, added / total.sqrt(), 0.0)
    expected = torch.stack([ratio[..., layout.segment_of == segment].sum(-1) for segment in range(len(numels))], 1)
    assert_within(out, expected, 1e-13 * expected)
    inside = (FINITE[:, None, None] & layout.inside).expand_as(squares)
    assert_within(squares[inside], total[inside], (2 * unit(dtype) * total)[inside])
    check_kept(layout, old, squares)
    assert same_bits(grads, given)


@EACH_DTYPE
@EACH_LAYOUT
@pytest.mark.parametrize("leak", [0.0, 0.3])
def test_drop_signs(backend: Backend, numels: tuple[int, ...], dtype: torch.dtype, leak: float) -> None:
    layout, tasks, stream = Layout(numels), 4, 2
    sampler, draw = Sampler(layout), Draw.new(torch.Generator().manual_seed(3))
    grads = sampler.rows(3, tasks, dtype=dtype)
    grads[..., layout.inside & (torch.arange(layout.row) % 7 == 0)] = 0.0
    before = grads.clone()
    backend.drop_signs_(grads, draw.key, FINITE, layout.chunks, stream=stream, leak=leak)
    values = widened(before)
    purity = (1 + values.sum(1) / values.abs().sum(1)) / 2
    uniform = draw.uniform(stream, torch.arange(3)[:, None], torch.arange(layout.row)[None])
    keeps = torch.where(values > 0, (purity > uniform)[:, None], (purity < uniform)[:, None])
    inside = (FINITE[:, None, None] & layout.inside).expand_as(grads)
    assert torch.equal(grads[inside & keeps], before[inside & keeps])
    expected, rest = leak * values, inside & ~keeps
    assert_within(grads[rest], expected[rest], ((2 * unit(dtype) + rounding(dtype)) * expected.abs())[rest] + TINY)
    check_kept(layout, before, grads)


def test_no_columns_and_no_rows(backend: Backend) -> None:
    """Nothing is launched, and sums are zero."""
    layout = Layout(())
    out = torch.full((2, 1, 3), torch.nan, dtype=torch.float64)
    rows = torch.zeros(2, 3, 0)
    finite = torch.tensor([True, True])
    backend.excess_(out, torch.zeros(2, 0, 3, dtype=torch.float64), rows.clone(), rows, finite, layout.chunks)
    assert not bool(out.any())
    tables = [torch.zeros(2, 3, dtype=torch.float64)] * 2
    backend.track_(rows, rows.clone(), *tables, finite, layout.chunks, shown=True)
    backend.drop_signs_(rows, torch.tensor(1), finite, layout.chunks, stream=0, leak=0.0)
