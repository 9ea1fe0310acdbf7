"""Numbers of sixteen bits: read exactly, written as torch rounds them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mt2o_ext.ops import Rule
from support.backends import Backend
from support.samplers import HALVES, Layout, Sampler, StepProblem, same_bits


def combined(backend: Backend, values: Tensor, out: torch.dtype) -> Tensor:
    """The values as gradients of a single task of weight one."""
    layout = Layout((len(values),))
    grads = torch.zeros(1, 1, layout.row, dtype=values.dtype)
    grads[0, 0, : len(values)] = values
    result = torch.full((1, layout.row), torch.nan, dtype=out)
    backend.combine_(result, grads, torch.ones(1, 1, dtype=torch.float64), layout.chunks)
    return result[0, : len(values)]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_number_is_widened_exactly_and_comes_back(backend: Backend, dtype: torch.dtype) -> None:
    """All 65536: subnormal numbers, infinities and NaN too."""
    values = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)
    for out in (torch.float32, dtype):
        torch.testing.assert_close(combined(backend, values, out), values.to(out), rtol=0, atol=0, equal_nan=True)


def numbers_around(dtype: torch.dtype) -> Tensor:
    """Every finite number of 16 bits, the middle to its neighbour (a tie), and the floats next to both."""
    values = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype).float()
    values = values[torch.isfinite(values)].unique()
    limit = torch.tensor([torch.finfo(torch.float32).max if dtype == torch.bfloat16 else 70000.0])
    between = (values[1:].double() + values[:-1].double()) / 2
    past = torch.tensor([65519.996, 65520.0, 65520.004, 1e10]) if dtype == torch.float16 else limit
    numbers = torch.cat([values, between.float(), past, -past])
    below, above = (numbers.nextafter(torch.full_like(numbers, to)) for to in (-torch.inf, torch.inf))
    numbers = torch.cat([numbers, below, above])
    return numbers[torch.isfinite(numbers)]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_rounding_to_sixteen_bits_is_torchs(backend: Backend, dtype: torch.dtype) -> None:
    """To nearest, ties to even, subnormal numbers included; past the largest number to infinity."""
    numbers = numbers_around(dtype)
    layout = Layout((len(numbers),))
    sampler = Sampler(layout)
    problem = StepProblem.sample(sampler, 1, 1, Rule.SGD, segments=sampler.segments(lr=0.0, weight_decay=0.0))
    problem.theta[0, : len(numbers)] = numbers
    problem.grads.zero_()
    problem.low_precision = sampler.poisoned(1, dtype=dtype)
    rounded = problem.run(backend, Rule.SGD).low_precision[0, : len(numbers)]
    assert same_bits(rounded, numbers.to(dtype))
    assert bool(torch.isinf(rounded).any())
