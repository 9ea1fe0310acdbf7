"""Steps that were not made: why, for how long, and when that is worth another warning."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..device import LateCopy
from ..loss_domain import Reason
from ..ops.judge import NONFINITE, OF_WEIGHTED_SUM, judge_
from ..scalarization import Scalarization

__all__ = [
    "NONFINITE",
    "OF_WEIGHTED_SUM",
    "REASONS",
    "RefusedCalls",
    "RefusedLosses",
    "Refuser",
    "SkippedSteps",
    "Skips",
    "found_in",
    "with_losses",
]

# By what a row that is not updated carries instead of 0; the reasons of those who may refuse a step follow.
REASONS = (
    Reason("a gradient or loss{where} was infinite or NaN"),
    Reason(
        "a gradient or loss{where} was infinite or NaN; gradients are those of the weighted losses, the largest weight "
        "was {value:.3g}, of task {task}"
    ),
)


@dataclass(frozen=True)
class Skips:
    """Subproblems ``rows`` that skip steps for one reason; task and value are of the first of them.

    in_a_row: how many steps, up to the last one.
    """

    reason: int
    rows: Sequence[int]
    task: int
    value: float
    in_a_row: int


class SkippedSteps(LateCopy):
    """Reasons why the steps of K subproblems were skipped, and how many one after the other.

    Each reason is news once.  It is again while nothing is learned: when 10, 100, 1000 ... steps of a subproblem were
    skipped one after the other.
    """

    def __init__(self, num_rows: int) -> None:
        super().__init__()
        self._table = torch.zeros(num_rows, 4, dtype=torch.float64)  # reason, task, value, how many in a row
        self._told: set[int] = set()
        self._next = 10

    def to(self, device: torch.device) -> None:
        """Moves the table to a device."""
        if device != self._table.device:
            self._table = self._table.to(device)
            self._all = self._arriving = self._event = None

    def add(self, refusals: Tensor, skipped: Tensor) -> None:
        """A step: float64 [K, 3], why (0: for no reason of its own), task and value; float32 [K], not zero: skipped."""
        table = self._table
        missed = skipped != 0
        table[:, :3] = torch.where(missed[:, None], refusals, table[:, :3])
        table[:, 3] = (table[:, 3] + 1) * missed
        self.changed()

    @property
    def table(self) -> Tensor:
        """float64 [K, 4]: reason, task, value, how many steps in a row; `changed` comes after a change of it."""
        return self._table

    def changed(self) -> None:
        """The table was changed."""
        self._all = self._table
        self._changed()

    def nothing_skipped(self) -> None:
        """The same of a step of which the host knows that all rows were updated."""
        self._table[:, 3] = 0

    def news(self, *, wait: bool = False) -> list[Skips]:
        """Skips that are known and were not told yet; all there are, if the host may wait for the device."""
        arrived = self.arrived(wait=wait)
        if arrived is None:
            return []
        table = [(int(why), int(task), value, int(count)) for why, task, value, count in arrived.tolist()]
        longest = max((count for why, *_, count in table if why), default=0)
        news = []
        for reason in sorted({why for why, *_ in table} - {0}):
            rows = [k for k, (why, *_) in enumerate(table) if why == reason]
            again = [k for k in rows if table[k][3] >= self._next]
            if again or reason not in self._told:
                rows = again or rows
                _, task, value, _ = table[rows[0]]
                news.append(Skips(reason, rows, task, value, max(table[k][3] for k in rows)))
            self._told.add(reason)
        while self._next <= longest:
            self._next *= 10
        return news


def with_losses(found: Tensor, losses: Tensor | None) -> Tensor:
    """found, and NONFINITE where a loss of a row, of losses [K, T], is infinite or NaN."""
    if losses is None:
        return found
    now, flags = torch.empty_like(found), torch.empty((2, len(found)), dtype=torch.bool, device=found.device)
    judge_(now, flags, losses.contiguous(), None, None, None, None, before=found)
    return now


def found_in(losses: Tensor | Sequence[Tensor], rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Looks at the losses of a step, and puts them into a table, in one launch.

    losses: float64 [K, T], or K T scalars, row after row.  rows: K.

    Returns:
        float32 [K], NONFINITE where a loss of the row is infinite or NaN; and float64 [K, T].
    """
    table, scalars = (losses.contiguous(), ()) if isinstance(losses, Tensor) else (None, losses)
    if table is None:
        table = torch.empty((rows, len(losses) // rows), dtype=torch.float64, device=device)
    found = torch.empty(rows, dtype=torch.float32, device=device)
    flags = torch.empty((2, rows), dtype=torch.bool, device=device)
    judge_(found, flags, table, None, None, None, None, scalars)
    return found, table


class Refuser(Protocol):
    """Who may refuse a step for what is finite: a weighting, a scalarization."""

    @property
    def reasons(self) -> Sequence[Reason]:
        """Reasons by their number, from 1."""

    @property
    def refused(self) -> Tensor | None:
        """bool [K]; None: nowhere."""

    def refusals(self) -> Tensor | None:
        """float64 [K, 3]: the number of a reason (from 1; 0: not refused), the task and the value that it is about."""


class RefusedLosses:
    """The losses of a step that its scalarization is not defined for."""

    def __init__(self, scalarization: Scalarization, num_rows: int) -> None:
        self._scalarization = scalarization
        self._num_rows = num_rows
        self._found: Tensor | None = None

    def see(self, losses: Tensor, row: int | None, present: Tensor | None = None) -> None:
        """The losses [T] of a subproblem, or [K, T] of all (None); of micro-batches the first refused one counts.

        present: int64 [P], the tasks that have a loss; None: all.
        """
        table = losses.reshape(-1, losses.shape[-1])
        found = self._scalarization.refusals(table if present is None else table.index_select(1, present))
        if found is None:
            return
        if present is not None:  # back to the numbers of all tasks
            found = torch.stack([found[:, 0], present[found[:, 1].long()].to(found), found[:, 2]], 1)
        if self._found is None or self._found.device != found.device:
            self._found = found.new_zeros(self._num_rows, 3)
        rows = self._found if row is None else self._found[row : row + 1]
        rows.copy_(torch.where(rows[:, :1] > 0, rows, found))

    def forget(self, row: int | None = None) -> None:
        """Forgets the losses of a row, or of all."""
        if self._found is not None:
            (self._found if row is None else self._found[row]).zero_()

    @property
    def reasons(self) -> Sequence[Reason]:
        """The one reason: a loss outside of the scalarization's domain."""
        return (self._scalarization.loss_domain.reason(type(self._scalarization).__name__),)

    @property
    def refused(self) -> Tensor | None:
        """bool [K]; None before the first losses that could be refused."""
        return None if self._found is None else self._found[:, 0] > 0

    def refusals(self) -> Tensor | None:
        """float64 [K, 3]: number of the reason (0: not refused), task and value; None as of ``refused``."""
        return self._found


class RefusedCalls:
    """Calls whose weights were NaN, because the weighting is not defined for what is finite."""

    def __init__(self) -> None:
        self._skips = SkippedSteps(1)

    @torch.no_grad()
    def look(self, weighting: Refuser, device: torch.device) -> None:
        """Warns of the call that was just made, if it is news; if the weights are on a GPU, at a later call."""
        if torch.compiler.is_compiling():
            return
        self._skips.to(device)
        refused = weighting.refused
        assert refused is not None
        if refused.device.type == "cpu" and not bool(refused.any()):
            self._skips.nothing_skipped()
            return
        refusals = weighting.refusals()
        assert refusals is not None
        self._skips.add(refusals, refused)
        for skips in self._skips.news():
            reason = weighting.reasons[skips.reason - 1]
            what = "the weights and the gradients of this call are NaN"
            if skips.in_a_row >= 10:
                what = f"the weights and the gradients of {skips.in_a_row} calls one after the other are NaN"
            text = f"{reason.of(None, skips.task, skips.value)}: {what}. {reason.remedy}"
            warnings.warn(text, UserWarning, stacklevel=4)
