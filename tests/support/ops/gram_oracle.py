"""Inner products in float64, and how far a kernel may be from them."""

from __future__ import annotations

import torch
from torch import Tensor

from support.backends import Backend
from support.samplers import Layout, rounding, unit

TILE, LANES = 1024, 16  # float32 sums go over a tile, each lane by itself


def run(
    backend: Backend,
    rows: Tensor,
    layout: Layout,
    others: Tensor | None = None,
    *,
    centre: bool = False,
    diagonal: bool = False,
    addresses: Tensor | None = None,
) -> Tensor:
    """What the backend makes of them: [B, S, R, R], of a diagonal [B, S, R]."""
    batch, count, _ = rows.shape
    sums = count if diagonal else count * (count + 1) // 2 if others is None else count * count
    shape = (count,) if diagonal else (count, count)
    out = torch.full((batch, len(layout.numels), *shape), torch.nan, dtype=torch.float64)
    partials = torch.full((batch, len(layout.chunks), sums), torch.nan, dtype=torch.float64)
    backend.gram_(out, partials, rows, others, layout.chunks, addresses, centre=centre, diagonal=diagonal)
    return out


def centred(rows: Tensor) -> Tensor:
    values = rows.double() - rows.double()[:, :1]  # exact, where the rows are float32
    return values - values.mean(dim=1, keepdim=True)


def exact(rows: Tensor, layout: Layout, others: Tensor | None = None, *, centre: bool = False) -> tuple[Tensor, Tensor]:
    """[B, S, R, R] in float64, and the products of the absolute values: the size of the sums."""
    x = centred(rows) if centre else rows.double()
    y = x if others is None else centred(others) if centre else others.double()
    batch, count, _ = rows.shape
    grams = [torch.zeros(batch, len(layout.numels), count, count, dtype=torch.float64) for _ in range(2)]
    for segment, begin, end in layout.chunks.tolist():
        part, other = x[..., begin:end], y[..., begin:end]
        grams[0][:, segment] += part @ other.mT
        grams[1][:, segment] += part.abs() @ other.abs().mT
    return grams[0], grams[1]


def allowed(rows: Tensor, layout: Layout, others: Tensor | None = None, *, centre: bool = False) -> Tensor:
    """The roundings on the way of a product into its sum; centring costs one per row, and three, for both factors."""
    lanes = LANES if rows.dtype != torch.float64 else LANES // 2
    depth = TILE // lanes + lanes
    _, size = exact(rows, layout, others, centre=centre)
    if centre:  # what centring loses has the size of the differences, not of the centred rows
        depth += 2 * (rows.shape[1] + 3)
        differences = [None if values is None else values - values[:, :1] for values in (rows, others)]
        size = size + exact(differences[0], layout, differences[1])[1]
        size = size.amax(dim=(-2, -1), keepdim=True)
    across = len(layout.chunks) * 16 * rounding(torch.float64)  # tiles and chunks are added in float64
    return (depth * unit(rows.dtype) + across) * size


def diagonal_of(gram: Tensor) -> Tensor:
    return torch.diagonal(gram, dim1=-2, dim2=-1)


def relative_error(actual: Tensor, rows: Tensor, layout: Layout, others: Tensor | None = None, **kind: bool) -> float:
    """The largest error over the lengths of the two rows."""
    lengths = [
        diagonal_of(exact(values, layout, **kind)[0]).sqrt() for values in (rows, rows if others is None else others)
    ]
    error = (actual - exact(rows, layout, others, **kind)[0]).abs()
    return float((error / (lengths[0][..., :, None] * lengths[1][..., None, :])).max())
