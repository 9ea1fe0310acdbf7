"""The ranks that hold the shards of one model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor

from ..gradients.table import GradientTable
from ..sharding import is_sharded
from .differences import checksums, digest
from .group import Ranks

__all__ = ["RanksOfShards"]


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
        sums = self._exchange([digest(checksums(others))])
        if any(one != sums[0] for one in sums):
            warnings.warn(
                "the gradients of parameters that are not sharded differ between the ranks, beside sharded ones, which "
                "alone are averaged: these parameters drift apart. Shard the whole model after its layers, "
                "fully_shard(model)",
                UserWarning,
                stacklevel=5,
            )
