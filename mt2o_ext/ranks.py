"""Data parallelism: the ranks of a process group, each with mini-batches of its own, take the same steps.

This is the only module that talks to other ranks.  Gradients and losses travel where they lie; what the hosts have to
know of one another (which call this is, what is frozen, how many backward passes there were) travels between the hosts
as two numbers, which are equal on all ranks as long as nothing is wrong.  Where they are not, all ranks know it from
the same exchange: then they tell one another everything, and each raises an error that names the difference.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from hashlib import blake2b
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .gradients.table import GradientTable
from .sharding import group_of_shards, is_sharded

__all__ = ["Ranks", "RanksError", "RanksOfShards", "as_ranks", "checksums", "describe", "together", "warning_of_drift"]

Pattern = list[list[bool]]


class RanksError(RuntimeError):
    """The ranks of a process group do not do the same; raised on all of them."""


class Ranks:
    """The ranks of a process group; each has its own mini-batch and the same parameters.

    Args:
        group: the process group, None for the default one.

    Attributes:
        size: how many there are.
        of_shards: the parameters are sharded over them.
        calls: how many ``backward`` calls of each subproblem this rank has made since the last step.
    """

    of_shards = False

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = group
        self.size = dist.get_world_size(group)
        self.calls: dict[int, int] = {}
        self._members = dist.get_process_group_ranks(group or dist.group.WORLD)
        self._me = dist.get_rank()
        self._first = self._members[0]
        self._hosts = _group_of_hosts(group)
        self._told: Exception | None = None

    @property
    def summed(self) -> int:
        """The number of gradients that are added up in the sums of `reduce_`."""
        return self.size

    def same_as(self, other: Ranks) -> bool:
        """True if these are the same ranks."""
        return sorted(self._members) == sorted(other._members)

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
        numbers = self._exchange([_digest(sums), _digest(sorted(sums))])
        first = numbers[0]
        for rank, own in zip(self._members, numbers, strict=True):
            if own[0] != first[0] and own[1] == first[1]:
                raise RanksError(
                    f"rank {rank} has the parameters of rank {self._first} in another order (this is rank {self._me}): "
                    "give them in the same order on all ranks (a set, say, has none)"
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
        numbers = self._exchange([_digest(description), _digest(flat)])
        if any(other[0] != numbers[0][0] for other in numbers):
            raise RanksError(
                _difference(dict(zip(self._members, self._everything(description), strict=True)), self._me)
            )
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
                "Every rank has to make the same calls of backward() and step()"
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
                "use process_group=True"
            )
        return type(self), (None,)


class RanksOfShards(Ranks):
    """The ranks that hold the shards of DTensor parameters, whose gradients backward itself averages over them.

    Each has its own mini-batch, or (of tensor parallelism) the same as others.  Parameters that are not sharded have
    the same gradients on all ranks, which is up to the user: tensor parallelism makes them so.
    """

    of_shards = True

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        super().__init__(group)
        self._looked = False  # at the gradients of parameters that are not sharded

    @property
    def summed(self) -> int:
        """1: the gradients are those of all ranks."""
        return 1

    def share_parameters_(self, parameters: Sequence[Tensor]) -> None:
        """Shares the first rank's values of those parameters that are not sharded; raises as of `Ranks`."""
        super().share_parameters_([p for p in parameters if not is_sharded(p)])

    def compare_values(self, parameters: Sequence[Tensor]) -> None:
        """Compares the values of those parameters that are not sharded; raises as of `Ranks`."""
        super().compare_values([p for p in parameters if not is_sharded(p)])

    def reduce_(self, tables: Sequence[GradientTable], call: dict[str, Any]) -> None:
        """Leaves the gradients as they are, after a look at whether all ranks have the same ones.

        What is there on some ranks only is zero on the others afterwards.
        """
        filled = [there for table in tables for there in table.filled]
        union = self.merge(call, filled)
        if union != filled:
            pairs = iter(union)
            for table in tables:
                table.fill([next(pairs) for _ in table.filled])
        if not self._looked:
            self._look_at_others(tables)

    def _look_at_others(self, tables: Sequence[GradientTable]) -> None:
        """Warns at the first gradients where those of parameters that are not sharded differ between the ranks."""
        self._looked = True
        others = [
            grad
            for table in tables
            for grads in table.tensors
            for p, grad in zip(table.layout.parameters, grads, strict=True)
            if grad is not None and not is_sharded(p)
        ]
        if not others:
            return
        sums = self._exchange([_digest(checksums(others))])
        if any(one != sums[0] for one in sums):
            warnings.warn(
                "the gradients of parameters that are not sharded differ between the ranks, beside sharded ones, which "
                "alone are averaged: these parameters drift apart. Shard the whole model after its layers, "
                "fully_shard(model)",
                UserWarning,
                stacklevel=5,
            )


def together(ranks: Ranks | None) -> AbstractContextManager[None]:
    """Makes an error that one rank has here, before the next exchange, an error of all of them."""
    return nullcontext() if ranks is None else _telling(ranks)


@contextmanager
def _telling(ranks: Ranks) -> Iterator[None]:
    try:
        yield
    except RanksError:
        raise
    except Exception as error:
        ranks.tell(error)
        raise


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
    got = type(process_group).__name__
    raise TypeError(
        f"expected process_group as a ProcessGroup, True (the default group), False or None (no data parallelism), "
        f"got {got}: pass one of these"
    )


def warning_of_drift(process_group: Any, name: str, *, wrapper: bool) -> str | None:
    """Text of the warning for a user who has several ranks but gave no group; None where there is nothing to say.

    Args:
        process_group: as the user gave it.
        name: of the class that it was given to.
        wrapper: DistributedDataParallel around the model does as well.
    """
    if process_group is not None or not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    other = ", or wrap the model in DistributedDataParallel and pass process_group=False" if wrapper else ""
    return (
        f"torch.distributed runs with {dist.get_world_size()} ranks, but {name} was given no process_group=: each rank "
        "uses the gradients of its own mini-batches only, and the parameters of the ranks drift apart. Pass "
        f"process_group=True (the default group){other}. process_group=False says that this is taken care of"
    )


def warning_of_draws(process_group: Any) -> str | None:
    """Text of the warning where ranks draw points of their own; None where there is nothing to say.

    process_group: as the user gave it.
    """
    if process_group is not False or not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    return (
        'with front="vertices" and process_group=False each rank draws random points of its own, and gradients that '
        "somebody averages over the ranks would be of different points. Pass process_group=True, or a generator= with "
        'the same seed on all ranks, or take front="rows"'
    )


def check_not_wrapped(parameters: Sequence[Tensor], what: str, advice: str = "") -> None:
    """Checks that no DistributedDataParallel is around the model, which cannot average what an optimizer uses.

    It averages one gradient of each parameter, not those of several tasks, nor those of other points on each rank.

    Args:
        parameters: of the optimizer.
        what: it cannot average.
        advice: another way out.

    Raises:
        RuntimeError: if there is one.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return
    from torch.nn.parallel import DistributedDataParallel

    known = set(map(id, parameters))
    for found in gc.get_objects():  # once in the life of an optimizer: nobody else tells who wraps a model
        if type(found) is DistributedDataParallel and any(id(p) in known for p in found.parameters()):
            raise RuntimeError(
                f"DistributedDataParallel cannot average {what}: the ranks would drift apart. Pass process_group=True "
                f"instead of False (and use the model without the wrapper){advice}"
            )


@torch.no_grad()
def checksums(tensors: Sequence[Tensor]) -> list[int]:
    """For each tensor a number that is made from its bits, and is the same on all devices."""
    of_size = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = [tensor.detach().view(of_size[tensor.element_size()]).sum(dtype=torch.int64) for tensor in tensors]
    found: list[int] = torch.stack([one.to(sums[0].device) for one in sums]).tolist() if sums else []
    return found


def describe(groups: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Parameter groups as `Ranks.agree` compares them."""
    of_groups, parameters = [], []
    for group in groups:
        plain = {key: value for key, value in group.items() if isinstance(value, (bool, int, float, str, tuple))}
        of_groups.append({**plain, "lr": float(group["lr"])} if "lr" in group else plain)
        names = group.get("param_names", [None] * len(group["params"]))
        for name, p in zip(names, group["params"], strict=True):
            kind = {"shape": list(p.shape), "dtype": str(p.dtype), "requires_grad": p.requires_grad}
            if is_sharded(p):
                kind["placements"] = str(p.placements)
            parameters.append({"name": name, **kind} if name else kind)
    return {"number of parameters": len(parameters), "parameter": parameters, "parameter group": of_groups}


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


def _digest(value: Any) -> int:
    """The same number on all ranks for the same plain value."""
    return int.from_bytes(blake2b(repr(value).encode(), digest_size=7).digest(), "little")


def _difference(descriptions: dict[int, dict[str, Any]], me: int) -> str:
    """The first thing in which descriptions differ, by rank."""
    failed = {rank: one["error"] for rank, one in descriptions.items() if "error" in one}
    if failed:
        return "; ".join(f"{_ranks([rank])} failed: {error}" for rank, error in failed.items())
    path, values = _descend("", descriptions)
    by_value: dict[str, list[int]] = {}
    for rank, value in values.items():
        by_value.setdefault(_text(value), []).append(rank)
    told = "; ".join(
        f"{_ranks(ranks)} {'has' if len(ranks) == 1 else 'have'} {value}" for value, ranks in by_value.items()
    )
    return (
        f"the ranks of process_group= differ in {path}: {told} (this is rank {me}). All ranks have to make the same "
        "optimizer for the same model, and the same calls"
    )


def _descend(path: str, values: dict[int, Any]) -> tuple[str, dict[int, Any]]:
    """The innermost values that differ, and where they are."""
    first = next(iter(values.values()))
    every = list(values.values())
    keys: Sequence[Any] = ()
    if all(isinstance(value, dict) for value in every):
        keys = list(dict.fromkeys(key for value in every for key in value))
    elif all(isinstance(value, list) and len(value) == len(first) for value in every):
        keys = range(len(first)) if any(isinstance(value, dict) for value in first) else ()
    for key in keys:
        inner = {rank: value.get(key) if isinstance(value, dict) else value[key] for rank, value in values.items()}
        if any(repr(value) != repr(inner[next(iter(inner))]) for value in inner.values()):
            return _descend(f"{path} {key}".strip() if path else str(key), inner)
    return path, values


def _text(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 200 else text[:200] + "..."


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
