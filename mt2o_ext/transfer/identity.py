"""No transfer."""

from __future__ import annotations

from torch import Tensor

from .base import TransferContext, TransferRule
from .registry import register


@register("identity")
class Identity(TransferRule):
    """M = I: K independent runs, the baseline of every comparison."""

    def matrix(self, context: TransferContext) -> Tensor | None:
        return None
