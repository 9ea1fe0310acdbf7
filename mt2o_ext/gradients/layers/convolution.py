"""Convolutions of one, two and three dimensions."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .kind import LayerKind, register
from .terms import Dense, Outer, Term

__all__ = ["ConvolutionKind"]


@register("convolution")
class ConvolutionKind(LayerKind):
    """`nn.Conv1d`, `nn.Conv2d`, `nn.Conv3d`, with strides, dilation, groups and every kind of padding.

    At each place of the output it is a linear layer, which is applied to a patch of the input.

    Example:
        >>> layer, x = torch.nn.Conv1d(4, 6, 3, groups=2), torch.randn(5, 4, 10)
        >>> terms = ConvolutionKind().terms(layer, x, torch.randn(5, 6, 8), ("weight", "bias"))
        >>> terms["weight"].rows().shape, terms["bias"].rows().shape
        (torch.Size([5, 36]), torch.Size([5, 6]))
    """

    modules = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    separable = True

    def fits(self, module: Any, x: Tensor) -> bool:
        return x.dim() == len(module.kernel_size) + 2

    def terms(self, module: Any, x: Tensor, grad: Tensor, wanted: Collection[str]) -> Mapping[str, Term]:
        flat = grad.flatten(2)
        found: dict[str, Term] = {}
        if "weight" in wanted:
            groups = module.groups
            right = flat.reshape(len(flat), groups, module.out_channels // groups, -1).mT
            width = module.in_channels // groups * prod(module.kernel_size)
            found["weight"] = Outer(lambda first, end: _patches(module, x[first:end]), right, width)
        if "bias" in wanted:
            found["bias"] = Dense(flat.sum(2))
        return found

    def combined(self, module: Any, x: Tensor, grad: Tensor, wanted: Collection[str]) -> Mapping[str, Tensor]:
        padding, padded = _padded(module, x)
        _, weight, bias = torch.ops.aten.convolution_backward(
            grad, padded, module.weight.detach().to(grad.dtype), [module.out_channels], module.stride, padding,
            module.dilation, False, [0] * len(padding), module.groups, [False, "weight" in wanted, "bias" in wanted],
        )  # fmt: skip
        return {name: value for name, value in (("weight", weight), ("bias", bias)) if name in wanted}


def _padded(module: Any, x: Tensor) -> tuple[list[int], Tensor]:
    """The same padding at both ends of each dimension, and the input with all other padding."""
    if module.padding_mode == "zeros" and not isinstance(module.padding, str):
        return list(module.padding), x
    sizes: list[int] = []
    for size, dilation, padding in zip(module.kernel_size, module.dilation, _per_dimension(module), strict=True):
        total = dilation * (size - 1) if module.padding == "same" else 2 * padding
        sizes = [total // 2, total - total // 2, *sizes]  # torch counts from the last dimension
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return [0] * len(module.kernel_size), functional.pad(x, sizes, mode=mode)


def _per_dimension(module: Any) -> tuple[int, ...]:
    return (0,) * len(module.kernel_size) if isinstance(module.padding, str) else module.padding


def _patches(module: Any, x: Tensor) -> Tensor:
    """[N, G, L, A], what the kernel is multiplied with at each place of the output."""
    padding, x = _padded(module, x)
    if any(padding):
        x = functional.pad(x, [size for one in reversed(padding) for size in (one, one)])
    kernel, count = module.kernel_size, len(x)
    places = [
        (size - dilation * (length - 1) - 1) // stride + 1
        for size, length, stride, dilation in zip(x.shape[2:], kernel, module.stride, module.dilation, strict=True)
    ]
    strides = x.stride()
    within = [dilation * stride for dilation, stride in zip(module.dilation, strides[2:], strict=True)]
    between = [step * stride for step, stride in zip(module.stride, strides[2:], strict=True)]
    windows = x.as_strided((*x.shape[:2], *kernel, *places), (*strides[:2], *within, *between))
    return windows.reshape(count, module.groups, -1, prod(places)).mT
