"""Whether transfers blend the base rule's moments too."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from torch import Tensor

from ..flat import FlatParameters
from ..ops import combine_
from ..transfer import Hat, Spectral, TransferRule

__all__ = ["Moments", "blend_moments"]


class Moments(Enum):
    """What a transfer does to the moments.  A signed M would make second moments negative, so only rules without negative
    entries can blend them; measured, blending brought nothing.

    KEEP: nothing (default).  MIX: blends all with M.  MIX_SQUARED: first moments with M, second moments with M * M.
    """

    KEEP = "keep"
    MIX = "mix"
    MIX_SQUARED = "mix_squared"

    def check(self, rule: TransferRule) -> Moments:
        if self is not Moments.KEEP and isinstance(rule, (Hat, Spectral)):
            raise ValueError(
                f"{type(rule).__name__} gives an M with negative entries, which must not blend moments: use Moments.KEEP"
            )
        return self

    def check_matrix(self, mix: Tensor) -> None:
        if self is not Moments.KEEP and bool((mix < 0).any()):
            raise ValueError(
                "the transfer rule gave an M with negative entries, which must not blend moments: use Moments.KEEP"
            )


def blend_moments(flats: Sequence[FlatParameters], mixes: Sequence[Tensor | None], moments: Moments) -> None:
    if moments is Moments.KEEP:
        return
    for flat, mix in zip(flats, mixes, strict=True):
        if mix is None:
            continue
        for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            if name in flat.buffers:
                squared = moments is Moments.MIX_SQUARED and name != "exp_avg"
                _blend(flat, flat.buffers[name], mix * mix if squared else mix)


def _blend(flat: FlatParameters, moment: Tensor, matrix: Tensor) -> None:
    """moment <- matrix moment, as a plain product: no entry can become negative."""
    old = moment.clone().unsqueeze(0).expand(flat.num_rows, -1, -1)
    if matrix.dim() == 2:
        combine_(moment, old, matrix, flat.transfer_chunks)
        return
    for segment, one in enumerate(matrix):
        combine_(
            moment, old, one.contiguous(), flat.transfer_chunks[flat.transfer_chunks[:, 0] == segment].contiguous()
        )
