"""Packed masks: eight elements in a byte."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_count

__all__ = ["pack", "unpack"]


def pack(mask: Tensor) -> Tensor:
    """Return bool [..., n] as uint8 [..., ceil(n / 8)]; element i is bit i mod 8 of byte i // 8, what is over is 0."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.dim() == 0:
        kind = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"expected a mask of bool [..., n], got {kind}: compare a tensor with something")
    missing = -mask.shape[-1] % 8
    bits = torch.nn.functional.pad(mask, (0, missing)).unflatten(-1, (-1, 8)).to(torch.uint8)
    return (bits << _places(mask.device)).sum(-1, dtype=torch.uint8)


def unpack(packed: Tensor, size: int) -> Tensor:
    """Return the bool [..., size] of which `pack` made uint8 [..., ceil(size / 8)]."""
    if not isinstance(packed, Tensor) or packed.dtype != torch.uint8 or packed.dim() == 0:
        kind = f"{packed.dtype} {list(packed.shape)}" if isinstance(packed, Tensor) else type(packed).__name__
        raise TypeError(f"expected packed masks of uint8 [..., bytes], got {kind}: take what `pack` made")
    if check_count("size", size, 0) > 8 * packed.shape[-1]:
        raise ValueError(f"expected a size <= {8 * packed.shape[-1]}, got {size}: pass that of the packed mask")
    bits = (packed.unsqueeze(-1) >> _places(packed.device)) & 1
    return bits.flatten(-2)[..., :size].bool()


def _places(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)
