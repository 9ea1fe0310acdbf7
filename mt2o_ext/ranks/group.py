"""Data parallelism: the ranks of a process group, each with mini-batches of its own, take the same steps.

This package alone talks to other ranks.  Gradients and losses travel where they lie; what the hosts have to
know of one another (which call this is, what is frozen, how many backward passes there were) travels between the hosts
as two numbers, which are equal on all ranks as long as nothing is wrong.  Where they are not, all ranks know it from
the same exchange: then they tell one another everything, and each raises an error that names the difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

if dist.is_available():
    # Its functions have the default group of the time of its import as a default argument.  torch.compile's machinery
    # imports it at the first step of any optimizer; a group that is there by then outlives destroy_process_group(), and
    # gloo's threads abort the process now and then when Python ends.  Imported before the group, it holds none.
    import torch.distributed.nn.functional

from ..gradients.table import GradientTable
from .differences import checksums, difference, digest

__all__ = ["Ranks", "RanksError", "together"]

Pattern = list[list[bool]]


class RanksError(RuntimeError):
    """The ranks of a process group do not do the same; raised on all of them.

    ranks: those that know of it, all of one group; None where nobody has said.
    """

    def __init__(self, text: str, ranks: Ranks | None = None) -> None:
        super().__init__(text)
        self.ranks = ranks

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args


class Ranks:
    """The ranks of a process group; each has its own mini-batch and the same parameters.

    Args:
        group: the process group, None for the default one.

    Attributes:
        size: how many there are.
        members: their numbers among all processes.
        argument: the user's argument that the group was given by.
        of_shards: the parameters are sharded over them.
        calls: how many ``backward`` calls of each subproblem this rank has made since the last step.
    """

    argument = "process_group="
    of_shards = False

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = group
        self.size = dist.get_world_size(group)
        self.members = dist.get_process_group_ranks(group or dist.group.WORLD)
        self.calls: dict[int, int] = {}
        self._me = dist.get_rank()
        self._first = self.members[0]
        self._hosts = _group_of_hosts(group)
        self._told: Exception | None = None

    @property
    def summed(self) -> int:
        """The number of gradients that are added up in the sums of `reduce_`."""
        return self.size

    def same_as(self, other: Ranks) -> bool:
        """True if these are the same ranks."""
        return sorted(self.members) == sorted(other.members)

    # ------------------------------------------------------------------ numbers where they lie
    def add_(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place: one call for the whole tensor."""
        dist.all_reduce(tensor, group=self.group)
        return tensor

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean over all ranks, a new tensor."""
        return self.add_(tensor.clone()) / self.size

    def from_first_(self, tensor: Tensor) -> Tensor:
        """The first rank's tensor, in place."""
        on_host = tensor.device.type == "cpu"  # which the group itself may not be able to send (NCCL)
        dist.broadcast(tensor, self._first, group=self._hosts if on_host else self.group)
        return tensor

    @torch.no_grad()
    def share_(self, tensors: Sequence[Tensor]) -> None:
        """The first rank's values, of whatever dtype and strides, in place."""
        for tensor in tensors:
            if tensor.numel() > 0:
                values = tensor.detach().contiguous()
                self.from_first_(values.view(-1).view(torch.uint8))  # bytes: not every backend knows every dtype
                if values.data_ptr() != tensor.data_ptr():
                    tensor.copy_(values)

    def share_parameters_(self, parameters: Sequence[Tensor]) -> None:
        """Shares the first rank's values of parameters, which have the same shapes on all ranks.

        Raises:
            RanksError: on all ranks, if one of them has the same values in another order: then its parameters would
                be averaged with others.
        """
        sums = checksums(parameters)
        numbers = self._exchange([digest(sums), digest(sorted(sums))])
        first = numbers[0]
        for rank, own in zip(self.members, numbers, strict=True):
            if own[0] != first[0] and own[1] == first[1]:
                raise RanksError(
                    f"rank {rank} has the parameters of rank {self._first} in another order (this is rank {self._me}): "
                    "give them in the same order on all ranks (a set, say, has none)",
                    self,
                )
        self.share_([p.data for p in parameters])

    def compare_values(self, parameters: Sequence[Tensor]) -> None:
        """Compares the values of parameters once more, when the first gradients have come.

        Raises:
            RanksError: on all ranks, if they are not equal any more.
        """
        key = "checksum at the first gradients (was a checkpoint loaded, or were weights changed, on some ranks only?)"
        self.agree({"call": "first gradients", "parameter": [{key: one} for one in checksums(parameters)]})

    def generator(self, own: torch.Generator) -> torch.Generator:
        """A new generator, which on all ranks gives the numbers that the first rank's ``own`` would give.

        (A new one, because that of the user may be the one that shuffles this rank's data.)
        """
        same = torch.Generator(own.device)
        state = own.get_state().clone()
        dist.broadcast(state, self._first, group=self._hosts)
        same.set_state(state)
        return same

    def reduce_(self, tables: Sequence[GradientTable], call: dict[str, Any]) -> None:
        """Sums the gradients over the ranks, those of each table in one call.

        What is there on any rank is there on all of them afterwards; on the others it counted as zero.

        call: as of `agree`.
        """
        union = iter(self.merge(call, [filled for table in tables for filled in table.filled]))
        for table in tables:
            self.add_(table.fill([next(union) for _ in table.filled]))

    @torch.no_grad()
    def average_grad_(self, parameters: Sequence[Tensor], call: dict[str, Any]) -> None:
        """Averages ``.grad`` over the ranks; one that is missing on some of them counts as zero.

        call: as of `agree`.
        """
        [there] = self.merge(call, [[p.grad is not None for p in parameters]])
        for p, one in zip(parameters, there, strict=True):
            if one:
                grad = torch.zeros_like(p) if p.grad is None else p.grad.contiguous()
                p.grad = self.add_(grad).div_(self.size)

    # ------------------------------------------------------------------ what the hosts know of one another
    @torch._disable_dynamo
    def agree(self, description: dict[str, Any]) -> None:
        """Compares what the ranks are about to do.

        Args:
            description: of plain values, whose ``repr`` is the same on all ranks; its first entry says which call it
                is.

        Raises:
            RanksError: on all ranks, if it differs.
        """
        self.merge(description, [])

    @torch._disable_dynamo
    def merge(self, description: dict[str, Any], pattern: Pattern) -> Pattern:
        """The same, and a pattern that is true where it is on any rank.

        Args:
            description: as of `agree`.
            pattern: rows of the same lengths on all ranks.

        Raises:
            RanksError: on all ranks, if the description differs.
        """
        flat = [one for row in pattern for one in row]
        numbers = self._exchange([digest(description), digest(flat)])
        if any(other[0] != numbers[0][0] for other in numbers):
            everything = dict(zip(self.members, self._everything(description), strict=True))
            raise RanksError(difference(everything, self._me, self.argument), self)
        if all(other[1] == numbers[0][1] for other in numbers):
            return pattern
        union = torch.tensor(flat, dtype=torch.uint8)
        dist.all_reduce(union, dist.ReduceOp.MAX, group=self._hosts)
        merged = iter(union.bool().tolist())
        return [[next(merged) for _ in row] for row in pattern]

    def _exchange(self, numbers: list[int]) -> list[list[int]]:
        """The numbers of all ranks; always as many, so that one call meets another one."""
        mine = torch.tensor(numbers, dtype=torch.int64)
        others = [torch.empty_like(mine) for _ in range(self.size)]
        try:
            dist.all_gather(others, mine, group=self._hosts)
        except RuntimeError as error:
            raise RanksError(
                f"rank {self._me} waited for the other ranks in vain: did one of them end, or get fewer mini-batches? "
                "Every rank has to make the same calls of backward() and step()",
                self,
            ) from error
        return [other.tolist() for other in others]

    def _everything(self, description: dict[str, Any]) -> list[dict[str, Any]]:
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, description, group=self._hosts)
        return found

    def tell(self, error: Exception) -> None:
        """Tells the others, who are waiting in their next exchange, that this rank does not come; once of an error."""
        if error is self._told:
            return
        self._told = error
        with suppress(RanksError):  # which the others raise; this rank raises what happened
            self.agree({"error": f"{type(error).__name__}: {error}"})

    # ------------------------------------------------------------------ backward calls
    def count(self, row: int) -> None:
        """Counts a ``backward`` call of a subproblem."""
        self.calls[row] = self.calls.get(row, 0) + 1

    def __reduce__(self) -> tuple[Any, ...]:
        if self.group is not None:
            raise TypeError(
                "expected the default process group in an optimizer that is copied or pickled, got one of its own: "
                f"use {self.argument}True"
            )
        return type(self), (None,)


def together(*groups: Ranks | None) -> AbstractContextManager[None]:
    """Makes an error that one rank has here, before the next exchange, an error of all of them.

    Of several groups that a rank is in, each hears of what another one has told.
    """
    known = [ranks for ranks in groups if ranks is not None]
    return _telling(known) if known else nullcontext()


@contextmanager
def _telling(groups: Sequence[Ranks]) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        for ranks in groups:
            if not isinstance(error, RanksError) or error.ranks not in (None, ranks):
                ranks.tell(error)
        raise


def _group_of_hosts(group: dist.ProcessGroup | None) -> dist.ProcessGroup | None:
    """The group itself where it can send what lies on the host, else one beside it."""
    if "cpu:" in str(dist.get_backend_config(group)):
        return group
    key = group or dist.group.WORLD
    if key not in _GROUPS_OF_HOSTS:
        members = dist.get_process_group_ranks(key)
        _GROUPS_OF_HOSTS[key] = dist.new_group(members, backend="gloo", use_local_synchronization=True)
    return _GROUPS_OF_HOSTS[key]


_GROUPS_OF_HOSTS: dict[Any, Any] = {}  # of groups whose backend knows devices only (NCCL)
