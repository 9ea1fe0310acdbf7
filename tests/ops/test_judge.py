"""Family ``judge``: the bits of all backends, what the numbers mean, and the operators as torch sees them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mt2o_ext import ops
from mt2o_ext.ops import reference_judge
from support.backends import CPU, CUDA, EMULATED, Backend, each, usable
from support.ops.judge_problem import JudgeCall, all_calls, copied, count_calls, judge_calls, settle_calls, unwritten
from support.samplers import same_bits

CALLS = list(all_calls())
FEW = [*judge_calls(5, 2, 3), *settle_calls(5, 2, 1), *count_calls(5, 2)]


@pytest.fixture(params=each(CPU, CUDA, EMULATED))
def backend(request: pytest.FixtureRequest) -> Backend:
    return usable(request.param)


def same(a: Tensor, b: Tensor) -> bool:
    """Alike but for the bits of NaN."""
    if not a.is_floating_point():
        return torch.equal(a, b)
    return torch.equal(a.isnan(), b.isnan()) and same_bits(a.nan_to_num(7.0), b.nan_to_num(7.0))


def check(call: JudgeCall, function: Any) -> None:
    expected, got = copied(call.arguments), copied(call.arguments)
    getattr(reference_judge, call.operator)(*expected, **call.options)
    function(*got, **call.options)
    for index, (a, b) in enumerate(zip(expected[: call.written], got[: call.written], strict=True)):
        if a is None:
            continue
        if call.operator == "judge_" and index == 6:  # torch's square root of doubles may be off by its last bit
            torch.testing.assert_close(a, b, rtol=2.0**-51, atol=0, equal_nan=True)
        else:
            assert same(a, b), (call.what, index, a, b)


@pytest.mark.parametrize("operator", ["judge_", "settle_", "count_"])
def test_bits_of_the_reference(backend: Backend, operator: str) -> None:
    for call in CALLS:
        if call.operator == operator:
            check(call, getattr(backend, operator))


def test_sums_are_accurate() -> None:
    grams = torch.rand(1, 1000, 3, 3, dtype=torch.float64)
    grams = grams + grams.mT
    sums = unwritten(1, 3, 3)
    flags = torch.zeros(2, 1, dtype=torch.bool)
    ops.judge_(torch.zeros(1), flags, None, sums, None, None, None, (), grams)
    exact = [math.fsum(column) for column in grams[0].flatten(1).T.tolist()]
    torch.testing.assert_close(sums.flatten(), torch.tensor(exact, dtype=torch.float64), rtol=2.0**-48, atol=0)
    assert flags.all()


def test_a_row_that_is_not_usable_gets_harmless_numbers() -> None:
    losses = torch.tensor([[1.0, -2.0], [math.nan, 1.0], [3.0, 4.0]], dtype=torch.float64)
    squares = torch.tensor([[[4.0, 9.0]]], dtype=torch.float64).repeat(3, 1, 1)
    found, flags, sums = unwritten(3, dtype=torch.float32), unwritten(2, 3, dtype=torch.bool), unwritten(3, 2)
    filled, usable_losses, largest = unwritten(3, 2, 2), unwritten(3, 2), unwritten(3, 2)
    ops.judge_(
        found, flags, losses, sums, filled, usable_losses, largest, (), squares, torch.tensor([2.0]), None, losses < 0,
        limit=60.0,
    )  # fmt: skip
    assert found.tolist() == [0, 1, 0]
    assert flags.tolist() == [[True, False, True], [False, False, True]]
    assert sums.tolist() == [[1, 2.25]] * 3  # divided by the square of the factor
    assert filled[2].tolist() == [[1, 0], [0, 2.25]]
    assert filled[0].tolist() == filled[1].tolist() == [[1, 0], [0, 1]]
    assert usable_losses.tolist() == [[1, 1], [1, 1], [3, 4]]
    assert largest[2].tolist() == [30, 20]  # limit / (T |g_t|)


def test_one_row_can_count_for_all() -> None:
    losses = torch.tensor([[1.0], [math.inf]], dtype=torch.float64)
    found, flags = unwritten(2, dtype=torch.float32), unwritten(2, 2, dtype=torch.bool)
    ops.judge_(found, flags, losses, None, None, None, None, together=True)
    assert found.tolist() == [0, 1]
    assert not flags.any()


def test_refused_weights_are_nan_and_applied_as_zeros() -> None:
    raw = torch.tensor([[0.5, 0.5], [0.5, 3.0], [0.5, 0.5], [1.0, 1.0]], dtype=torch.float64)
    losses = torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, -1.0], [math.nan, 1.0]], dtype=torch.float64)
    weights, applied, flags = unwritten(4, 2), unwritten(4, 2, dtype=torch.float32), unwritten(2, 4, dtype=torch.bool)
    refusals, found = unwritten(4, 3), unwritten(4, dtype=torch.float32)
    ops.settle_(
        weights, applied, flags, refusals, found, losses, raw, outside=losses < 0, tasks=2, limit=2.0, offset=2
    )  # fmt: skip
    assert flags.tolist() == [[True, False, False, False], [False, True, True, False]]
    assert refusals.tolist() == [[0, 0, 0], [2, 1, 3.0], [1, 1, -1.0], [0, 0, 0]]
    assert found.tolist() == [0, 4, 3, 1]
    assert weights[0].tolist() == applied[0].tolist() == [0.5, 0.5]
    assert weights[1:].isnan().all()
    assert applied[1:3].tolist() == [[0, 0], [0, 0]]
    assert applied[3].isnan().all()


@pytest.mark.skipif(bool(CPU.missing), reason=CPU.missing)
@pytest.mark.parametrize("call", FEW, ids=lambda call: f"{call.operator} {call.what}")
def test_opcheck(call: JudgeCall) -> None:
    operator = getattr(torch.ops.mt2o_ext, call.operator).default
    report = torch.library.opcheck(operator, tuple(copied(call.arguments)), call.options)
    assert set(report.values()) == {"SUCCESS"}


@pytest.mark.parametrize("operator", ["judge_", "settle_", "count_"])
def test_what_was_written_to_has_a_new_version(operator: str) -> None:
    call = next(call for call in FEW if call.operator == operator and ("apart" in call.what or operator == "count_"))
    arguments = copied(call.arguments)
    getattr(ops, operator)(*arguments, **call.options)
    for index, argument in enumerate(arguments):
        if isinstance(argument, Tensor):
            assert (argument._version > 0) == (index < call.written), index


@pytest.mark.skipif(bool(CPU.missing), reason=CPU.missing)
@pytest.mark.parametrize(
    ("operator", "position", "wrong", "message"),
    [
        ("judge_", 0, torch.zeros(5).double(), "found must be contiguous, of shape [5]"),
        ("judge_", 1, torch.zeros(2, 4, dtype=torch.bool), "flags must be contiguous, of shape [2, 5]"),
        ("judge_", 7, [torch.zeros(())], "scalars must be 10 losses"),
        ("judge_", 8, torch.zeros(5, 3, 2, 3).double(), "grams must be contiguous, of shape [5, 3, 2, 2]"),
        ("judge_", 11, torch.zeros(5, 2), "outside must be contiguous, of shape [5, 2]"),
        ("settle_", 6, torch.zeros(5, 3).double(), "raw must be [K, a multiple of 2]"),
        ("settle_", 1, torch.zeros(5, 2).half(), "applied must be float32 or float64"),
        ("settle_", 3, torch.zeros(5, 2).double(), "refusals must be contiguous, of shape [5, 3]"),
        ("count_", 1, torch.zeros(5, 3).double(), "table must be contiguous, of shape [5, 4]"),
        ("count_", 4, torch.zeros(5, 2).double(), "weights [K, T] and finite [K] go together"),
    ],
)
def test_wrong_arguments_are_named(operator: str, position: int, wrong: Any, message: str) -> None:
    call = next(call for call in FEW if call.operator == operator)
    arguments = copied(call.arguments)
    arguments[position] = wrong
    with pytest.raises(RuntimeError) as raised:
        getattr(torch.ops.mt2o_ext, operator)(*arguments, **call.options)
    assert message in str(raised.value)
