"""Entries of ``optimizer.state`` and of state dicts: one table of keys, and one check of values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .base import BASE_RULES
from .ops import SQUARES
from .sharding import local_of

__all__ = ["ENTRIES", "check_entry", "generator_state", "member", "member_dict", "tensors_of"]


@dataclass(frozen=True)
class Entry:
    """Kind and range of a value.

    Attributes:
        kind: "real" (floating-point), "count" (whole numbers, of any real dtype) or "bytes" (uint8).
        low, high: the range of its numbers.
    """

    kind: str
    low: float = -math.inf
    high: float = math.inf


COUNT = Entry("count", 0)
SQUARE = Entry("real", 0)
REAL = Entry("real")

ENTRIES = {
    # of a parameter
    "step": COUNT,
    **{
        key: SQUARE if buffer in SQUARES else REAL
        for rule in BASE_RULES.values()
        for key, buffer in rule.state_keys().items()
    },
    "ema": REAL,
    "transfer_base": REAL,
    "master": REAL,
    "subproblems": REAL,
    "vertices": REAL,
    # of the optimizer
    "skipped": COUNT,
    "last_losses": REAL,
    "steps": COUNT,
    "epoch": COUNT,
    "length": COUNT,
    "count": COUNT,
    "initial_lr": SQUARE,
    "preferences": Entry("real", 0, 1),
    "points": Entry("real", 0, 1),
    "concentration": Entry("real", math.ulp(0.0)),
    "generator": Entry("bytes"),
    "phase": Entry("count", 0, 2),
    "phases": Entry("count", 1, 2),
    "shares": Entry("real", 0, 1),
    "projected": COUNT,
    "conflicts": COUNT,
    "masks": Entry("bytes"),
    "exchanged": COUNT,
}
WORDS = {"real": "real numbers", "count": "whole numbers", "bytes": "bytes"}


def check_entry(key: str, value: Any, shape: Sequence[int] | None, where: str) -> Tensor:
    """The value as a tensor, if it is as the table says of this key.

    Args:
        key: in ``ENTRIES``.
        value: a tensor, or a number.
        shape: that the value should have; None: any.
        where: whose value it is, for the message.

    Raises:
        TypeError: for a value of another kind.
        ValueError: for another shape, and for numbers out of range.
    """
    entry = ENTRIES[key]
    expected = f"expected `{key}` of {where} as {WORDS[entry.kind]}"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = torch.tensor(float(value), dtype=torch.float64)
    if not isinstance(value, Tensor):
        raise TypeError(f"{expected}, got {value!r:.80}")
    if value.is_complex() or value.dtype == torch.bool or value.layout != torch.strided:
        raise TypeError(f"{expected}, got {value.dtype} with layout {value.layout}")
    if value.device.type == "meta":
        raise ValueError(f"{expected}, got a tensor without values (on meta)")
    if entry.kind == "bytes" and value.dtype != torch.uint8:
        raise TypeError(f"{expected} (uint8), got {value.dtype}")
    one = key == "step" and shape is not None and value.numel() == math.prod(shape)  # a 1-element tensor is a number
    if shape is not None and tuple(value.shape) != tuple(shape) and not one:
        raise ValueError(
            f"{expected} of shape {list(shape)}, got {list(value.shape)}: it belongs to another number of subproblems "
            "or to another model"
        )
    _check_numbers(entry, value, expected)
    return value


def _check_numbers(entry: Entry, value: Tensor, expected: str) -> None:
    if value.numel() == 0:
        return
    numbers = local_of(value.detach())
    if numbers.numel() == 0:
        return
    if numbers.is_floating_point() and bool(numbers.isnan().any()):
        raise ValueError(f"{expected}, got NaN")
    if (
        entry.kind == "count"
        and numbers.is_floating_point()
        and bool((numbers != numbers.floor()).logical_or(numbers.isinf()).any())
    ):
        raise ValueError(f"{expected}, got {numbers.flatten()[0].item()}")
    if entry.low > -math.inf or entry.high < math.inf:
        least, most = float(numbers.min()), float(numbers.max())
        if least < entry.low or most > entry.high:
            raise ValueError(f"{expected} in [{entry.low:g}, {entry.high:g}], got {least:g} .. {most:g}")


def member(table: dict[str, Any], key: str, shape: Sequence[int] | None, where: str) -> Tensor:
    """One entry of a dict, checked as by `check_entry`.

    Raises:
        TypeError: for a value of another kind.
        ValueError: for a value that is missing, out of range or of another shape.
    """
    if table.get(key) is None:
        raise ValueError(f"expected `{key}` of {where}, got none: it belongs to another optimizer")
    return check_entry(key, table[key], shape, where)


def member_dict(table: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    """One entry of a dict that is a dict itself."""
    if not isinstance(table.get(key), dict):
        raise TypeError(f"expected `{key}` of {where} as a dict, got {table.get(key)!r:.80}")
    found: dict[str, Any] = table[key]
    return found


def tensors_of(table: dict[str, Any], key: str, where: str) -> dict[str, Tensor]:
    """One entry of a dict that is a dict of tensors with values, none of them NaN."""
    found = member_dict(table, key, where)
    for name, tensor in found.items():
        if not isinstance(tensor, Tensor) or tensor.is_complex() or tensor.device.type == "meta":
            got = f"{tensor.dtype} on {tensor.device}" if isinstance(tensor, Tensor) else f"{tensor!r:.80}"
            raise TypeError(f"expected `{key}` of {where} as a dict of real tensors, got {name}: {got}")
        if tensor.is_floating_point() and bool(tensor.isnan().any()):
            raise ValueError(f"expected `{key}` of {where} as numbers, got NaN in {name}")
    return found


def generator_state(table: dict[str, Any], generator: torch.Generator, where: str) -> Tensor:
    """The state of a generator, on the host, that fits this one."""
    state = member(table, "generator", None, where).cpu()
    try:
        torch.Generator(generator.device).set_state(state)
    except RuntimeError as error:
        raise ValueError(f"expected `generator` of {where} as the state of a generator of this kind: {error}") from None
    return state
