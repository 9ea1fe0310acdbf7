"""Family ``elements`` in plain torch; see `mt2o_ext.ops.reference`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .reference import joined_chunks
from .reference_draw import draw_

COLUMNS = 1 << 18  # that are worked on at a time: what is needed beside the gradients stays small


def _blocks(chunks: Tensor) -> Iterator[tuple[int, slice]]:
    """The segment and the columns of neighbouring chunks, COLUMNS at a time."""
    for segment, begin, end in joined_chunks(chunks):
        for first in range(begin, end, COLUMNS):
            yield segment, slice(first, min(first + COLUMNS, end))


def _set(table: Tensor, new: Tensor, finite: Tensor) -> None:
    """table [K, ...] <- new where ``finite`` [K]."""
    table.copy_(torch.where(finite.view(-1, *[1] * (table.ndim - 1)), new.to(table.dtype), table))


def track_(
    grads: Tensor, memory: Tensor, keep: Tensor, fresh: Tensor, finite: Tensor, chunks: Tensor, *, shown: bool
) -> None:
    """The operator of :func:`mt2o_ext.ops.track_`."""
    kept, added = keep.to(memory.dtype)[..., None], fresh.to(memory.dtype)[..., None]
    for _, block in _blocks(chunks):
        of_memory, of_grads = memory[..., block], grads[..., block]
        _set(of_memory, of_memory * kept + of_grads * added, finite)
        if shown:
            _set(of_grads, of_memory, finite)


def feed_(
    grads: Tensor,
    last: Tensor,
    memory: Tensor,
    weights: Tensor,
    now: Tensor,
    before: Tensor,
    finite: Tensor,
    chunks: Tensor,
    *,
    beta: float,
) -> None:
    """The operator of :func:`mt2o_ext.ops.feed_`."""
    dtype = memory.dtype
    given, factor, earlier = weights.to(dtype), now.to(dtype)[:, None], before.to(dtype)[:, None]
    for _, block in _blocks(chunks):
        direction = torch.einsum("kt,ktp->kp", given, memory[..., block])
        fed = (direction * factor - last[:, block] * beta * earlier) / (1 - beta)
        first = torch.zeros_like(memory[..., block])
        first[:, 0] = fed
        _set(grads[..., block], first, finite)
        _set(last[:, block], direction, finite)


def excess_(out: Tensor, partials: Tensor, squares: Tensor, grads: Tensor, finite: Tensor, chunks: Tensor) -> None:
    """The operator of :func:`mt2o_ext.ops.excess_`."""
    out.zero_()
    for segment, block in _blocks(chunks):
        squared = grads[..., block].double().square()
        total = squares[..., block] + squared
        root = total.sqrt()
        out[:, segment] += torch.where(root > 0, squared / torch.where(root > 0, root, 1.0), 0.0).sum(-1)
        _set(squares[..., block], total, finite)


def drop_signs_(grads: Tensor, key: Tensor, finite: Tensor, chunks: Tensor, *, stream: int, leak: float) -> None:
    """The operator of :func:`mt2o_ext.ops.drop_signs_`."""
    row = torch.arange(len(grads), dtype=torch.int64, device=grads.device)[:, None]
    for _, block in _blocks(chunks):
        column = torch.arange(block.start, block.stop, dtype=torch.int64, device=grads.device)[None]
        uniform = torch.empty(len(row), column.shape[1], dtype=torch.float64, device=grads.device)
        draw_(uniform, key, [row, column], stream=stream)
        gradient = grads[..., block].to(torch.promote_types(grads.dtype, torch.float32))
        sums, size = gradient.double().sum(1), gradient.double().abs().sum(1)
        purity = (1 + sums / torch.where(size > 0, size, 1.0)) / 2
        positive, negative = (purity > uniform)[:, None], (purity < uniform)[:, None]
        kept = ((gradient > 0) & positive) | ((gradient < 0) & negative)
        _set(grads[..., block], torch.where(kept, gradient, leak * gradient), finite)
