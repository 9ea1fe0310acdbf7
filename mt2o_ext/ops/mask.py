"""``mask``: a row as a task sees it, with zeros outside of the task's mask."""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference_mask
from ._registry import changed, check_masks, compiled, register_fake

__all__ = ["mask_"]


def mask_(out: Tensor, values: Tensor, masks: Tensor, whole: Tensor | None, chunks: Tensor) -> None:
    """Writes out = values where the mask has a bit, and 0 elsewhere.

    Args:
        out: like ``values``.
        values: [1, P]; float32, float64, bfloat16 or float16.
        masks: uint8 [1, ceil(P / 8)]: of column p, bit p mod 8 of byte p // 8.
        whole: bool [S], tensors that are copied whole; or None.
        chunks: int64 [C, 3].
    """
    (torch.ops.mt2o_ext.mask_ if compiled(values) else reference_mask.mask_)(out, values, masks, whole, chunks)
    changed([out])


@register_fake("mask_")
def _(out: Tensor, values: Tensor, masks: Tensor, whole: Tensor | None, chunks: Tensor) -> None:
    torch._check(out.shape == values.shape, lambda: f"out must be {list(values.shape)}, not {list(out.shape)}")
    check_masks(masks, 1, values.shape[-1])
