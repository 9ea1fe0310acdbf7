"""Data parallelism: the same sums on every rank of a process group."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor

__all__ = ["Ranks", "as_ranks"]


class Ranks:
    """The ranks of a process group; each has its own mini-batch and the same parameters."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = group
        self.size = dist.get_world_size(group)
        self.first = 0 if group is None else dist.get_global_rank(group, 0)

    def add_(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place: one call for the whole tensor."""
        dist.all_reduce(tensor, group=self.group)
        return tensor

    def from_first_(self, tensor: Tensor) -> Tensor:
        """The first rank's tensor, in place."""
        dist.broadcast(tensor, self.first, group=self.group)
        return tensor

    def __reduce__(self) -> tuple[Any, ...]:
        if self.group is not None:
            raise TypeError("an optimizer with a process group of its own cannot be copied or pickled; use True")
        return Ranks, (None,)


def as_ranks(process_group: Any) -> Ranks | None:
    """None for no parallelism; True is the default group.

    Raises TypeError for anything but a process group, RuntimeError where torch.distributed was not set up.
    """
    if process_group is None or process_group is False:
        return None
    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError("process_group= needs torch.distributed.init_process_group(...) before the optimizer")
    if process_group is True:
        return Ranks(None)
    if not isinstance(process_group, dist.ProcessGroup):
        got = type(process_group).__name__
        raise TypeError(f"expected process_group as a ProcessGroup, True (the default group) or None, got {got}")
    return Ranks(process_group)
