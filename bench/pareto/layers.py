"""Layers that hold R copies side by side: parameters [R, ...], inputs [R, B, ...].

They do what SubproblemBank does through vmap, without its cost, which on nets of a few thousand parameters is as much
as the training itself. Every arm runs on them alike, with R = 1 where a method has one net.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Linear(nn.Module):
    """x [R, ..., inputs] -> [R, ..., outputs], with torch's initial values."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        one = nn.Linear(inputs, outputs)
        self.weight = nn.Parameter(one.weight.detach()[None].clone())
        self.bias = nn.Parameter(one.bias.detach()[None].clone())

    def forward(self, x: Tensor) -> Tensor:
        out = torch.baddbmm(self.bias.unsqueeze(1), x.flatten(1, -2), self.weight.mT)
        return out.view(*x.shape[:-1], -1)


class Conv2d(nn.Module):
    """x [R, B, channels, h, w], no padding. For R > 1 a product of matrices: torch's grouped convolution is slower."""

    def __init__(self, channels: int, outputs: int, size: int) -> None:
        super().__init__()
        one = nn.Conv2d(channels, outputs, size)
        self.size = size
        self.weight = nn.Parameter(one.weight.detach()[None].clone())
        assert one.bias is not None
        self.bias = nn.Parameter(one.bias.detach()[None].clone())

    def forward(self, x: Tensor) -> Tensor:
        rows, batch, channels, height, width = x.shape
        size = self.size
        if rows == 1:
            return F.conv2d(x[0], self.weight[0], self.bias[0])[None]
        columns = F.unfold(x.flatten(0, 1), size).view(rows, batch, channels * size**2, -1)
        columns = columns.transpose(1, 2).reshape(rows, channels * size**2, -1)
        out = torch.baddbmm(self.bias.unsqueeze(2), self.weight.flatten(2), columns)
        return out.view(rows, -1, batch, height - size + 1, width - size + 1).transpose(1, 2)


class MaxPool2d(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x.flatten(0, 1), self.size).unflatten(0, x.shape[:2])


class Flatten(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2)


class BatchNorm(nn.Module):
    """x [R, B, channels, ...]. In training mode with the batch's statistics, which it keeps; else with those kept.

    There is no running average of the statistics: an evaluation works them out for the weights that it evaluates
    (`evaluation.py`), because those of the raw weights do not fit averaged ones.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(1, channels))
        self.bias = nn.Parameter(torch.zeros(1, channels))
        self.statistics: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            dims = [1, *range(3, x.dim())]
            variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
            self.statistics = mean.detach(), variance.detach()
        else:
            assert self.statistics is not None, "a batch in training mode has to come first"
            mean, variance = self.statistics
        shape = [x.shape[0], 1, x.shape[2], *[1] * (x.dim() - 3)]
        return (x - mean) * (self.weight.view(shape) * (variance + self.eps).rsqrt()) + self.bias.view(shape)


class LayerNorm(nn.Module):
    """x [R, B, L, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, width))
        self.bias = nn.Parameter(torch.zeros(1, width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:]) * self.weight[:, None, None] + self.bias[:, None, None]


def copies(net: nn.Module, rows: int) -> nn.Module:
    """`net`, which has one row, with `rows` equal ones; its parameters are ordinary ones."""
    stacked = copy.deepcopy(net)
    for parameter in stacked.parameters():
        parameter.data = parameter.data.expand(rows, *parameter.shape[1:]).clone()
    return stacked


def flat_rows(net: nn.Module) -> Tensor:
    """[R, P], a copy of the parameters."""
    return torch.cat([parameter.detach().flatten(1) for parameter in net.parameters()], 1)


class FlatRows:
    """R copies of a net whose parameters are views of `values` [R, P], and whose gradients are views of `gradients`."""

    def __init__(self, net: nn.Module, rows: int) -> None:
        self.net = copy.deepcopy(net)
        self.values = flat_rows(net).expand(rows, -1).clone()
        self.gradients = torch.zeros_like(self.values)
        first = 0
        for parameter in self.net.parameters():
            shape, last = (rows, *parameter.shape[1:]), first + parameter[0].numel()
            parameter.data = self.values[:, first:last].view(shape)
            parameter.grad = self.gradients[:, first:last].view(shape)
            first = last
