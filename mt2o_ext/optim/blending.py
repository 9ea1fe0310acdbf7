"""The arithmetic of a transfer on flat buffers: M for each of them, rows that are held, the blend of changes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..ops import MOMENTS, SQUARES, combine_, transfer_
from ..transfer.moments import Moments
from .flat import FlatParameters

__all__ = ["add_changes", "blend_changes", "blend_moments", "hold_rows", "split_matrices"]


def split_matrices(mix: Tensor, flats: Sequence[FlatParameters], num_rows: int) -> list[Tensor]:
    """M for each buffer: the same [K, K] for all, or [S, K, K] cut into theirs.

    Raises:
        ValueError: for another shape.
    """
    sizes = [len(flat.parameters) for flat in flats]
    square = [num_rows, num_rows]
    if list(mix.shape) == square:
        return [mix] * len(flats)
    if list(mix.shape) == [sum(sizes), *square]:
        return [part.contiguous() for part in mix.split(sizes)]
    raise ValueError(
        f"expected a transfer matrix of shape {square}, or {[sum(sizes), *square]} with one for each tensor, got "
        f"{list(mix.shape)}"
    )


def hold_rows(mix: Tensor, active: Tensor | None, skipped: Tensor, eye: Tensor) -> Tensor:
    """M with rows of the identity where the step touches nothing: skipped subproblems, tensors without a gradient.

    active: bool [K, S], the tensors that are updated; None: all.  skipped: float32 [K], not zero where skipped
    ([1]: of all).  eye: the identity [K, K].
    """
    if active is None:
        return torch.where(skipped.unsqueeze(1) != 0, eye, mix)
    held = ~active | (skipped.unsqueeze(1) != 0)  # [K, S]
    return torch.where(held.T.unsqueeze(2), eye, mix).contiguous()


def blend_changes(flat: FlatParameters, changes: Tensor, mix: Tensor, skipped: Tensor) -> None:
    """theta <- theta + (M - I) changes: blends what has changed since the last transfer, not the position.

    changes: [K, P] theta less the buffer ``transfer_base``, where the next change is measured from.
    """
    blended = changes.clone()
    transfer_(blended, mix, flat.transfer_chunks)
    add_changes(flat, blended.sub_(changes), skipped)


def add_changes(flat: FlatParameters, blended: Tensor, skipped: Tensor) -> None:
    """theta <- theta + (M - I) changes [K, P]; the next changes are measured from there."""
    flat.theta.add_(blended)
    base = flat.buffers["transfer_base"]
    base.copy_(torch.where(skipped.unsqueeze(1) != 0, base, flat.theta))


def blend_moments(flats: Sequence[FlatParameters], mixes: Sequence[Tensor | None], moments: Moments) -> None:
    """Blends the moments in each buffer with its matrix; None: leaves them alone."""
    for flat, mix in zip(flats, mixes, strict=True):
        if mix is None:
            continue
        for name in MOMENTS:
            if name in flat.buffers:
                squared = moments is Moments.MIX_SQUARED and name in SQUARES
                _blend_moment(flat, flat.buffers[name], mix * mix if squared else mix)


def _blend_moment(flat: FlatParameters, moment: Tensor, matrix: Tensor) -> None:
    """moment <- matrix moment, as a plain product: no entry can become negative."""
    old = moment.clone().unsqueeze(0).expand(flat.num_rows, -1, -1)
    if matrix.dim() == 2:
        combine_(moment, old, matrix, flat.transfer_chunks)
        return
    for segment in flat.transferred:
        combine_(moment, old, matrix[segment].contiguous(), flat.chunks_of[segment])
