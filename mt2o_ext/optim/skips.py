"""Steps that an optimizer skips: counted, explained, warned of."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from ..device import host_knows
from ..gradients.skipped import REASONS, RefusedLosses, Refuser, SkippedSteps
from ..loss_domain import Reason
from ..ops import count_
from .exchange import Exchange

__all__ = ["SkipReport"]

ELSEWHERE = Reason("another rank could not make its step, and its warning says why")


class SkipReport:
    """Counts the skipped steps of K subproblems, finds out why, and warns.

    Args:
        num_rows: K.
        exchange: with the ranks that have other subproblems, or None.
        skip_all: what is found in one row skips the step of all.
        refusers: who may refuse a step for what is finite; of two that do the last one is told of.

    Attributes:
        counts: int64 [K].
    """

    def __init__(
        self, num_rows: int, exchange: Exchange | None, *, skip_all: bool, refusers: Sequence[Refuser]
    ) -> None:
        self.skip_all = skip_all
        self.exchange = exchange
        self.counts = torch.zeros(num_rows, dtype=torch.int64)
        self._refusers = list(refusers)
        self._skips = SkippedSteps(num_rows)

    def to(self, device: torch.device) -> None:
        """Moves the counts to a device."""
        if self.counts.device != device:
            self.counts = self.counts.to(device)
            self._skips.to(device)

    def nothing_found(self) -> Tensor:
        """float32 [K] of zeros, to write what is found to."""
        return torch.zeros(len(self.counts), dtype=torch.float32, device=self.counts.device)

    def rows_to_skip(self, found: Tensor) -> Tensor:
        """Says which rows skip the step, from what was found in each, float32 [K].

        Returns:
            float32 [K], not zero in rows that are skipped; [1] where all skip it together.
        """
        if not self.skip_all or len(self.counts) == 1:
            return found
        return found.amax(0, keepdim=True)

    def with_refusals(self, found: Tensor) -> Tensor:
        """found, with the number of the reason in rows whose losses were refused (a weighting has written its own)."""
        for index, refuser in enumerate(self._refusers):
            if isinstance(refuser, RefusedLosses) and (refusals := refuser.refusals()) is not None:
                before = len(REASONS) + self._offset_of(index)
                found = torch.where(refusals[:, 0] > 0, (refusals[:, 0] + before).to(found), found)
        return self._with_others(found) if self.skip_all and self.exchange is not None else found

    def _with_others(self, found: Tensor) -> Tensor:
        """found, and the last of the reasons in all rows where nothing was found here, but on another rank."""
        assert self.exchange is not None
        here = found.amax(0, keepdim=True)
        elsewhere = (here == 0) & (self.exchange.ranks.most(here) != 0)
        return torch.where(elsewhere, float(len(self._reasons())), found)

    def _offset_of(self, index: int) -> int:
        """The number of reasons of the refusers before one of them."""
        return sum(len(refuser.reasons) for refuser in self._refusers[:index])

    def count(
        self,
        found: Tensor,
        skipped: Tensor,
        *,
        expected: bool,
        weights: Tensor | None = None,
        finite: Tensor | None = None,
    ) -> None:
        """Counts skipped rows and warns, of each reason once, and again while nothing is learned.

        If the rows are on a GPU, it warns at a later step.

        Args:
            found: float32 [K], the number of what was found in a row, see `_reasons`; 0: nothing.
            skipped: as `rows_to_skip` gave it.
            expected: infinities are no surprise: a GradScaler looks for them.
            weights: float64 [1, T], with which losses were added up before their backward, or None.
            finite: bool [1], whether these losses were finite, or None.
        """
        compiling = torch.compiler.is_compiling()
        count_(
            self.counts, None if compiling else self._skips.table, found, self._refusals(), weights, finite,
            offset=len(REASONS), together=self.skip_all, expected=expected,
        )  # fmt: skip
        if compiling:
            return
        self._skips.changed()
        if not (host_knows(skipped) and not any(skipped.tolist())):
            self.warn(stacklevel=5)

    def _reasons(self) -> Sequence[Reason]:
        """The words for what is found in a row, counted from 1."""
        reasons = (*REASONS, *chain.from_iterable(refuser.reasons for refuser in self._refusers))
        return reasons if self.exchange is None else (*reasons, ELSEWHERE)

    def _refusals(self) -> Tensor | None:
        """float64 [K, 3], of all who may refuse: the number of the reason, counted through; task and value."""
        found = None
        for index, refuser in enumerate(self._refusers):
            refusals = refuser.refusals()
            if refusals is not None and index > 0:
                told = refusals[:, :1] > 0
                numbers = torch.where(told, refusals[:, :1] + self._offset_of(index), 0.0)
                refusals = torch.cat([numbers, refusals[:, 1:]], 1)
                refusals = refusals if found is None else torch.where(told, refusals, found)
            found = found if refusals is None else refusals
        return found

    def warn(self, *, wait: bool = False, stacklevel: int = 3) -> None:
        """Warns of what is news; wait: the host may wait for the device to learn of it."""
        first = 0 if self.exchange is None else self.exchange.share.own.start
        several = len(self.counts) > 1 or self.exchange is not None
        whom = (" for all" if self.skip_all else " for it") if several else ""
        for skips in self._skips.news(wait=wait):
            reason = self._reasons()[skips.reason - 1]
            fact = reason.of([first + row for row in skips.rows] if several else None, skips.task, skips.value)
            if skips.in_a_row >= 10:
                what = f"{skips.in_a_row} steps one after the other were skipped{whom}, nothing is learned."
            else:
                what = f"this step was skipped{whom}, nothing of it was changed."
            counted = "Later ones are counted in optimizer.skipped_steps, and told of again while nothing is learned."
            text = " ".join(filter(None, [f"{fact}: {what}", reason.remedy, counted]))
            warnings.warn(text, UserWarning, stacklevel=stacklevel)
