"""``gram``: inner products of rows, per segment, in one read: all pairs, two sets of rows, or squares alone."""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference
from ._registry import changed, check_addresses, compiled, register_fake


def gram_accuracy(dtype: torch.dtype) -> float:
    """Relative error of the inner products that `gram_` makes of rows of this dtype: 2^-23, of float64 rows 2^-52."""
    return torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps


def length_accuracy(dtype: torch.dtype) -> float:
    """Relative error of |J'w|^2 for gradients of this dtype, beside sum_t (w_t |g_t|)^2.

    At best `gram_accuracy`; where rows of 16 bits cancel, the square of their own rounding is left (bfloat16: 2^-14,
    float16: 2^-20).
    """
    return max(gram_accuracy(dtype), torch.finfo(dtype).eps ** 2)


def gram_(
    out: Tensor,
    partials: Tensor,
    rows: Tensor,
    others: Tensor | None,
    chunks: Tensor,
    addresses: Tensor | None = None,
    *,
    centre: bool = False,
    diagonal: bool = False,
) -> None:
    """out[b, s, i, j] = sum over the columns of segment s of rows[b, i] others[b, j].

    Up to three rows, and a diagonal, are summed in float64 throughout; more rows in float32 over at most 1024 columns
    and in float64 across.  No product of float32 rows vanishes or overflows: where the squares of a row would, over
    these columns, the row is divided by a power of two first.  (Squares of float64 rows must be float64 numbers.)  An
    infinity or a NaN shows in the products of its row and in no others; only centring spreads it over all rows.

    Args:
        out: float64 [B, S, R, R], written; the sum over S is the Gram matrix of the whole model.  Of a diagonal
            [B, S, R].
        partials: float64 [B, C, N], scratch: the N sums of each chunk, added in order (so the result does not depend
            on the number of threads); N = R (R + 1) / 2, with others R R, of a diagonal R.
        rows: [B, R, P], R <= 256; float32, float64, bfloat16 or float16.
        others: a second set of rows, of the shape and the dtype of ``rows``; None: the rows themselves.
        chunks: int64 [C, 3].
        addresses: int64 [B, R, S] from :func:`address_table`: where the rows lie, instead of in ``rows``, of which only
            the shape, the dtype and the device count then; or None.  Not with others, and not centred.
        centre: subtract from every column its mean over the R rows first (for the parameters of K subproblems), and
            over the others.
        diagonal: only the products j = i: squares of rows, or of each row with its other.
    """
    function = torch.ops.mt2o_ext.gram_ if compiled(out) else reference.gram_
    function(out, partials, rows, others, chunks, addresses, centre=centre, diagonal=diagonal)
    changed([out, partials])


@register_fake("gram_")
def _(
    out: Tensor,
    partials: Tensor,
    rows: Tensor,
    others: Tensor | None,
    chunks: Tensor,
    addresses: Tensor | None = None,
    *,
    centre: bool,
    diagonal: bool,
) -> None:
    check_addresses(addresses, rows, "rows", out.shape[1])
    torch._check(
        addresses is None or (others is None and not centre),
        lambda: "rows behind addresses are neither centred nor multiplied with others",
    )
    batch, num_rows, _ = rows.shape
    torch._check(
        others is None or others.shape == rows.shape,
        lambda: f"others must be {list(rows.shape)}, as rows, not {None if others is None else list(others.shape)}",
    )
    shape = (batch, out.shape[1], num_rows) if diagonal else (batch, out.shape[1], num_rows, num_rows)
    torch._check(out.shape == shape, lambda: f"out must be {list(shape)}, not {list(out.shape)}")
    sums = num_rows * (num_rows + 1) // 2 if others is None else num_rows * num_rows
    scratch = (batch, chunks.shape[0], num_rows if diagonal else sums)
    torch._check(partials.shape == scratch, lambda: f"partials must be {list(scratch)}, not {list(partials.shape)}")
