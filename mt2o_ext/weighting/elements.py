"""The kernels for rows of task gradients [K, T, P], and what weightings measure of such rows."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType, SimpleNamespace

import torch
from torch import Tensor

from .. import ops
from ..ops import reference, reference_elements
from .context import Columns, WeightingContext

__all__ = ["finite_rows", "gram_of", "kernels_of"]

PLAIN = SimpleNamespace(
    gram_=reference.gram_,
    track_=reference_elements.track_,
    feed_=reference_elements.feed_,
    excess_=reference_elements.excess_,
    drop_signs_=reference_elements.drop_signs_,
    finite_=reference.finite_,
)


def kernels_of(
    rows: Sequence[Tensor], context: WeightingContext
) -> tuple[ModuleType | SimpleNamespace, Sequence[Columns]]:
    """The kernels that change rows, and the places of tensors in each of them.

    Rows of which nothing is known are changed by plain torch, as if each were one tensor.
    """
    if context.columns is not None:
        return ops, context.columns
    return PLAIN, [Columns([(0, 0, matrix.shape[-1])], 1) for matrix in rows]


def gram_of(rows: Sequence[Tensor], context: WeightingContext, *, diagonal: bool = False) -> Tensor:
    """float64 [K, T, T], inner products over all dtypes; [K, T], squares alone, if ``diagonal``."""
    kernels, columns = kernels_of(rows, context)
    tasks = rows[0].shape[1]
    sums = tasks if diagonal else tasks * (tasks + 1) // 2
    total = None
    for matrix, (chunks, num_segments) in zip(rows, columns, strict=True):
        size = (tasks,) if diagonal else (tasks, tasks)
        out = matrix.new_empty(len(matrix), num_segments, *size, dtype=torch.float64)
        partials = matrix.new_empty(len(matrix), len(chunks), sums, dtype=torch.float64)
        kernels.gram_(out, partials, matrix, None, chunks, diagonal=diagonal)
        total = out.sum(1) if total is None else total + out.sum(1)
    assert total is not None
    return total


def finite_rows(rows: Sequence[Tensor], context: WeightingContext) -> Tensor:
    """bool [K]: all numbers of a subproblem are finite, and nobody has said otherwise."""
    kernels, columns = kernels_of(rows, context)
    found = rows[0].new_zeros(len(rows[0]), dtype=torch.float32)
    for matrix, (chunks, _) in zip(rows, columns, strict=True):
        kernels.finite_(found, matrix, chunks)
    finite = found == 0
    return finite if context.finite is None else finite & context.finite
