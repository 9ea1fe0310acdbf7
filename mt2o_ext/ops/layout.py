"""Places of tensors in a flat row."""

from __future__ import annotations

from collections.abc import Sequence

from .. import _native
from . import reference


def plan_layout(numels: Sequence[int]) -> tuple[list[int], int, list[tuple[int, int, int]]]:
    """Places tensors of these sizes in one row.

    Args:
        numels: the elements of each tensor.

    Returns:
        The first column of each tensor (a multiple of 16), the distance between two rows, and the chunks ``(segment,
        begin, end)`` that the kernels walk through; they depend on the sizes alone.
    """
    planner = reference.plan_layout if _native.C is None else _native.C.plan_layout
    offsets, row, chunks = planner(list(numels))
    return offsets, row, chunks


def cut_chunks(chunks: Sequence[tuple[int, int, int]], columns: int) -> list[tuple[int, int, int]]:
    """Cuts chunks into pieces of at most so many columns, a multiple of 16."""
    return [
        (segment, first, min(first + columns, end))
        for segment, begin, end in chunks
        for first in range(begin, end, columns)
    ]
