"""How results are compared: that each comparison sees what it is for, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from support.samplers import FLOATS, HALVES, Layout, Sampler, same_bits, same_numbers

EACH_DTYPE = pytest.mark.parametrize("dtype", FLOATS + HALVES, ids=str)
EACH = pytest.mark.parametrize("same", [same_bits, same_numbers])
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def other_nan(like: Tensor) -> Tensor:
    """The NaN of the same sign whose other bits are all set: what a GPU computes in float32."""
    bits = torch.full((), torch.nan, dtype=like.dtype).view(INTEGERS[like.element_size()])
    return torch.full_like(bits, torch.iinfo(bits.dtype).max).view(like.dtype)


@EACH_DTYPE
def test_a_nan_is_a_nan_but_not_the_same_bits(dtype: torch.dtype) -> None:
    a = torch.tensor([1.0, torch.nan, -0.0], dtype=dtype)
    b = a.clone()
    b[1] = other_nan(a)
    assert bool(b[1].isnan())
    assert same_numbers(a, b) and same_numbers(b, a) and not same_bits(a, b)


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "the last place": lambda t: torch.cat([t[:1].nextafter(t[:1] + 1), t[1:]]),
    "the sign of zero": lambda t: torch.cat([t[:1], -t[1:2], t[2:]]),
    "a NaN less": lambda t: t.nan_to_num(3.0),
    "a NaN more": lambda t: t.masked_fill(t == 1, torch.nan),
    "a NaN in another place": lambda t: t.flip(0),
    "an infinity of the other sign": lambda t: torch.where(t.isinf(), -t, t),
    "an element less": lambda t: t[:-1],
    "another shape": lambda t: t.reshape(1, -1),
    "another dtype": lambda t: t.double() if t.dtype != torch.float64 else t.float(),
}


@EACH
@EACH_DTYPE
@pytest.mark.parametrize("change", CHANGES)
def test_every_other_difference_is_seen(
    same: Callable[[Tensor, Tensor], bool], dtype: torch.dtype, change: str
) -> None:
    a = torch.tensor([1.0, 0.0, torch.nan, torch.inf, 7.0], dtype=dtype)
    if change == "the last place" and dtype in HALVES:
        b = (a.view(torch.int16) + torch.tensor([1, 0, 0, 0, 0], dtype=torch.int16)).view(dtype)
    else:
        b = CHANGES[change](a)
    assert same(a, a.clone())
    assert not same(a, b) and not same(b, a)


def test_numbers_that_are_no_floats_are_compared_too() -> None:
    for a in (torch.tensor([1, 2]), torch.tensor([True, False])):
        assert same_numbers(a, a.clone()) and not same_numbers(a, a.flip(0))


@EACH_DTYPE
def test_between_segments_every_bit_counts(dtype: torch.dtype) -> None:
    """A NaN that a kernel has written there is another one than the test has left."""
    layout = Layout((17, 40))
    before = Sampler(layout).rows(2, dtype=dtype)
    for column, same in ((3, True), (17, False), (31, False), (32, True)):
        a, b = before.clone(), before.clone()
        a[1, column] = torch.nan
        b[1, column] = other_nan(b)
        assert layout.same_results(a, b) == same
    assert layout.same_results(before, before.clone())
    assert not layout.same_results(before, before + 1)


def test_tables_have_no_columns_between_segments() -> None:
    layout = Layout((17, 40))
    a = torch.tensor([torch.nan, 1.0])
    b = a.clone()
    b[0] = other_nan(b)
    assert layout.same_results(a, b) and not layout.same_results(a, b + 1)
    assert not layout.same_results(a, b[:1])
