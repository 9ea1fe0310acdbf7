"""Data parallelism of `WeightedBackward`: the same call on all ranks, and means over them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ..ranks import Ranks, as_ranks, describe, together, warning_of_drift
from .table import GradientTable
from .weigher import Weigher

__all__ = ["Averages"]


class Averages:
    """Means over the ranks; of one process, the numbers themselves.

    Args:
        process_group: as of :class:`WeightedBackward`.
        members: the parameters and the task that each belongs to, or None.
        weigher: whose progress has to be the same on all ranks.

    Attributes:
        ranks: whose losses are averaged, or None.
        sharded: parameters are sharded, and backward itself averages their gradients.
    """

    def __init__(self, process_group: Any, members: Sequence[tuple[Tensor, int | None]], weigher: Weigher) -> None:
        self.ranks: Ranks | None = as_ranks(process_group, [p for p, _ in members])
        self.sharded = self.ranks is not None and self.ranks.of_shards
        self._alone = process_group is None and not self.sharded  # as far as was said
        self._looked = False
        self._members = members
        self._weigher = weigher

    def join(self, options: dict[str, Any]) -> None:
        """Makes sure that all ranks are about to do the same, from the same parameters and random numbers."""
        if self.ranks is None:
            return
        groups = [{"params": [p], "task": task} for p, task in self._members]
        self.ranks.agree({"call": "WeightedBackward", **options, **self._weigher.description(), **describe(groups)})
        self.ranks.share_parameters_([p for p, _ in self._members])
        self._weigher.share(self.ranks)

    def look_once(self) -> None:
        """Warns at the first call where there are several ranks that nobody has told of.

        Raises:
            RanksError: on all ranks, if they do not start with the same values.
        """
        if self._looked:
            return
        self._looked = True
        if self.ranks is not None:
            self.ranks.compare_values([p for p, _ in self._members])
        if self._alone and (text := warning_of_drift(None, "WeightedBackward", wrapper=False)):
            warnings.warn(text, UserWarning, stacklevel=4)

    def agree(self, call: str) -> None:
        """Makes sure that all ranks make the same call.

        Raises:
            RuntimeError: on all of them if not.
        """
        if self.ranks is not None:
            self.ranks.agree(self._described(call))

    def of_losses(self, losses: Tensor, call: str) -> Tensor:
        """The mean over the ranks, after a look at whether all make the same call."""
        self.agree(call)
        return losses if self.ranks is None else self.ranks.mean(losses)

    def of_tables_(self, tables: Sequence[GradientTable]) -> None:
        """Averages the gradients in these tables."""
        if self.ranks is not None:
            self.ranks.reduce_(tables, self._described("gradients"))
            for table in tables if self.ranks.summed > 1 else ():
                table.flat().div_(self.ranks.summed)

    @contextmanager
    def of_grad(self, parameters: Sequence[Tensor]) -> Iterator[None]:
        """Averages what backward adds here to ``.grad`` of these parameters."""
        if self.ranks is None or self.sharded:
            with together(self.ranks):
                yield
            return
        before = [p.grad for p in parameters]
        try:
            for p in parameters:
                p.grad = None
            with together(self.ranks):
                yield
            self.ranks.average_grad_(list(parameters), self._described("gradients"))
        except BaseException:
            for p in parameters:
                p.grad = None
            raise
        finally:
            for p, old in zip(parameters, before, strict=True):
                if old is not None:
                    p.grad = old if p.grad is None else old.add_(p.grad)

    def _described(self, call: str) -> dict[str, Any]:
        frozen = [index for index, (p, _) in enumerate(self._members) if not p.requires_grad]
        return {"call": call, "frozen parameters": frozen, **self._weigher.progress()}
