"""``gram``: inner products of all pairs of rows, per segment, in one read."""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference
from ._registry import changed, compiled, register_fake


def gram_(out: Tensor, partials: Tensor, rows: Tensor, chunks: Tensor, *, centre: bool = False) -> None:
    """out[b, s, i, j] = sum over the columns of segment s of rows[b, i] rows[b, j].

    Args:
        out: float64 [B, S, R, R], written; the sum over S is the Gram matrix of the whole model.
        partials: float64 [B, C, R (R + 1) / 2], scratch: the sums of each chunk, added in order (so the result does not
            depend on the number of threads).
        rows: [B, R, P], R <= 256; float32, float64, bfloat16 or float16.  Products of up to three rows are summed in
            float64 throughout; of more rows in float32 over at most 1024 columns and in float64 across.
        chunks: int64 [C, 3].
        centre: subtract from every column its mean over the R rows first (for the parameters of K subproblems).
    """
    (torch.ops.mt2o_ext.gram_ if compiled(out) else reference.gram_)(out, partials, rows, chunks, centre=centre)
    changed([out, partials])


@register_fake("gram_")
def _(out: Tensor, partials: Tensor, rows: Tensor, chunks: Tensor, *, centre: bool) -> None:
    batch, num_rows, _ = rows.shape
    shape = (batch, out.shape[1], num_rows, num_rows)
    torch._check(out.shape == shape, lambda: f"out must be {list(shape)}, not {list(out.shape)}")
    pairs = (batch, chunks.shape[0], num_rows * (num_rows + 1) // 2)
    torch._check(partials.shape == pairs, lambda: f"partials must be {list(pairs)}, not {list(partials.shape)}")
