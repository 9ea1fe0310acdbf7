"""Parameters that are sharded over ranks: DTensors, as ``fully_shard`` (FSDP2) and tensor parallelism make them.

Each rank holds a part of such a tensor, its shard.  What is computed element by element needs no other rank; inner
products of gradients are sums over the shards: each rank adds up its own, and one small all-reduce adds up the ranks'.

Kernels work on local memory only.  An optimizer copies the shards of its parameters into its flat buffers before a step
and back after it: whoever has made a shard (FSDP2, say) goes on to read it where it lies.  Everything that is shown to
the user (``.grad``, ``optimizer.state``) is a DTensor like the parameter, over the memory of the buffers.
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = [
    "Gathered",
    "any_nonzero",
    "group_of_shards",
    "is_sharded",
    "like_parameter",
    "local_gradient",
    "local_of",
    "local_values",
    "of_all_shards_",
    "sum_shards",
]


def is_sharded(tensor: Any) -> bool:
    """True for a DTensor."""
    module = sys.modules.get("torch.distributed.tensor")  # who has one has imported this, which takes a while
    return module is not None and isinstance(tensor, module.DTensor)


# ---------------------------------------------------------------------- one rank's part, and the whole
def local_of(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, the same memory; the tensor itself, where it is not sharded."""
    if not is_sharded(tensor):
        return tensor
    with torch.no_grad():
        local: Tensor = tensor.to_local()  # type: ignore[attr-defined]
        return local


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
def local_values(p: Tensor, values: Tensor) -> Tensor:
    """This rank's part of values [*shape] of a parameter, or of several rows [K, *shape] of them.

    values: whole on every rank, or a DTensor, sharded in whatever way.
    """
    if not is_sharded(p):
        return values
    from torch.distributed.tensor import distribute_tensor

    own: DTensor = p  # type: ignore[assignment]
    placements = _placements(own, values.dim() - own.dim())
    sharded: Any = values
    if not is_sharded(values):
        sharded = distribute_tensor(values, own.device_mesh, placements, src_data_rank=None)  # sends nothing
    elif sharded.placements != placements:
        sharded = sharded.redistribute(own.device_mesh, placements)
    local: Tensor = sharded.to_local()
    return local


@torch.no_grad()
def like_parameter(p: Tensor, local: Tensor) -> Tensor:
    """A tensor of the parameter's kind over this memory, its elements on this rank; of rows [K, *shape] as well."""
    if not is_sharded(p):
        return local
    from torch.distributed.tensor import DTensor

    own: DTensor = p  # type: ignore[assignment]
    lead = local.shape[: local.dim() - own.dim()]
    return DTensor.from_local(
        local,
        own.device_mesh,
        _placements(own, len(lead)),
        run_check=False,
        shape=torch.Size((*lead, *own.shape)),
        stride=(own.numel(),) * len(lead) + own.stride(),
    )


def _placements(p: DTensor, leading: int) -> tuple[Any, ...]:
    """The placements of a parameter, or of a tensor that has so many dimensions before those of the parameter."""
    if leading == 0:
        return p.placements
    moved = []
    for placement in p.placements:
        if placement.is_replicate():
            moved.append(placement)
            continue
        kind: Any = type(placement)  # where two mesh dimensions share one of the tensor, one of the kinds is strided
        factor = getattr(placement, "split_factor", None)
        options = {} if factor is None else {"split_factor": factor}
        moved.append(kind(placement.dim + leading, **options))  # type: ignore[attr-defined]
    return tuple(moved)


class Gathered:
    """The modules of FSDP2 that may hold whole parameters, gathered from shards as they were.

    (Outside of a backward pass the root of a model keeps what its forward pass has gathered.)

    Args:
        parameters: whose modules these are.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._modules: list[weakref.ref[Any]] = []
        fsdp = sys.modules.get("torch.distributed.fsdp")
        kind = None if fsdp is None or not any(map(is_sharded, parameters)) else getattr(fsdp, "FSDPModule", None)
        if kind is None:
            return
        known, kinds = set(map(id, parameters)), kind.__subclasses__()  # fully_shard makes one for each kind of module
        for found in gc.get_referrers(*kinds):  # no parameter tells whose it is
            if type(found) in kinds and any(id(p) in known or not is_sharded(p) for p in found.parameters()):
                self._modules.append(weakref.ref(found))  # (one that is not sharded is gathered now)

    def drop(self) -> None:
        """Lets the next forward pass gather the shards anew, after a change of these."""
        for reference in self._modules:
            if (module := reference()) is not None:
                module.reshard()


# ---------------------------------------------------------------------- what all shards have to know
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


@torch.no_grad()
def of_all_shards_(flags: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """The largest flags that any rank has found in its shards of these parameters, in place."""
    for group in dict.fromkeys(group for p in parameters for group in _groups(p)):
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=group)
    return flags


@torch.no_grad()
def any_nonzero(tensors: Sequence[Tensor]) -> bool:
    """True if a number in one of these tensors is not zero, on any rank; all ranks that hold parts have to ask."""
    if not any(map(is_sharded, tensors)):
        return any(bool(tensor.any()) for tensor in tensors)
    found = [local_of(tensor).any() for tensor in tensors]
    flag = torch.stack([one.to(found[0].device) for one in found]).any().float()
    return bool(of_all_shards_(flag, tensors))


def group_of_shards(parameters: Sequence[Tensor]) -> dist.ProcessGroup | None:
    """The group of all ranks that hold a part of these parameters; None where no parameter is sharded.

    Of several meshes (some layers are tensor parallel, say, and all are sharded over the others' ranks) the largest has
    to contain the others.

    Raises:
        ValueError: for device meshes of which none contains the others.
    """
    meshes = {p.device_mesh for p in parameters if is_sharded(p)}  # type: ignore[attr-defined]
    if not meshes:
        return None
    mesh = max(meshes, key=lambda one: one.size())
    if any(not torch.isin(other.mesh, mesh.mesh).all() for other in meshes):
        raise ValueError(
            f"expected all sharded parameters on one device mesh, got {len(meshes)} of which none contains the others: "
            "shard the model with one mesh, or make one object for the parameters of each"
        )
    if mesh.ndim == 1:
        return mesh.get_group()
    if mesh.size() == dist.get_world_size():
        return dist.group.WORLD
    return mesh._flatten().get_group()  # needs names of the dimensions
