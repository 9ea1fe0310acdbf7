"""``harmony`` and ``exchange``: scores of the elements of masks, and the bits that change places by them."""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference_mask
from ._registry import changed, check_addresses, check_masks, compiled, register_fake

__all__ = ["EXCHANGE_BINS", "EXCHANGE_STATE", "exchange_", "harmony_"]

EXCHANGE_BINS, EXCHANGE_STATE = 32, 5  # columns of the scratch of `exchange_`


def harmony_(
    scores: Tensor,
    grads: Tensor,
    values: Tensor,
    factors: Tensor,
    masks: Tensor,
    whole: Tensor | None,
    chunks: Tensor,
    addresses: Tensor | None = None,
    *,
    gamma: float,
    magnitude: bool,
    dense: bool,
) -> None:
    """Scores of each element for each task (HarmoDT, arXiv 2405.18080), without a stored mean of the gradients.

    Where the task's mask has the element: harmony, I + gamma mean g, of masked gradients, with I = g^2 or the size of
    theta.  Where it has not: agreement, mean g.

    Args:
        scores: float32 [T, P], receives them.
        grads: [1, T, P], of each task at what it sees, not masked; float32, float64, bfloat16 or float16.
        values: [1, P] of the same dtype: the parameters.
        factors: float64 [T], multiply the gradients.
        masks: uint8 [T, ceil(P / 8)].
        whole: bool [S], tensors whose gradients are not masked; or None.
        chunks: int64 [C, 3].
        addresses: int64 [1, T, S] from :func:`address_table`: where the gradients lie, instead of in ``grads``, of
            which only the shape, the dtype and the device count then; or None.
        gamma: of the agreement against the importance.
        magnitude: I is the size of theta, not g^2.
        dense: agreement is of gradients that are not masked.
    """
    function = torch.ops.mt2o_ext.harmony_ if compiled(scores) else reference_mask.harmony_
    function(
        scores, grads, values, factors, masks, whole, chunks, addresses, gamma=gamma, magnitude=magnitude, dense=dense
    )
    changed([scores])


@register_fake("harmony_")
def _(
    scores: Tensor,
    grads: Tensor,
    values: Tensor,
    factors: Tensor,
    masks: Tensor,
    whole: Tensor | None,
    chunks: Tensor,
    addresses: Tensor | None = None,
    *,
    gamma: float,
    magnitude: bool,
    dense: bool,
) -> None:
    check_addresses(addresses, grads, "grads")
    torch._check(scores.shape == grads.shape[1:], lambda: f"scores must be {list(grads.shape[1:])}")
    check_masks(masks, grads.shape[1], grads.shape[2])


def exchange_(masks: Tensor, counts: Tensor, state: Tensor, scores: Tensor, chunks: Tensor, *, amount: int) -> None:
    """Clears and sets as many bits of each mask, exactly: those of the smallest scores inside, of the largest outside.

    Of equal scores the first columns are taken.  Where there are fewer bits to clear, or to set, as many as there are.

    Args:
        masks: uint8 [T, ceil(P / 8)], changed.
        counts: int32 [T, C, EXCHANGE_BINS]: scratch.
        state: int64 [T, EXCHANGE_STATE]: scratch.
        scores: float32 [T, P], no NaN; P < 2^32.
        chunks: int64 [C, 3]: only columns in them are looked at.
        amount: of bits, >= 0.
    """
    function = torch.ops.mt2o_ext.exchange_ if compiled(scores) else reference_mask.exchange_
    function(masks, counts, state, scores, chunks, amount=amount)
    changed([masks])


@register_fake("exchange_")
def _(masks: Tensor, counts: Tensor, state: Tensor, scores: Tensor, chunks: Tensor, *, amount: int) -> None:
    check_masks(masks, scores.shape[0], scores.shape[1])
