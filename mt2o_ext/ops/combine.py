"""``combine``: task gradients and weights -> one gradient per subproblem."""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference
from ._registry import changed, check_addresses, compiled, register_fake


def combine_(out: Tensor, grads: Tensor, weights: Tensor, chunks: Tensor, addresses: Tensor | None = None) -> None:
    """out[k] = sum_t weights[k, t] grads[k, t].

    Args:
        out: [K, P], written; dtype of ``grads``, or float32 where those have 16 bits.
        grads: [K, T, P]; float32, float64, bfloat16 or float16.  Sums of 16-bit gradients are taken in float32.
        weights: float64 [K, T].
        chunks: int64 [C, 3]; columns outside of them are not written.
        addresses: int64 [K, T, S] from :func:`address_table`: where the gradients lie, instead of in ``grads``, of
            which only the shape, the dtype and the device count then; or None.
    """
    (torch.ops.mt2o_ext.combine_ if compiled(out) else reference.combine_)(out, grads, weights, chunks, addresses)
    changed([out])


@register_fake("combine_")
def _(out: Tensor, grads: Tensor, weights: Tensor, chunks: Tensor, addresses: Tensor | None = None) -> None:
    check_addresses(addresses, grads, "grads")
    rows, tasks, columns = grads.shape
    torch._check(out.shape == (rows, columns), lambda: f"out must be [{rows}, {columns}], not {list(out.shape)}")
    torch._check(
        weights.shape == (rows, tasks), lambda: f"weights must be [{rows}, {tasks}], not {list(weights.shape)}"
    )
