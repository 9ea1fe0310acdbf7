"""From strengths to the task that owns each channel (Jeong & Yoon, CVPR 2024, Eq. 7 and 10)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["TIE", "channel_owners"]

TIE = 1e-6
"""Strengths this close to one another, relative to the larger, are a tie in the general mode."""


class LayerSums:
    """Sums over the channels of each layer, in one fixed order on every device.

    Args:
        sizes: the number of channels of each layer.
        device: of the strengths.
    """

    def __init__(self, sizes: Sequence[int], device: torch.device) -> None:
        total, widest = sum(sizes), max(sizes)
        index = torch.full((len(sizes), widest), total, dtype=torch.int64)  # the column behind the last: zero
        layer = []
        begin = 0
        for number, size in enumerate(sizes):
            index[number, :size] = torch.arange(begin, begin + size, dtype=torch.int64)
            layer += [number] * size
            begin += size
        self.index = index.to(device)
        self.layer = torch.tensor(layer, dtype=torch.int64).to(device)

    def padded(self, values: Tensor, fill: float) -> Tensor:
        """[..., N] -> [..., layers, widest]."""
        return torch.cat([values, values.new_full((*values.shape[:-1], 1), fill)], dim=-1)[..., self.index]


def channel_owners(strengths: Tensor, layers: LayerSums, *, faithful: bool) -> Tensor:
    """The task with the largest share of its strength in each channel, int64 [N]; -1: none.

    Every task's strengths are divided by their sum over the channels of the layer.  A sum of zero gives shares of zero;
    a channel whose strengths are not all finite (a running variance of NaN) has no owner and counts in no sum.

    Args:
        strengths: float64 [T, N] of the channels of all layers, one after another.
        layers: the channels of each layer.
        faithful: ties go to the lowest task, and a layer that one task would own whole has no owners, as the
            authors' code is described to do; otherwise ties within ``TIE`` have no owner.
    """
    usable = strengths.isfinite().all(dim=0)
    strengths = torch.where(usable, strengths, 0.0)
    sums = layers.padded(strengths, 0.0).sum(dim=-1)[:, layers.layer]
    shares = torch.where(sums > 0, strengths / sums, 0.0)
    top = shares.amax(dim=0)
    num_tasks = len(strengths)
    task = torch.arange(num_tasks, dtype=torch.int64, device=strengths.device).unsqueeze(1)
    first = torch.where(shares == top, task, num_tasks).amin(dim=0)
    if not faithful:
        others = torch.where(task == first, 0.0, shares).amax(dim=0) if num_tasks > 1 else torch.zeros_like(top)
        return torch.where(usable & (top - others > TIE * top), first, -1)
    owners = torch.where(usable, first, -1)
    of_layer = layers.padded(owners, -1)
    least = torch.where(of_layer < 0, num_tasks, of_layer).amin(dim=-1)
    single = (of_layer.amax(dim=-1) == least)[layers.layer]
    return torch.where(single, -1, owners)
