"""`draw_`: the same numbers on every backend, and the published ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mt2o_ext import ops
from mt2o_ext.ops import reference_draw
from support.backends import CPU, Backend
from support.samplers import same_bits

KEYS = (0, 1, -1, 2**63 - 1, -(2**63))


def split_mix(state: int) -> int:
    """The next number of SplitMix64, as published."""
    state = (state + 0x9E3779B97F4A7C15) % 2**64
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
    return (state ^ (state >> 31)) % 2**64


@pytest.mark.parametrize("key", KEYS)
def test_without_ids_it_is_split_mix(backend: Backend, key: int) -> None:
    out = torch.zeros((), dtype=torch.int64)
    backend.draw_(out, torch.tensor(key), [], stream=0)
    assert int(out) % 2**64 == split_mix(key % 2**64)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (300,), (5, 7), (2, 3, 4), (2, 0), (3, 2, 2, 5)], ids=str)
def test_the_reference_gives_the_same_bits(backend: Backend, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """With ids that are numbers, rows, columns, and all of it."""
    numbers = torch.randint(-(2**60), 2**60, shape, generator=torch.Generator().manual_seed(0))
    ids: list[Tensor] = [torch.tensor(5).expand(shape), numbers]
    if shape:
        rows = torch.arange(shape[0]).view(-1, *[1] * (len(shape) - 1))
        ids += [torch.arange(shape[-1]).expand(shape), rows.expand(shape)]
    for key in KEYS:
        out, expected = torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)
        backend.draw_(out, torch.tensor(key), ids, stream=7)
        reference_draw.draw_(expected, torch.tensor(key), ids, stream=7)
        assert same_bits(out, expected)
        assert dtype == torch.int64 or bool(((out > 0) & (out < 1)).all())


needs_native = pytest.mark.skipif(bool(CPU.missing), reason=CPU.missing)


def arguments() -> list[Any]:
    ids = [torch.arange(3)[:, None].expand(3, 4), torch.arange(4).expand(3, 4)]
    return [torch.zeros(3, 4, dtype=torch.float64), torch.tensor(2**61), ids]


@needs_native
def test_opcheck() -> None:
    report = torch.library.opcheck(torch.ops.mt2o_ext.draw_.default, tuple(arguments()), {"stream": 3})
    assert set(report.values()) == {"SUCCESS"}


@needs_native
def test_compiles_without_a_break() -> None:
    eager, compiled = arguments(), arguments()
    torch.compile(lambda *given: ops.draw_(*given, stream=3), fullgraph=True, backend="aot_eager")(*compiled)
    ops.draw_(*eager, stream=3)
    assert same_bits(eager[0], compiled[0])
    assert eager[0]._version > 0


WRONG: dict[str, tuple[int, Callable[[Any], Any], str]] = {
    "float32": (0, Tensor.float, "out must be int64 or float64, contiguous, of up to 4 dimensions"),
    "five dimensions": (0, lambda out: out[None, None, None], "of up to 4 dimensions"),
    "two keys": (1, lambda key: key.repeat(2), "key must be one int64"),
    "ids that are not expanded": (2, lambda ids: [ids[0][:, :1]], "ids must be int64, expanded to the shape of out"),
    "five ids": (2, lambda ids: [*ids, *ids, ids[0]], "up to 4 ids, not 5"),
}


@needs_native
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments_are_named(wrong: str) -> None:
    position, change, message = WRONG[wrong]
    given = arguments()
    given[position] = change(given[position])
    with pytest.raises(RuntimeError, match=re.escape(message)):
        torch.ops.mt2o_ext.draw_(*given, stream=0)
