"""``finite``: which rows hold a gradient that is infinite or NaN; one read, before anything is written."""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference
from ._registry import changed, check_addresses, compiled, register_fake


def finite_(found_inf: Tensor, grads: Tensor, chunks: Tensor, addresses: Tensor | None = None) -> None:
    """Sets found_inf[k] = 1 where any of grads[k] is infinite or NaN; leaves the other entries as they are.

    Args:
        found_inf: float32 [K].
        grads: [K, T, P]; float32, float64, bfloat16 or float16.
        chunks: int64 [C, 3]; columns outside of them are not looked at.
        addresses: int64 [K, T, S] from :func:`address_table`: where the gradients lie, instead of in ``grads``, of
            which only the shape, the dtype and the device count then; or None.
    """
    (torch.ops.mt2o_ext.finite_ if compiled(grads) else reference.finite_)(found_inf, grads, chunks, addresses)
    changed([found_inf])


@register_fake("finite_")
def _(found_inf: Tensor, grads: Tensor, chunks: Tensor, addresses: Tensor | None = None) -> None:
    check_addresses(addresses, grads, "grads")
    torch._check(
        found_inf.shape == grads.shape[:1], lambda: f"found_inf must be [{grads.shape[0]}], not {list(found_inf.shape)}"
    )
