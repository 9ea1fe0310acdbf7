"""``transfer``: blends the rows of the parameters in place."""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference
from ._registry import changed, compiled, register_fake


def transfer_(theta: Tensor, mix: Tensor, chunks: Tensor) -> None:
    """theta <- mix theta, column by column (MT2O, reconstructed: the transfer between subproblems).

    Computed as theta_k + sum_j (mix - I)_kj (theta_j - theta_0): rounding errors have the size of the differences
    between rows, what all rows have in common passes through unchanged, and a row with mix_k = e_k keeps its bits.  (An
    infinity or NaN in row 0 reaches every row that takes from others at all.)

    Args:
        theta: [K, P], float32 or float64, K <= 256.
        mix: float64 [K, K], or [S, K, K] with one matrix for each segment; its rows must sum to one.
        chunks: int64 [C, 3]; columns outside of them are left alone.
    """
    (torch.ops.mt2o_ext.transfer_ if compiled(theta) else reference.transfer_)(theta, mix, chunks)
    changed([theta])


@register_fake("transfer_")
def _(theta: Tensor, mix: Tensor, chunks: Tensor) -> None:
    rows = theta.shape[0]
    torch._check(
        mix.dim() in (2, 3) and mix.shape[-2:] == (rows, rows),
        lambda: f"mix must end in [{rows}, {rows}], not {list(mix.shape)}",
    )
