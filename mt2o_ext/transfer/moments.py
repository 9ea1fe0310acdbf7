"""The choice whether transfers blend the base rule's moments too."""

from __future__ import annotations

from enum import Enum

from torch import Tensor

from .base import TransferRule
from .hat import Hat
from .spectral import Spectral

__all__ = ["Moments"]


class Moments(Enum):
    """The choices of what a transfer does to the moments.

    A signed M would make second moments negative, so only rules without negative entries can blend them; measured,
    blending brought nothing.

    KEEP: nothing (default).  MIX: blends all with M.  MIX_SQUARED: first moments with M, second moments with M * M.

    Example:
        >>> p = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = mt2o_ext.MT2OFused([p], num_tasks=2, transfer=Mean(0.1), moments=Moments.MIX)
    """

    KEEP = "keep"
    MIX = "mix"
    MIX_SQUARED = "mix_squared"

    def check(self, rule: TransferRule) -> Moments:
        """Return this choice; raise ValueError for a rule whose M must not blend moments."""
        if self is not Moments.KEEP and isinstance(rule, (Hat, Spectral)):
            raise ValueError(
                f"{type(rule).__name__} gives an M with negative entries, which make second moments negative: take KEEP"
            )
        return self

    def check_matrix(self, mix: Tensor, rule: TransferRule) -> None:
        """Reads M on the host, if the rule does not know that it has no negative entry."""
        if self is not Moments.KEEP and not rule.nonnegative and bool((mix < 0).any()):
            raise ValueError(
                "the transfer rule gave an M with negative entries, which make second moments negative: use "
                "Moments.KEEP"
            )
