"""What an optimizer says of the steps that it skips."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from ..loss_domain import Reason
from .amp import ScaledGradients
from .skipped import NONFINITE, OF_WEIGHTED_SUM, REASONS, Refuser, SkippedSteps

__all__ = ["ReportsSkips"]


class ReportsSkips(ScaledGradients):
    """The part of an optimizer that counts skipped steps, finds out why, and warns."""

    _num_rows: int
    _skip_all: bool
    _skipped: Tensor
    _skips: SkippedSteps

    @staticmethod
    def _host_knows(tensor: Tensor) -> bool:
        raise NotImplementedError

    def _count_skipped(self, found: Tensor, skipped: Tensor) -> None:
        """Counts skipped rows and warns, of each reason once, and again while nothing is learned; if they are on a GPU,
        at a later step.

        found: float32 [K], the number of what was found in a row, see `_reasons`; 0: nothing.
        """
        self._skipped += (skipped != 0).to(self._skipped)
        infinite = ((found == NONFINITE) | (found == OF_WEIGHTED_SUM)).to(found)
        self._tell_scaler(infinite)
        if self._under_scaler:  # which looks for infinities: these are no surprise
            found = found * (1 - infinite)
        if torch.compiler.is_compiling():
            return
        if self._host_knows(skipped) and not bool(skipped.any()):
            self._skips.nothing_skipped()
            return
        self._skips.add(self._refusals(found), skipped)
        self._warn_of_skipped()

    def _refusers(self) -> Sequence[Refuser]:
        """Who may refuse a step for what is finite; of two that do the last one is told of."""
        return ()

    def _reasons(self) -> Sequence[Reason]:
        """The words for what is found in a row, counted from 1."""
        return (*REASONS, *chain.from_iterable(refuser.reasons for refuser in self._refusers()))

    def _with_refusals(self, found: Tensor) -> Tensor:
        """found, with the number of the reason in each row that was refused."""
        refusers = self._refusers()
        for index, refuser in enumerate(refusers):
            refused = refuser.refused
            if refused is None or (self._host_knows(refused) and not bool(refused.any())):
                continue
            refusals = refuser.refusals()
            assert refusals is not None
            before = len(REASONS) + sum(len(other.reasons) for other in refusers[:index])
            found = torch.where(refused, (refusals[:, 0] + before).to(found), found)
        return found

    def _refusals(self, found: Tensor) -> Tensor:
        """float64 [K, 3]: ``found``, and the task and the value that its words are about."""
        numbers = found.double().unsqueeze(1)
        table = torch.cat([numbers, torch.zeros_like(numbers).expand(-1, 2)], 1)
        offset = len(REASONS)
        for refuser in self._refusers():
            end = offset + len(refuser.reasons)
            refusals = refuser.refusals()
            if refusals is not None:
                own = torch.cat([numbers, refusals[:, 1:]], 1)
                table = torch.where((numbers > offset) & (numbers <= end), own, table)
            offset = end
        return table

    def _warn_of_skipped(self, *, wait: bool = False) -> None:
        several = self._num_rows > 1
        whom = (" for all" if self._skip_all else " for it") if several else ""
        for skips in self._skips.news(wait=wait):
            reason = self._reasons()[skips.reason - 1]
            fact = reason.of(skips.rows if several else None, skips.task, skips.value)
            if skips.in_a_row >= 10:
                what = f"{skips.in_a_row} steps one after the other were skipped{whom}, nothing is learned."
            else:
                what = f"this step was skipped{whom}, nothing of it was changed."
            counted = "Later ones are counted in optimizer.skipped_steps, and told of again while nothing is learned."
            text = " ".join(filter(None, [f"{fact}: {what}", reason.remedy, counted]))
            warnings.warn(text, UserWarning, stacklevel=3)

    @property
    def skipped_steps(self) -> Tensor:
        """int64 [K]: how many steps of each subproblem were skipped: for an infinite or NaN gradient or loss, or for a
        loss that the weighting or the scalarization is not defined for."""
        self._warn_of_skipped(wait=True)
        return self._skipped.clone()
