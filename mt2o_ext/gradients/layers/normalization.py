"""Normalisations with a scale and a shift: the gradients are sums over positions of normalised input times gradient."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .kind import LayerKind, register
from .terms import Dense, Term

__all__ = ["BatchNormKind", "GroupNormKind", "LayerNormKind"]


class _Normalization(LayerKind):
    @abstractmethod
    def normalised(self, module: Any, x: Tensor) -> Tensor:
        """The input before scale and shift."""

    @abstractmethod
    def summed(self, module: Any, values: Tensor) -> Tensor:
        """[N, size], the sum over the positions that share an element of the scale."""

    def terms(self, module: Any, x: Tensor, grad: Tensor, wanted: Collection[str]) -> Mapping[str, Term]:
        found: dict[str, Term] = {}
        if "weight" in wanted:
            found["weight"] = Dense(self.summed(module, self.normalised(module, x) * grad))
        if "bias" in wanted:
            found["bias"] = Dense(self.summed(module, grad))
        return found


@register("layer-norm")
class LayerNormKind(_Normalization):
    """`nn.LayerNorm` and `nn.RMSNorm`.

    Example:
        >>> layer, x = torch.nn.LayerNorm(4), torch.randn(5, 7, 4)
        >>> LayerNormKind().terms(layer, x, torch.randn(5, 7, 4), ("weight",))["weight"].rows().shape
        torch.Size([5, 4])
    """

    modules = (nn.LayerNorm, nn.RMSNorm)
    batch_anywhere = True

    def fits(self, module: Any, x: Tensor) -> bool:
        return x.dim() > len(module.normalized_shape)

    def normalised(self, module: Any, x: Tensor) -> Tensor:
        if isinstance(module, nn.RMSNorm):
            return functional.rms_norm(x, module.normalized_shape, None, module.eps)
        return functional.layer_norm(x, module.normalized_shape, None, None, module.eps)

    def summed(self, module: Any, values: Tensor) -> Tensor:
        return values.reshape(len(values), -1, *module.normalized_shape).sum(1)


class _OfChannels(_Normalization):
    def summed(self, module: Any, values: Tensor) -> Tensor:
        return values.flatten(2).sum(2) if values.dim() > 2 else values


@register("group-norm")
class GroupNormKind(_OfChannels):
    """`nn.GroupNorm`.

    Example:
        >>> layer, x = torch.nn.GroupNorm(2, 4), torch.randn(5, 4, 6)
        >>> GroupNormKind().terms(layer, x, torch.randn(5, 4, 6), ("bias",))["bias"].rows().shape
        torch.Size([5, 4])
    """

    modules = (nn.GroupNorm,)

    def normalised(self, module: Any, x: Tensor) -> Tensor:
        return functional.group_norm(x, module.num_groups, None, None, module.eps)


@register("batch-norm")
class BatchNormKind(_OfChannels):
    """`nn.BatchNorm1d`, `nn.BatchNorm2d`, `nn.BatchNorm3d` with running statistics; in training they mix the samples.

    Example:
        >>> layer = torch.nn.BatchNorm1d(4)
        >>> BatchNormKind().mixes(layer), BatchNormKind().mixes(layer.eval())
        (True, False)
    """

    modules = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

    def mixes(self, module: Any) -> bool:
        return bool(module.training) or module.running_mean is None

    def fits(self, module: Any, x: Tensor) -> bool:
        return not self.mixes(module)

    def reads(self, module: Any) -> tuple[Tensor, ...]:
        return () if self.mixes(module) else (module.running_mean, module.running_var)

    def normalised(self, module: Any, x: Tensor) -> Tensor:
        shape = (-1, *(1,) * (x.dim() - 2))
        mean, var = (one.to(x.dtype).view(shape) for one in (module.running_mean, module.running_var))
        return (x - mean) * torch.rsqrt(var + module.eps)
