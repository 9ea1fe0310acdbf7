"""Calls of the operators of family ``judge``, for every backend: rows that are finite, and rows that are not."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

LIMIT = torch.finfo(torch.float32).max


class JudgeCall(NamedTuple):
    """An operator of the family with its arguments; those of the first `written` are written."""

    operator: str
    what: str
    arguments: list[Any]
    options: dict[str, Any]
    written: int


def unwritten(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """A tensor in which a number that nobody writes is seen."""
    return torch.full(shape, math.nan if dtype.is_floating_point else 1, dtype=dtype)


def tables(rows: int, tasks: int, segments: int, *, squares: bool) -> tuple[Tensor, Tensor]:
    """Gram matrices [K, S, T, T], or squares [K, S, T], and losses [K, T]; with several rows not all are finite."""
    generator = torch.Generator().manual_seed(rows + tasks + segments)
    gradients = torch.randn(rows, segments, tasks, tasks + 2, dtype=torch.float64, generator=generator)
    grams = gradients @ gradients.mT
    losses = torch.randn(rows, tasks, dtype=torch.float64, generator=generator).bfloat16().double()
    if squares:
        grams = grams.diagonal(dim1=2, dim2=3).contiguous()
    if rows > 1:
        grams[1].view(-1)[-1] = math.inf
    if rows > 2:
        losses[2, -1] = math.nan
    return grams, losses


def judge_calls(rows: int, tasks: int, segments: int) -> Iterator[JudgeCall]:
    """Calls of ``judge_`` for so many rows, tasks and segments."""
    for squares, apart, together in itertools.product((False, True), repeat=3):
        grams, losses = tables(rows, tasks, segments, squares=squares)
        kinds = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
        scalars = [loss.to(kinds[i % 4]) for i, loss in enumerate(losses.flatten())] if apart else []
        before = torch.zeros(rows)
        before[-1] = 2.0 if rows > 3 else 0.0
        results = [
            unwritten(rows, dtype=torch.float32), unwritten(2, rows, dtype=torch.bool),
            unwritten(rows, tasks) if apart else losses, unwritten(rows, *grams.shape[2:]),
            unwritten(rows, tasks, tasks), unwritten(rows, tasks), unwritten(rows, tasks),
        ]  # fmt: skip
        given = [scalars, grams, torch.tensor([8.0]) if apart else None, before, losses < -1 if apart else None]
        what = f"{rows}x{tasks}x{segments}{', squares' * squares}{', apart' * apart}{', together' * together}"
        yield JudgeCall("judge_", what, results + given, {"limit": LIMIT, "together": together}, 7)
    losses = tables(rows, tasks, 1, squares=True)[1]
    flags = unwritten(2, rows, dtype=torch.bool)
    results = [unwritten(rows, dtype=torch.float32), flags, losses, None, None, unwritten(rows, tasks), None]
    options = {"limit": 0.0, "together": False}
    yield JudgeCall("judge_", f"{rows}x{tasks}, losses alone", [*results, [], *[None] * 4], options, 7)


def settle_calls(rows: int, tasks: int, times: int) -> Iterator[JudgeCall]:
    """Calls of ``settle_`` for weights of so many tensors."""
    losses = tables(rows, tasks, 1, squares=True)[1]
    raw = torch.linspace(-1, 1, rows * tasks * times, dtype=torch.float64).view(rows, -1)
    raw[0, -1] = 1e300
    raw[rows // 2, 0] = math.nan if rows > 1 else 0.5
    for judged, apart, dtype in itertools.product((False, True), (False, True), (torch.float32, torch.float64)):
        flags = torch.arange(2 * rows).view(2, rows) % 3 > 0
        scalars = [loss.float() for loss in losses.flatten()] if apart else []
        results = [
            unwritten(rows, tasks * times), unwritten(rows, tasks * times, dtype=dtype),
            unwritten(2, rows, dtype=torch.bool), unwritten(rows, 3), unwritten(rows, dtype=torch.float32),
            unwritten(rows, tasks) if apart else losses,
        ]  # fmt: skip
        before = torch.zeros(rows)
        before[0] = 1.0 if apart else 0.0
        largest = torch.full((rows, tasks), 0.9, dtype=torch.float64) if judged else None
        given = [raw, scalars, flags if judged else None, before, losses < -1 if apart else None, largest]
        what = f"{rows}x{tasks}x{times} {dtype}{', judged' * judged}{', apart' * apart}"
        options = {"tasks": tasks, "limit": 1e300, "offset": 2, "divisor": 1.25 if apart else 1.0}
        yield JudgeCall("settle_", what, results + given, options, 6)


def count_calls(rows: int, tasks: int) -> Iterator[JudgeCall]:
    """Calls of ``count_``."""
    found = torch.tensor([0.0, 1.0, 1.0, 4.0, 0.0])[:rows].contiguous()
    refusals = torch.zeros(rows, 3, dtype=torch.float64)
    refusals[-1] = torch.tensor([2.0, 1.0, -0.25])
    weights = torch.linspace(-2, 1, rows * tasks, dtype=torch.float64).view(rows, tasks)
    finite = torch.arange(rows) % 2 == 0
    for told, weighted, together, expected in itertools.product((False, True), repeat=4):
        counts, table = torch.arange(rows), torch.arange(4.0 * rows, dtype=torch.float64).view(rows, 4)
        early = [weights, finite] if weighted else [None, None]
        options = {"offset": 2, "together": together, "expected": expected}
        what = f"{rows}x{tasks}{', told' * told}{', weighted' * weighted}, {options}"
        yield JudgeCall("count_", what, [counts, table, found, refusals if told else None, *early], options, 2)


def all_calls() -> Iterator[JudgeCall]:
    """Calls of the whole family: more scalars than travel with one launch, more segments than there are lanes."""
    for rows, tasks, segments in ((1, 1, 1), (1, 3, 40), (5, 2, 70), (4, 33, 3)):
        yield from judge_calls(rows, tasks, segments)
        yield from settle_calls(rows, tasks, 1 if segments < 40 else 3)
        yield from count_calls(rows, tasks)


def copied(arguments: list[Any]) -> list[Any]:
    """Copies of the tensors, also of those in lists."""
    return [
        a.clone() if isinstance(a, Tensor) else [b.clone() for b in a] if isinstance(a, list) else a for a in arguments
    ]
