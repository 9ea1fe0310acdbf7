"""Strengths written out, one output channel after another."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mt2o_ext.ops import PriorityRecord
from mt2o_ext.priority import TaskBatchNorm, TaskGroupNorm, TaskNorm


def randomised(norm: nn.Module) -> TaskNorm:
    """Affine parameters and statistics that differ between tasks and channels."""
    assert isinstance(norm, TaskNorm)
    with torch.no_grad():
        for p in norm.parameters():
            p.uniform_(-2.0, 2.0)
        for name, buffer in norm.named_buffers():
            if name.endswith("var"):
                buffer.uniform_(0.5, 2.0)
    return norm


def filters(layer: nn.Module) -> list[Tensor]:
    """All weights that make each output channel, float64."""
    weight = layer.weight.detach().double()
    if not isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        return list(weight)
    inputs, outputs = weight.shape[0] // layer.groups, weight.shape[1]
    return [
        weight[group * inputs : (group + 1) * inputs, output]
        for group in range(layer.groups)
        for output in range(outputs)
    ]


def explicit_strengths(layer: nn.Module, norm: TaskNorm) -> Tensor:
    """Eq. 6 and its generalisations, float64 [T, N]."""
    rows = []
    for task, one in enumerate(norm.norms):
        row = []
        for p, weights in enumerate(filters(layer)):
            gamma = 1.0 if one.weight is None else one.weight[p].item()
            variance = 1.0
            if isinstance(norm, TaskBatchNorm):
                variance = one.running_var[p].item() + one.eps
            if isinstance(norm, TaskGroupNorm):
                group = p // (one.num_channels // one.num_groups)
                variance = norm.group_var[task, group].item() + one.eps
            row.append(gamma**2 / variance * weights.square().sum().item())
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


def channel_of_elements(records: list[PriorityRecord], numel: int) -> Tensor:
    """The channel of each element of a tensor's memory, by its records."""
    channel = torch.full((numel,), -1)
    for r in records:
        of = torch.arange(r.first_channel, r.first_channel + r.channels)
        channel[r.offset : r.offset + r.numel] = of[None, :, None].expand(r.runs, -1, r.length).reshape(-1)
    return channel
