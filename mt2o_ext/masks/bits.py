"""Packed masks: eight elements in a byte."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["pack", "unpack"]


def pack(mask: Tensor) -> Tensor:
    """Return bool [..., n] as uint8 [..., ceil(n / 8)]; element i is bit i mod 8 of byte i // 8, what is over is 0."""
    if mask.dtype != torch.bool:
        raise TypeError(f"expected a mask of bool, got {mask.dtype}: compare it with something")
    missing = -mask.shape[-1] % 8
    bits = torch.nn.functional.pad(mask, (0, missing)).unflatten(-1, (-1, 8)).to(torch.uint8)
    return (bits << _places(mask.device)).sum(-1, dtype=torch.uint8)


def unpack(packed: Tensor, size: int) -> Tensor:
    """Return the bool [..., size] of which `pack` made uint8 [..., ceil(size / 8)]."""
    bits = (packed.unsqueeze(-1) >> _places(packed.device)) & 1
    return bits.flatten(-2)[..., :size].bool()


def _places(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)
