"""From the argument ``process_group=`` to the ranks that it stands for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor

from ..sharding import group_of_shards
from .group import Ranks
from .shards import RanksOfShards

__all__ = ["as_ranks"]


def as_ranks(process_group: Any, parameters: Sequence[Tensor] = ()) -> Ranks | None:
    """The ranks of a process group, or those that the parameters are sharded over.

    Args:
        process_group: a group, or True for the default one; None or False for no data parallelism.  Where parameters
            are sharded, None (their device mesh tells the ranks), or the group of these ranks.
        parameters: of which some may be DTensors.

    Returns:
        The ranks; None where there is no data parallelism.

    Raises:
        TypeError: for anything but a process group, a bool or None.
        RuntimeError: if torch.distributed was not set up.
        ValueError: if this process is not in the group, or parameters are sharded over other ranks.
    """
    given, shards = _ranks_of(process_group), group_of_shards(parameters)
    if shards is None:
        return given
    ranks = RanksOfShards(None if shards is dist.group.WORLD else shards)
    if process_group is None or (given is not None and given.same_as(ranks)):
        return ranks
    got = process_group if isinstance(process_group, bool) else "a group of others"
    raise ValueError(
        "expected process_group=None for sharded parameters, whose device mesh tells the ranks, or the group of these "
        f"{ranks.size}, got {got}: leave it out (for replicas of a sharded model, shard it with a mesh of two "
        "dimensions)"
    )


def _ranks_of(process_group: Any) -> Ranks | None:
    """The ranks of a process group; arguments and errors as of `as_ranks`."""
    if process_group is None or process_group is False:
        return None
    if not dist.is_available() or not dist.is_initialized():
        if process_group is True or (dist.is_available() and isinstance(process_group, dist.ProcessGroup)):
            raise RuntimeError(
                "expected torch.distributed to be set up for process_group=, got no groups yet: call "
                "torch.distributed.init_process_group(...) before the optimizer is made"
            )
    elif process_group is True:
        return Ranks(None)
    elif process_group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(
            f"expected a process_group with this rank in it, got one without rank {dist.get_rank()}: make the "
            "optimizer on its ranks only"
        )
    elif isinstance(process_group, dist.ProcessGroup):
        return Ranks(None if process_group is dist.group.WORLD else process_group)
    got, remedy = type(process_group).__name__, "pass one of these"
    if got == "DeviceMesh":
        remedy = "pass its group, mesh.get_group() (of two dimensions mesh[name].get_group())"
    raise TypeError(
        f"expected process_group as a ProcessGroup, True (the default group), False or None (no data parallelism), "
        f"got {got}: {remedy}"
    )
