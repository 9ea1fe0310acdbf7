"""What the kernels do not hold, and options that cannot be, are refused when an optimizer is made."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mt2o_ext import ConnectionStrengthFused, MT2OFused, WeightedFused, _native
from mt2o_ext.base import SGD, Adam, AdamW
from mt2o_ext.ops import limits

HEADER = Path(__file__).parents[2] / "csrc" / "core" / "arguments.h"


def one() -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(2))]


def group(**options: Any) -> list[dict[str, Any]]:
    return [{"params": one(), **options}]


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "K": (lambda: MT2OFused(one(), num_tasks=2, num_subproblems=257), ValueError, "num_subproblems <= 256, got 257"),
    "T of a Gram matrix": (lambda: WeightedFused(one(), num_tasks=257, weighting="UPGrad"), ValueError, "<= 256"),
    "T of rows": (lambda: WeightedFused(one(), num_tasks=1025, weighting="GradDrop"), ValueError, "<= 1024"),
    "T kept": (lambda: WeightedFused(one(), num_tasks=1025, accumulate=True), ValueError, "<= 1024"),
    "owners": (
        lambda: ConnectionStrengthFused(one(), connections=[], num_tasks=65, total_steps=1), ValueError, "<= 64, got 65"
    ),
    "betas": (lambda: WeightedFused(one(), num_tasks=2, base=Adam(betas=(0.9, 0.9, 0.9))), ValueError, "two numbers"),  # type: ignore[arg-type]
    "eps": (lambda: WeightedFused(one(), num_tasks=2, base=AdamW(eps=float("nan"))), ValueError, "expected eps finite"),
    "dampening": (
        lambda: WeightedFused(one(), num_tasks=2, base=SGD(momentum=0.9, dampening=float("nan"))),
        ValueError,
        "dampening",
    ),
    "lr": (lambda: WeightedFused(one(), num_tasks=2, lr=float("inf")), ValueError, "expected lr finite"),
    "lr as text": (lambda: WeightedFused(one(), num_tasks=2, lr="0.1"), TypeError, "expected lr as a number"),  # type: ignore[arg-type]
    "decay as text": (lambda: WeightedFused(group(weight_decay="0"), num_tasks=2), TypeError, "as a number"),
    "transfer": (lambda: MT2OFused(group(transfer="no"), num_tasks=2), TypeError, "True or False"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_refused_when_it_is_made(what: str) -> None:
    make, error, text = REFUSED[what]
    with pytest.raises(error, match=text):
        make()


def test_limits_are_those_of_the_kernels() -> None:
    found = dict(re.findall(r"constexpr int64_t (max_\w+) = (\d+);", HEADER.read_text()))
    ours = {"max_rows": limits.MAX_ROWS, "max_tasks": limits.MAX_TASKS, "max_owners": limits.MAX_OWNERS}
    assert {name: int(value) for name, value in found.items()} == ours
    if _native.C is not None:
        assert (_native.C.max_rows, _native.C.max_tasks) == (limits.MAX_ROWS, limits.MAX_TASKS)


def test_weightings_of_losses_take_any_number_of_tasks() -> None:
    optimizer = WeightedFused(p := one(), num_tasks=1100)
    optimizer.step(lambda: [p[0].sum()] * 1100)
    assert (p[0] != 0).all()
