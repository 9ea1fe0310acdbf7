"""No transfer."""

from __future__ import annotations

from torch import Tensor

from .base import TransferContext, TransferRule
from .registry import register


@register("identity")
class Identity(TransferRule):
    """M = I: K independent runs, the baseline of every comparison.

    Example:
        >>> preferences = mt2o_ext.preferences.even(3)
        >>> rule = Identity()
        >>> rule.bind(preferences)
        >>> context = TransferContext(preferences, None, losses=None, step=0, lr=torch.tensor(0.1), initial_lr=0.1)
        >>> rule.matrix(context) is None
        True
    """

    def matrix(self, context: TransferContext) -> Tensor | None:
        return None
