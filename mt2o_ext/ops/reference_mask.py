"""The oracle of masks: packed bits, and the views that they make."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["kept", "mask_"]


def kept(masks: Tensor, columns: int) -> Tensor:
    """Bool [T, columns] of masks [T, ceil(columns / 8)]."""
    places = torch.arange(8, dtype=torch.uint8, device=masks.device)
    return ((masks.unsqueeze(-1) >> places) & 1).flatten(-2)[..., :columns].bool()


def mask_(out: Tensor, values: Tensor, masks: Tensor, whole: Tensor | None, chunks: Tensor) -> None:
    """The operator of :func:`mt2o_ext.ops.mask_`."""
    bits = kept(masks, values.shape[1])
    for segment, begin, end in chunks.tolist():
        seen, here = values[:, begin:end], bits[:, begin:end]
        if whole is not None and bool(whole[segment]):
            here = torch.ones_like(here)
        out[:, begin:end] = torch.where(here, seen, torch.zeros_like(seen))
