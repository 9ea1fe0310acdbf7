"""``draw``: random numbers that are functions of a key, a stream and ids, alike on every device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import reference_draw as reference
from ._registry import changed, compiled, register_fake


def draw_(out: Tensor, key: Tensor, ids: Sequence[Tensor], *, stream: int) -> None:
    """Fills a tensor with random numbers.

    Each is a hash (SplitMix64; Steele, Lea and Flood 2014) of the key, the stream and its ids.

    Args:
        out: of up to four dimensions, contiguous; int64: all 64 bits are random; float64: uniform in (0, 1).
        key: int64 [].
        ids: up to four, int64 of the shape of ``out`` (as ``expand`` makes them).
        stream: one number for each purpose.
    """
    (torch.ops.mt2o_ext.draw_ if compiled(out) else reference.draw_)(out, key, ids, stream=stream)
    changed([out])


@register_fake("draw_")
def _(out: Tensor, key: Tensor, ids: Sequence[Tensor], *, stream: int) -> None:
    torch._check(
        all(each.shape == out.shape for each in ids),
        lambda: f"ids must be {list(out.shape)}, as out, not {[list(each.shape) for each in ids]}",
    )
