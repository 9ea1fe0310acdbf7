"""The oracle of masks: packed bits, and the views that they make."""

from __future__ import annotations

import torch
from torch import Tensor

from .reference_gradients import gathered

__all__ = ["exchange_", "harmony_", "kept", "mask_"]


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
    """The operator of :func:`mt2o_ext.ops.harmony_`."""
    wide = torch.float64 if grads.dtype == torch.float64 else torch.float32
    grads, bits = gathered(grads, addresses, chunks), kept(masks, grads.shape[2])
    for segment, begin, end in chunks.tolist():
        own = bits[:, begin:end]
        counted = own if whole is None or not bool(whole[segment]) else torch.ones_like(own)
        g = grads[0, :, begin:end].to(wide) * factors.to(wide)[:, None]
        masked = torch.where(counted, g, torch.zeros_like(g))
        outside = g if dense else masked
        mean, importance = masked.mean(0), values[:, begin:end].to(wide).abs() if magnitude else masked.square()
        found = torch.where(own, importance + gamma * mean * masked, outside.mean(0) * outside)
        scores[:, begin:end] = found.to(scores.dtype)


def exchange_(masks: Tensor, counts: Tensor, state: Tensor, scores: Tensor, chunks: Tensor, *, amount: int) -> None:
    """The operator of :func:`mt2o_ext.ops.exchange_`."""
    columns = [torch.arange(begin, end, dtype=torch.int64, device=masks.device) for _, begin, end in chunks.tolist()]
    if not columns:
        return
    places = torch.cat(columns)
    for task, (bits, own) in enumerate(zip(kept(masks, masks.shape[1] * 8), scores[:, places], strict=True)):
        inside = bits[places]
        number = min(amount, int(inside.sum()), int((~inside).sum()))
        leaving = places[inside][own[inside].add(0.0).argsort(stable=True)[:number]]
        entering = places[~inside][own[~inside].neg().add(0.0).argsort(stable=True)[:number]]
        bits[leaving], bits[entering] = False, True
        weights = 2 ** torch.arange(8, dtype=torch.int64, device=masks.device)
        masks[task] = (bits.unflatten(0, (-1, 8)) * weights).sum(1).to(torch.uint8)
