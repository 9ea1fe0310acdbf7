"""Linear layers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn

from .kind import LayerKind, register
from .terms import Outer, Shift, Term

__all__ = ["LinearKind"]


@register("linear")
class LinearKind(LayerKind):
    """`nn.Linear`, at any number of positions: y_l = W x_l + b, so dl_i/dW = sum_l (dl_i/dy_l) x_l^T.

    Example:
        >>> layer, x, grad = torch.nn.Linear(3, 2), torch.randn(5, 3), torch.randn(5, 2)
        >>> terms = LinearKind().terms(layer, x, grad, ("weight",))
        >>> terms["weight"].gram().shape
        torch.Size([5, 5])
    """

    modules = (nn.Linear,)
    separable = True
    batch_anywhere = True

    def fits(self, module: nn.Linear, x: Tensor) -> bool:
        return x.dim() >= 2

    def terms(self, module: Any, x: Tensor, grad: Tensor, wanted: Collection[str]) -> Mapping[str, Term]:
        left, right = (side.reshape(len(side), 1, -1, side.shape[-1]) for side in (x, grad))
        outer = Outer(left, right, x.shape[-1])
        found: dict[str, Term] = {}
        if "weight" in wanted:
            found["weight"] = outer
        if "bias" in wanted:
            found["bias"] = Shift(outer)
        return found
