"""Steps that an optimizer skips: counted, explained, warned of."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from ..device import host_knows
from ..gradients.skipped import NONFINITE, OF_WEIGHTED_SUM, REASONS, Refuser, SkippedSteps
from ..loss_domain import Reason

__all__ = ["SkipReport"]


class SkipReport:
    """Counts the skipped steps of K subproblems, finds out why, and warns.

    Args:
        num_rows: K.
        skip_all: what is found in one row skips the step of all.
        refusers: who may refuse a step for what is finite; of two that do the last one is told of.

    Attributes:
        counts: int64 [K].
    """

    def __init__(self, num_rows: int, *, skip_all: bool, refusers: Sequence[Refuser]) -> None:
        self.skip_all = skip_all
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
        """float32 [K], not zero in rows whose step is skipped, from what was found in each row."""
        return found.amax().expand_as(found).contiguous() if self.skip_all else found

    def with_refusals(self, found: Tensor) -> Tensor:
        """found, with the number of the reason in each row that was refused."""
        for index, refuser in enumerate(self._refusers):
            refused = refuser.refused
            if refused is None or (host_knows(refused) and not bool(refused.any())):
                continue
            refusals = refuser.refusals()
            assert refusals is not None
            before = len(REASONS) + sum(len(other.reasons) for other in self._refusers[:index])
            found = torch.where(refused, (refusals[:, 0] + before).to(found), found)
        return found

    def count(self, found: Tensor, skipped: Tensor, *, expected: bool, weights: Tensor | None = None) -> None:
        """Counts skipped rows and warns, of each reason once, and again while nothing is learned.

        If the rows are on a GPU, it warns at a later step.

        Args:
            found: float32 [K], the number of what was found in a row, see `_reasons`; 0: nothing.
            skipped: float32 [K], not zero in rows whose step is skipped.
            expected: infinities are no surprise: a GradScaler looks for them.
            weights: float64 [1, T], with which losses were added up before their backward, or None.
        """
        self.counts += (skipped != 0).to(self.counts)
        if expected:
            found = found * (1 - infinite(found))
        if torch.compiler.is_compiling():
            return
        if host_knows(skipped) and not bool(skipped.any()):
            self._skips.nothing_skipped()
            return
        self._skips.add(self._refusals(found, weights), skipped)
        self.warn(stacklevel=5)

    def _reasons(self) -> Sequence[Reason]:
        """The words for what is found in a row, counted from 1."""
        return (*REASONS, *chain.from_iterable(refuser.reasons for refuser in self._refusers))

    def _refusals(self, found: Tensor, weights: Tensor | None) -> Tensor:
        """float64 [K, 3]: ``found``, and the task and the value that its words are about."""
        numbers = found.double().unsqueeze(1)
        table = torch.cat([numbers, torch.zeros_like(numbers).expand(-1, 2)], 1)
        offset = len(REASONS)
        for refuser in self._refusers:
            end = offset + len(refuser.reasons)
            refusals = refuser.refusals()
            if refusals is not None:
                own = torch.cat([numbers, refusals[:, 1:]], 1)
                table = torch.where((numbers > offset) & (numbers <= end), own, table)
            offset = end
        if weights is not None:
            at = weights.abs().argmax(1, keepdim=True)
            largest = torch.cat([numbers, at.double(), weights.gather(1, at)], 1)
            table = torch.where(numbers == OF_WEIGHTED_SUM, largest, table)
        return table

    def warn(self, *, wait: bool = False, stacklevel: int = 3) -> None:
        """Warns of what is news; wait: the host may wait for the device to learn of it."""
        several = len(self.counts) > 1
        whom = (" for all" if self.skip_all else " for it") if several else ""
        for skips in self._skips.news(wait=wait):
            reason = self._reasons()[skips.reason - 1]
            fact = reason.of(skips.rows if several else None, skips.task, skips.value)
            if skips.in_a_row >= 10:
                what = f"{skips.in_a_row} steps one after the other were skipped{whom}, nothing is learned."
            else:
                what = f"this step was skipped{whom}, nothing of it was changed."
            counted = "Later ones are counted in optimizer.skipped_steps, and told of again while nothing is learned."
            text = " ".join(filter(None, [f"{fact}: {what}", reason.remedy, counted]))
            warnings.warn(text, UserWarning, stacklevel=stacklevel)


def infinite(found: Tensor) -> Tensor:
    """float32 [K], 1 where what was found is an infinity or NaN."""
    return ((found == NONFINITE) | (found == OF_WEIGHTED_SUM)).to(found)
