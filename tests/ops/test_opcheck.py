"""The operators as torch sees them: schemas, fakes, tracing, version counters, and what they say to wrong arguments."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mt2o_ext import ops
from mt2o_ext.ops import Order, Rule
from support.backends import CPU
from support.ops.calls import CASES, LAYOUTS, arguments_of
from support.samplers import Layout, Sampler, same_bits

pytestmark = pytest.mark.skipif(bool(CPU.missing), reason=CPU.missing)
EACH_CASE = pytest.mark.parametrize("case", CASES)
SCRATCH = ("constants", "counts", "state")


@EACH_CASE
@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(case: str, layout: str) -> None:
    positional, named = arguments_of(case, layout)
    operator = getattr(torch.ops.mt2o_ext, CASES[case][0]).default
    report = torch.library.opcheck(operator, tuple(positional), named)
    assert set(report.values()) == {"SUCCESS"}
    assert len(report) == 4


@EACH_CASE
def test_padding_between_rows_changes_nothing(case: str) -> None:
    """And is not written to."""
    operator = getattr(torch.ops.mt2o_ext, CASES[case][0])
    dense, named = CASES[case][1](Sampler(Layout(LAYOUTS["padded rows"])))
    padded, _ = arguments_of(case, "padded rows")
    operator(*dense, **named)
    operator(*padded, **named)
    for a, b in zip(dense, padded, strict=True):
        if isinstance(a, Tensor):
            assert same_bits(a, b)
            if b._base is not None and b.is_floating_point():  # a table of addresses is a view of another form
                assert not bool(b._base[..., b.shape[-1] :].any())


@pytest.fixture(autouse=True)
def nothing_compiled() -> None:
    """Every case goes through the same lambdas, and torch compiles a piece of code so many times only."""
    torch.compiler.reset()


def wrapped(case: str) -> tuple[Callable[..., None], list[Any], dict[str, Any]]:
    positional, named = arguments_of(case)
    if "rule" in named:
        named = {**named, "rule": Rule(named["rule"]), "order": Order(named["order"])}
    return getattr(ops, CASES[case][0]), positional, named


@EACH_CASE
def test_compiles_without_a_break(case: str) -> None:
    function, positional, named = wrapped(case)
    copies = [a.clone() if isinstance(a, Tensor) else a for a in positional]
    torch.compile(lambda *given: function(*given, **named), fullgraph=True, backend="aot_eager")(*copies)
    function(*positional, **named)
    for eager, compiled in zip(positional, copies, strict=True):
        assert eager is None or same_bits(eager, compiled)


def mutable_tensors(case: str, positional: list[Any]) -> list[Tensor]:
    schema = getattr(torch.ops.mt2o_ext, CASES[case][0]).default._schema
    of = zip(schema.arguments, positional, strict=False)
    return [a for argument, a in of if argument.is_write and argument.name not in SCRATCH and a is not None]


@EACH_CASE
def test_what_was_written_to_has_a_new_version(case: str) -> None:
    function, positional, named = wrapped(case)
    written = mutable_tensors(case, positional)
    assert written
    before = [a._version if isinstance(a, Tensor) else 0 for a in positional]
    function(*positional, **named)
    for argument, version in zip(positional, before, strict=True):
        if isinstance(argument, Tensor) and any(argument is a for a in written):
            assert argument._version > version
        elif isinstance(argument, Tensor) and argument.shape[-1:] != (ops.NUM_CONSTANTS,):
            assert argument._version == version


@pytest.mark.parametrize("case", ["combine", "transfer", "plain step"])
def test_backward_through_an_overwritten_tensor_is_an_error(case: str) -> None:
    function, positional, named = wrapped(case)
    factor = torch.ones((), requires_grad=True)
    product = (factor * positional[0]).sum()  # keeps the tensor for backward
    function(*positional, **named)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


WRONG: dict[str, tuple[str, int, Callable[[Tensor], Tensor], str]] = {
    "combine: shape of out": ("combine", 0, lambda out: out[:2], "out must be [K, P]"),
    "combine: dtype of out": ("combine", 0, Tensor.double, "out must have the dtype of grads, or float32"),
    "combine: dtype of weights": ("combine", 2, Tensor.float, "weights must be contiguous, of shape [3, 2]"),
    "combine: dtype of grads": ("combine", 1, Tensor.int, "grads must be float32, float64, bfloat16 or float16"),
    "combine: columns apart": ("combine", 1, lambda g: g[..., ::2], "rows of grads must be contiguous"),
    "combine: rows not aligned": ("combine", 1, lambda g: g[..., 1:].contiguous(), "a multiple of 16 elements apart"),
    "gram: shape of partials": (
        "gram",
        1,
        lambda p: p[:, :, :5].contiguous(),
        "partials must be contiguous, of shape [2, ",
    ),
    "gram: three dimensions": ("gram", 0, lambda out: out[0], "out must be [B, S, R, R]"),
    "gram: dtype of out": ("gram", 0, Tensor.float, "out must be contiguous, of shape [2, 2, 3, 3]"),
    "gram: fewer others": ("cross gram", 3, lambda o: o[:, :2], "others must have the dtype and the shape of rows"),
    "gram: shorter others": ("cross gram", 3, lambda o: o[..., :-16], "others must have the dtype and the shape of"),
    "gram: dtype of others": ("cross gram", 3, Tensor.double, "others must have the dtype and the shape of rows"),
    "gram: others not aligned": ("cross gram", 3, lambda o: o[..., 1:].contiguous(), "16 elements apart"),
    "gram: partials of pairs": ("cross gram", 1, lambda p: p[..., :6].contiguous(), "partials must be contiguous"),
    "diagonal: four dimensions": ("diagonal", 0, lambda out: out[..., None], "of a diagonal [B, S, R]"),
    "diagonal: partials of pairs": ("diagonal", 1, lambda p: torch.zeros(2, 2, 6).double(), "partials must be contig"),
    "transfer: shape of mix": ("transfer", 1, lambda mix: mix[:2], "mix must be contiguous, of shape [3, 3]"),
    "transfer: dtype of theta": ("transfer", 0, Tensor.half, "theta must be float32 or float64"),
    "finite: shape of flags": ("finite", 0, lambda flags: flags[:2], "found_inf must be contiguous, of shape [3]"),
    "track: shape of memory": ("track", 1, lambda m: m[:, :1], "memory must be [K, T, P] where grads are [K, T, P]"),
    "track: memory of 16 bits": ("track", 1, Tensor.half, "float32, or float64 as grads"),
    "track: dtype of keep": ("track", 2, Tensor.float, "keep must be contiguous, of shape [3, 2]"),
    "track: a row too few": ("track", 4, lambda f: f[:2], "finite must be contiguous, of shape [3]"),
    "feed: last of tasks": ("feed", 1, lambda m: m[:, None], "last must have 2 dimensions, not 3"),
    "feed: shape of now": ("feed", 4, lambda n: n[:2], "now must be contiguous, of shape [3]"),
    "excess: shape of out": ("excess", 0, lambda out: out[:, 0], "out must be [K, S, T]"),
    "excess: a segment too few": ("excess", 0, lambda out: out[:, :1].contiguous(), "out of order or out of range"),
    "drop signs: two keys": ("drop signs", 1, lambda k: k.repeat(2), "key must be one int64"),
    "drop signs: float key": ("drop signs", 1, Tensor.float, "key must be one int64"),
    "priority: shape of out": ("priority", 0, lambda out: out[:16], "out must be [P]"),
    "priority: dtype of out": ("priority", 0, Tensor.double, "out must have the dtype of grads, or float32"),
    "priority: shape of dots": ("priority", 1, lambda dots: dots[:, :2].contiguous(), "dots must be contiguous"),
    "priority: int32 owners": ("priority", 4, Tensor.int, "owners must be contiguous, of shape [1]"),
    "priority: no owners": ("priority", 4, lambda owners: owners[:0], "record 0 is out of range"),
    "priority: shape of records": ("priority", 5, lambda r: r[:, :5].contiguous(), "records must be contiguous"),
    "priority: a layer too many": ("priority", 2, lambda c: c[:1], "record 1 is out of range"),
    "priority: layers not in order": ("priority", 5, lambda r: r.flip(0).contiguous(), "not in the order of layers"),
    "priority: no length": ("priority", 5, lambda r: altered(r, (0, 4), 0), "record 0 is out of range"),
    "priority: too many runs": ("priority", 5, lambda r: altered(r, (1, 5), 1 << 40), "record 1 is out of range"),
    "step: a moment is missing": ("step", 1, lambda m: None, "this rule needs exp_avg"),
    "step: shape of a moment": ("step", 2, lambda m: m[:2], "exp_avg_sq must have the dtype, the shape"),
    "step: dtype of theta": ("step", 0, Tensor.bfloat16, "theta must be float32 or float64"),
    "step: float64 gradients": ("step", 8, Tensor.double, "float64 grads belong to float64 theta"),
    "step: no weights": ("step", 9, lambda w: None, "gradients of several tasks need weights"),
    "step: float32 segments": ("step", 11, Tensor.float, "segments must be contiguous, of shape [2, 12]"),
    "step: low precision of 32 bits": ("step", 5, Tensor.float, "low_precision must be bfloat16 or float16"),
    "step: one flag too many": ("step", 15, lambda f: torch.zeros(4), "found_inf must be float32, [1] or [K]"),
    "step: int flags": ("step", 13, Tensor.int, "active must be contiguous, of shape [3, 2]"),
    "combine: a task too few": ("combine by address", 4, lambda a: a[:, :1], "addresses must be int64 [K, T, S]"),
    "finite: int32 addresses": ("finite by address", 3, Tensor.int, "addresses must be int64 [K, T, S]"),
    "gram: a segment too few": ("gram by address", 5, lambda a: a[..., :1], "addresses must be int64 [K, T, S]"),
    "step: addresses apart": ("step by address", 16, lambda a: a.mT.contiguous().mT, "contiguous along S"),
    "masked step: a mask too few": ("masked step", 17, lambda m: m[:1], "masks must be uint8 [2, "),
    "masked step: bool masks": ("masked step", 17, Tensor.bool, "masks must be uint8 [2, "),
    "masked step: too short": ("masked step", 17, lambda m: m[:, :-1], "masks must be uint8 [2, "),
    "masked step: columns apart": ("masked step", 17, lambda m: m.mT.contiguous().mT, "contiguous along the last dim"),
    "masked step: int whole": ("masked step", 18, Tensor.int, "whole must be contiguous, of shape [2]"),
    "masked step: a mix": ("masked step", 10, lambda m: torch.eye(3).double(), "rows with masks are not blended"),
    "mask: two rows": ("mask", 2, lambda m: m.expand(2, -1), "masks must be uint8 [1, "),
    "mask: dtype of out": ("mask", 0, Tensor.double, "out must have the dtype, the shape and the strides of values"),
    "harmony: float64 scores": ("harmony", 0, Tensor.double, "scores must be float32 [T, P]"),
    "harmony: dtype of values": ("harmony", 2, Tensor.double, "values must be [1, P] of the dtype of grads"),
    "harmony: float32 factors": ("harmony", 3, Tensor.float, "factors must be contiguous, of shape [2]"),
    "harmony: a mask too few": ("harmony", 4, lambda m: m[:1], "masks must be uint8 [2, "),
    "harmony: int32 addresses": ("harmony by address", 7, Tensor.int, "addresses must be int64 [K, T, S]"),
    "exchange: shape of counts": ("exchange", 1, lambda c: c[:1], "counts must be contiguous, of shape [2, "),
    "exchange: shape of state": ("exchange", 2, lambda s: s[:, :4].contiguous(), "state must be contiguous, of shape"),
    "exchange: float64 scores": ("exchange", 3, Tensor.double, "scores must be float32"),
    "exchange: a mask too few": ("exchange", 0, lambda m: m[:1], "masks must be uint8 [2, "),
    "step: two scales": ("step", 14, lambda s: torch.ones(2), "grad_scale must be one float32"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments_are_named(wrong: str) -> None:
    case, position, change, message = WRONG[wrong]
    positional, named = arguments_of(case)
    positional[position] = change(positional[position])
    check_refused(case, positional, named, message)


def check_refused(case: str, positional: list[Any], named: dict[str, Any], message: str) -> None:
    """A RuntimeError that says what is wrong, without the paths of the builder's machine, and nothing has changed."""
    before = [a.clone() if isinstance(a, Tensor) else a for a in positional]
    with pytest.raises(RuntimeError, match=re.escape(message)) as raised:
        getattr(torch.ops.mt2o_ext, CASES[case][0])(*positional, **named)
    assert not re.search(r"(^|\s)/\w", str(raised.value)), raised.value
    for old, new in zip(before, positional, strict=True):
        assert old is None or same_bits(old, new)


def altered(chunks: Tensor, at: tuple[int, int], value: int) -> Tensor:
    copy = chunks.clone()
    copy[at] = value
    return copy


CHUNKS: dict[str, Callable[[Tensor], Tensor]] = {
    "beyond the last column": lambda chunks: altered(chunks, (-1, 2), 1 << 40),
    "end before begin": lambda chunks: altered(chunks, (-1, 2), 0),
    "negative begin": lambda chunks: altered(chunks, (0, 1), -16),
    "begin between groups": lambda chunks: altered(chunks, (0, 1), 8),
    "negative segment": lambda chunks: altered(chunks, (0, 0), -1),
    "not in order": lambda chunks: chunks.flip(0).contiguous(),
    "dtype": Tensor.int,
    "shape": lambda chunks: chunks[:, :2].contiguous(),
    "strides": lambda chunks: chunks.T.contiguous().T,
}


@EACH_CASE
@pytest.mark.parametrize("wrong", CHUNKS)
def test_wrong_chunks_are_refused(case: str, wrong: str) -> None:
    positional, named = arguments_of(case)
    names = [argument.name for argument in getattr(torch.ops.mt2o_ext, CASES[case][0]).default._schema.arguments]
    position = names.index("chunks")
    positional[position] = CHUNKS[wrong](positional[position])
    message = "chunks must be a contiguous int64 tensor [C, 3]" if wrong in ("dtype", "shape", "strides") else "chunk "
    check_refused(case, positional, named, message)


@pytest.mark.parametrize(
    ("case", "position"),
    [
        ("gram", 4), ("cross gram", 4), ("diagonal", 4), ("step", 12), ("combine by address", 3),
        ("finite by address", 2), ("gram by address", 4), ("step by address", 12),
    ],
)  # fmt: skip
def test_a_segment_that_is_not_there_is_refused(case: str, position: int) -> None:
    positional, named = arguments_of(case)
    positional[position] = altered(positional[position], (-1, 0), 2)
    check_refused(case, positional, named, "is out of order or out of range")


def test_an_unknown_rule_is_refused() -> None:
    positional, named = arguments_of("step")
    check_refused("step", positional, {**named, "rule": len(Rule)}, "unknown rule or order")
    check_refused("step", positional, {**named, "order": 2}, "unknown rule or order")


@pytest.mark.parametrize("case", ["combine", "gram", "cross gram", "diagonal", "transfer", "finite", "priority"])
def test_shapes_are_checked_while_tracing(case: str) -> None:
    function, positional, named = wrapped(case)
    position = 1 if case == "transfer" else 0
    positional[position] = positional[position][..., :2].contiguous()
    with pytest.raises(Exception, match=r"must (be|end in) \["):
        torch.compile(lambda *given: function(*given, **named), fullgraph=True, backend="aot_eager")(*positional)
