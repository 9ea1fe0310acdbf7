"""The ranks that share the K subproblems of one front: each trains some of them."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .group import Ranks

__all__ = ["SubproblemRanks", "as_subproblem_ranks"]


class SubproblemRanks(Ranks):
    """The ranks of a process group that train different subproblems, with mini-batches of their own."""

    argument = "subproblem_mesh="

    @property
    def place(self) -> int:
        """The place of this rank among them, from 0."""
        return self.members.index(self._me)

    def warning_of_copies(self, name: str) -> str | None:
        """Text of the warning for a user who gave no ``process_group=``, by which others average with these ranks.

        name: of the class that these were given to.  None where there are no other processes.
        """
        if self.size == dist.get_world_size():
            return None
        return (
            f"torch.distributed runs with {dist.get_world_size()} ranks, of which subproblem_mesh= has {self.size}, "
            f"but {name} was given no process_group=: the same subproblems on other ranks have mini-batches of their "
            'own, and drift apart. Pass the other dimension of the mesh, process_group=mesh["data"].get_group(); '
            "process_group=False says that this is taken care of"
        )

    # ------------------------------------------------------------------ numbers where they lie
    def most(self, number: Tensor) -> Tensor:
        """The largest of the ranks' numbers, a new tensor."""
        largest = number.clone()
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.group)
        return largest

    def scatter(self, pieces: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """Sends each rank its piece and receives one of each: all pieces [sum(received)] side by side, by rank.

        Args:
            pieces: [sum(sent)], those for the ranks side by side.
            sent: how long each of them is.
            received: how long those are that come.
        """
        found = pieces.new_empty(sum(received))
        dist.all_to_all_single(found, pieces, list(received), list(sent), group=self.group)
        return found

    def swap(self, sent: dict[int, Tensor], received: dict[int, Tensor]) -> None:
        """Sends tensors to some ranks, by their place, and receives others in place."""
        calls = [dist.P2POp(dist.isend, tensor, self.members[to], self.group) for to, tensor in sent.items()]
        calls += [dist.P2POp(dist.irecv, tensor, self.members[of], self.group) for of, tensor in received.items()]
        for work in dist.batch_isend_irecv(calls) if calls else ():
            work.wait()

    # ------------------------------------------------------------------ what the hosts tell one another
    def told_by_all(self, found: Any) -> list[Any]:
        """The things that ranks tell, in their order, on all of them: plain values and tensors of the host."""
        everything: list[Any] = [None] * self.size
        dist.all_gather_object(everything, found, group=self._hosts)
        return everything

    def told_to_first(self, found: Any) -> list[Any] | None:
        """The same on the first rank; None on the others."""
        everything = [None] * self.size if self.place == 0 else None
        dist.gather_object(found, everything, self._first, group=self._hosts)
        return everything

    # ------------------------------------------------------------------ other things around the model
    def check_wrapper_apart(self, parameters: Sequence[Tensor]) -> None:
        """Checks that no DistributedDataParallel averages the gradients of different subproblems.

        Raises:
            RuntimeError: if one does.
        """
        from torch.nn.parallel import DistributedDataParallel

        known = set(map(id, parameters))
        for found in gc.get_objects():  # once in the life of an optimizer
            if type(found) is DistributedDataParallel and any(id(p) in known for p in found.parameters()):
                averaged = set(dist.get_process_group_ranks(found.process_group))
                if len(averaged.intersection(self.members)) > 1:
                    raise RuntimeError(
                        "expected the plain model with subproblem_mesh=, got one in a DistributedDataParallel that "
                        "averages the gradients of different subproblems: leave the wrapper out, or give it the group "
                        'of the ranks that train the same subproblems, mesh["data"].get_group()'
                    )


def as_subproblem_ranks(subproblem_mesh: Any, process_group: Any) -> SubproblemRanks | None:
    """The ranks that subproblems are divided over.

    Args:
        subproblem_mesh: a `DeviceMesh` of one dimension, a process group, or True for the default one; None or False:
            this rank trains all subproblems.
        process_group: of data parallelism, as the user gave it.

    Returns:
        The ranks; None where there is one only.

    Raises:
        TypeError: for anything else.
        RuntimeError: if torch.distributed was not set up.
        ValueError: for a mesh of more dimensions, if this process is not in it, and for a ``process_group`` that would
            average the gradients of different subproblems.
    """
    if subproblem_mesh is None or subproblem_mesh is False:
        return None
    group = _group_of(subproblem_mesh)
    members = dist.get_process_group_ranks(group)
    averaged = _averaged_over(process_group)
    if len(members) > 1 and len(averaged.intersection(members)) > 1:
        raise ValueError(
            "expected process_group= with the ranks that train the same subproblems, got one with several ranks of "
            "subproblem_mesh=, whose gradients are of different ones: leave process_group= out, or make mesh = "
            'init_device_mesh(device, (copies, shares), mesh_dim_names=("data", "subproblem")) and pass '
            'process_group=mesh["data"].get_group(), subproblem_mesh=mesh["subproblem"]'
        )
    return None if len(members) == 1 else SubproblemRanks(None if group is dist.group.WORLD else group)


def _group_of(subproblem_mesh: Any) -> dist.ProcessGroup:
    if not dist.is_available() or not dist.is_initialized():
        if subproblem_mesh is True:
            raise RuntimeError(
                "expected torch.distributed to be set up for subproblem_mesh=, got no groups yet: call "
                "torch.distributed.init_process_group(...) before the optimizer is made"
            )
    elif subproblem_mesh is True:
        assert dist.group.WORLD is not None
        return dist.group.WORLD
    elif subproblem_mesh is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(
            f"expected a subproblem_mesh with this rank in it, got one without rank {dist.get_rank()}: make the "
            "optimizer on its ranks only"
        )
    elif isinstance(subproblem_mesh, dist.ProcessGroup):
        return subproblem_mesh
    elif isinstance(subproblem_mesh, torch.distributed.device_mesh.DeviceMesh):
        return _group_of_mesh(subproblem_mesh)
    raise TypeError(
        "expected subproblem_mesh as a DeviceMesh of one dimension, a ProcessGroup, True (the default group), or None "
        f"(this rank trains all subproblems), got {type(subproblem_mesh).__name__}: pass one of these"
    )


def _group_of_mesh(mesh: Any) -> dist.ProcessGroup:
    if mesh.ndim != 1:
        names = mesh.mesh_dim_names
        way = f'mesh["{names[-1]}"], say' if names else 'mesh["subproblem"], when they have names (mesh_dim_names=)'
        raise ValueError(
            f"expected subproblem_mesh as a DeviceMesh of one dimension, got one of {mesh.ndim}: pass the dimension "
            f"that subproblems are divided over, {way}"
        )
    if mesh.get_coordinate() is None:
        raise ValueError(
            f"expected a subproblem_mesh with this rank in it, got one without rank {dist.get_rank()}: make the "
            "optimizer on its ranks only"
        )
    group: dist.ProcessGroup = mesh.get_group()
    return group


def _averaged_over(process_group: Any) -> set[int]:
    """The ranks that a ``process_group`` averages gradients over; what is none is for others to refuse."""
    if process_group is True:
        return set(dist.get_process_group_ranks(dist.group.WORLD))
    return set(dist.get_process_group_ranks(process_group)) if isinstance(process_group, dist.ProcessGroup) else set()
