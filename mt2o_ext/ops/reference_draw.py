"""Family ``draw`` in plain torch; see `mt2o_ext.ops.reference`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# SplitMix64 in signed 64-bit integers, which wrap the same on every device.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def draw_(out: Tensor, key: Tensor, ids: Sequence[Tensor], *, stream: int) -> None:
    """The operator of :func:`mt2o_ext.ops.draw_`."""
    mixed = _mix(key.reshape(()) + _wrapped(_GOLDEN * (stream + 1)))
    for each in ids:
        mixed = _mix((each + 1) * _GOLDEN + mixed)
    out.copy_(mixed if out.dtype == torch.int64 else (_shifted(mixed, 12).double() + 0.5) * 2.0**-52)


def _wrapped(number: int) -> int:
    return (number + 2**63) % 2**64 - 2**63


def _shifted(bits: Tensor, count: int) -> Tensor:
    """A logical shift to the right: int64 has only the arithmetic one."""
    return (bits >> count) & (2 ** (64 - count) - 1)


def _mix(bits: Tensor) -> Tensor:
    bits = (bits ^ _shifted(bits, 30)) * _FIRST
    bits = (bits ^ _shifted(bits, 27)) * _SECOND
    return bits ^ _shifted(bits, 31)
