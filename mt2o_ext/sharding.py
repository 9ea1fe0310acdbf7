"""Parameters that are sharded over ranks: DTensors, as ``fully_shard`` (FSDP2) and tensor parallelism make them.

Each rank holds a part of such a tensor, its shard.  What is computed element by element needs no other rank; inner
products of gradients are sums over the shards: each rank adds up its own, and one small all-reduce adds up the ranks'.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["group_of_shards", "is_sharded", "like_parameter", "local_gradient", "local_of", "sum_shards"]


def is_sharded(tensor: Any) -> bool:
    """True for a DTensor."""
    module = sys.modules.get("torch.distributed.tensor")  # who has one has imported this, which takes a while
    return module is not None and isinstance(tensor, module.DTensor)


@torch.no_grad()
def local_of(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, the same memory; the tensor itself, where it is not sharded."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


@torch.no_grad()
def local_gradient(p: Tensor, grad: Tensor) -> Tensor:
    """This rank's part of a gradient, of the elements that it holds of the parameter."""
    if not is_sharded(grad):
        return grad
    sharded: Any = grad
    if sharded.placements != p.placements:  # type: ignore[attr-defined]  # partial sums of tensor parallelism, say
        sharded = sharded.redistribute(p.device_mesh, p.placements)  # type: ignore[attr-defined]
    local: Tensor = sharded.to_local()
    return local


@torch.no_grad()
def like_parameter(p: Tensor, local: Tensor) -> Tensor:
    """A tensor of the parameter's kind, with these elements on this rank."""
    if not is_sharded(p):
        return local
    from torch.distributed.tensor import DTensor

    own: DTensor = p  # type: ignore[assignment]
    return DTensor.from_local(
        local, own.device_mesh, own.placements, run_check=False, shape=own.shape, stride=own.stride()
    )


def _groups(p: Tensor) -> tuple[dist.ProcessGroup, ...]:
    """The groups over which a product of two gradients by this parameter has to be summed up."""
    if not is_sharded(p):
        return ()
    own: DTensor = p  # type: ignore[assignment]
    return tuple(
        own.device_mesh.get_group(dim) for dim, placement in enumerate(own.placements) if not placement.is_replicate()
    )


def sum_shards(segments: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Products of gradients, added up over the shards of each parameter.

    Args:
        segments: float64 [K, S, ...], of this rank's shards.
        parameters: the S parameters.
    """
    of_groups: dict[tuple[dist.ProcessGroup, ...], list[int]] = {}
    for segment, p in enumerate(parameters):
        if groups := _groups(p):
            of_groups.setdefault(groups, []).append(segment)
    result = segments.clone()
    for groups, members in of_groups.items():
        part = result[:, members].contiguous()
        for group in groups:
            dist.all_reduce(part, group=group)
        result[:, members] = part
    return result


def group_of_shards(parameters: Sequence[Tensor]) -> dist.ProcessGroup | None:
    """The group of all ranks that hold a part of these parameters; None where no parameter is sharded.

    Raises:
        ValueError: for parameters of different device meshes.
    """
    meshes = {p.device_mesh for p in parameters if is_sharded(p)}  # type: ignore[attr-defined]
    if not meshes:
        return None
    if len(meshes) > 1:
        raise ValueError(
            f"expected all sharded parameters on one device mesh, got {len(meshes)}: shard the model with one mesh, or "
            "make one object for the parameters of each"
        )
    mesh = meshes.pop()
    if mesh.ndim == 1:
        return mesh.get_group()
    if mesh.size() == dist.get_world_size():
        return dist.group.WORLD
    return mesh._flatten().get_group()  # needs names of the dimensions
