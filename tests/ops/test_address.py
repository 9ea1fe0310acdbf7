"""Where rows may begin: what a kernel on a GPU cannot load is refused by every compiled backend, and nothing runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from inspect import signature
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mt2o_ext import ops
from mt2o_ext.ops import MOMENTS
from support.backends import CPU, CUDA, EMULATED, Backend, each, usable
from support.ops.calls import CASES, arguments_of
from support.samplers import Layout, Sampler, same_bits

MATRICES = {"grads", "rows", "others", "theta", *MOMENTS, "ema", "low_precision", "memory", "last", "squares"}
TABLES = {"gram_", "excess_"}  # operators whose `out` is one


def rows_of(case: str) -> Iterator[tuple[int, str]]:
    """Where in the arguments of a case rows are, and their names."""
    operator, arguments = CASES[case]
    names = signature(getattr(ops, operator)).parameters
    given = dict(zip(names, arguments(Sampler(Layout((1,))))[0], strict=False))
    unread = {"grads", "rows"} if given.get("addresses") is not None else set()
    for position, (name, value) in enumerate(given.items()):
        if name in unread or value is None:
            continue
        if name in MATRICES or (name == "out" and operator not in TABLES):
            yield position, name


ROWS = {(case, position): name for case in CASES for position, name in rows_of(case)}
EACH_ROWS = pytest.mark.parametrize(("case", "position"), ROWS, ids=lambda value: str(value).replace(" ", "_"))


@pytest.fixture(params=each(CPU, CUDA, EMULATED))
def compiled(request: pytest.FixtureRequest) -> Backend:
    return usable(request.param)


def behind(tensor: Tensor, elements: int) -> Tensor:
    """The same values in memory that begins this many elements behind a multiple of 64 bytes."""
    memory = torch.full((tensor.numel() + elements,), torch.nan, dtype=tensor.dtype)
    assert memory.data_ptr() % 64 == 0
    return memory[elements:].view(tensor.shape).copy_(tensor)


def call(backend: Backend, case: str, arguments: list[Any], named: dict[str, Any]) -> None:
    getattr(backend, CASES[case][0])(*arguments, **named)


def arguments_with(case: str, position: int, elements: int) -> tuple[list[Any], dict[str, Any]]:
    positional, named = arguments_of(case)
    positional[position] = behind(positional[position], elements)
    return positional, named


@EACH_ROWS
def test_rows_that_begin_between_multiples_of_sixteen_bytes(compiled: Backend, case: str, position: int) -> None:
    """A RuntimeError that says which and what to do; nothing has changed."""
    positional, named = arguments_with(case, position, 1)
    before = [a.clone() if isinstance(a, Tensor) else a for a in positional]
    bytes_behind = positional[position].element_size()
    message = f"{ROWS[case, position]} must begin at a multiple of 16 bytes, but lies {bytes_behind} bytes behind one"
    with pytest.raises(RuntimeError, match=re.escape(message)) as raised:
        call(compiled, case, positional, named)
    assert "memory of its own (clone), or begin the view at a multiple of 16 elements" in str(raised.value)
    assert all(old is None or same_bits(old, new) for old, new in zip(before, positional, strict=True))


@EACH_ROWS
def test_rows_that_begin_at_any_other_multiple(compiled: Backend, case: str, position: int) -> None:
    """A view that begins sixteen bytes, or as many elements, behind the memory that it is of is as good as any."""
    plain, named = arguments_of(case)
    call(compiled, case, plain, named)
    size = 2 if ROWS[case, position] == "low_precision" else 4
    for elements in (16 // size, 16):
        positional, _ = arguments_with(case, position, elements)
        call(compiled, case, positional, named)
        for one, other in zip(plain, positional, strict=True):
            assert one is None or same_bits(one, other)


def test_without_columns_any_address_will_do(compiled: Backend) -> None:
    positional, named = arguments_of("combine", "empty")
    memory = torch.zeros(8)
    positional[0], positional[1] = (memory[1:1].view(t.shape) for t in positional[:2])
    call(compiled, "combine", positional, named)


@pytest.mark.skipif(bool(CPU.missing), reason=CPU.missing)
@pytest.mark.parametrize("case", [case for case in CASES if any(rows_of(case))])
def test_no_address_is_looked_at_while_tracing(case: str) -> None:
    """Tensors have none there: the same arguments pass, and are refused where they run."""
    positional, named = arguments_of(case)
    position, _ = next(rows_of(case))
    positional[position] = behind(positional[position], 1)
    mode = FakeTensorMode()
    fakes = [mode.from_tensor(a) if isinstance(a, Tensor) else a for a in positional]
    assert fakes[position].storage_offset() % 4 == 1
    with mode:
        getattr(torch.ops.mt2o_ext, CASES[case][0])(*fakes, **named)
    with pytest.raises(RuntimeError, match="must begin at a multiple of 16 bytes"):
        getattr(torch.ops.mt2o_ext, CASES[case][0])(*positional, **named)
