"""Mini-batches for K subproblems: each draws its own.

Transfer averages the gradient noise of the subproblems, which helps only if that noise is independent: on one shared
mini-batch there is nothing to average (measured, see the documentation of MT2OFused).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["repeat", "stack"]

Batch = TypeVar("Batch")


def repeat(loader: Iterable[Batch]) -> Iterator[Batch]:
    """An endless iterator over a loader, begun anew (and so shuffled anew) whenever it ends.

    Raises:
        ValueError: if the loader is empty.
    """
    while True:
        empty = True
        for batch in loader:
            empty = False
            yield batch
        if empty:
            raise ValueError(
                "expected a loader with at least one batch, got an empty one: give a loader that can be iterated anew, "
                "not an iterator that is used up"
            )


def stack(batches: Iterable[Any]) -> Any:
    """Batches of the same structure, stacked along a new first dimension: K batches [B, ...] -> [K, B, ...].

    Args:
        batches: K of them, each a tensor of any dtype, or a tuple, list or dict of batches.

    Raises:
        TypeError: for a batch of another type.
        ValueError: if there is no batch, or shapes, lengths or keys differ.
    """
    items = list(batches)
    if not items:
        raise ValueError("expected at least one batch to stack, got none: give one for each subproblem")
    first = items[0]
    if isinstance(first, Tensor):
        shapes = {tuple(item.shape) for item in items}
        if len(shapes) > 1:
            raise ValueError(f"expected batches of one shape, got {sorted(shapes)}: use drop_last=True in the loader")
        return torch.stack(items)
    if isinstance(first, dict):
        if any(item.keys() != first.keys() for item in items):
            raise ValueError(
                f"expected batches with the keys {sorted(map(str, first))}, got others: give all batches the same keys"
            )
        return {key: stack(item[key] for item in items) for key in first}
    if isinstance(first, (tuple, list)):
        stacked = [stack(parts) for parts in zip(*items, strict=True)]
        return type(first)(*stacked) if hasattr(first, "_fields") else type(first)(stacked)
    raise TypeError(f"expected tensors, or tuples, lists or dicts of them, got {type(first).__name__}: convert it")
