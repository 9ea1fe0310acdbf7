"""From the gradients of T tasks to one: Gram matrices, weights, the combination.

The one place for this: the optimizers and `WeightedBackward` are built on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..device import to_device
from ..weighting import Needs
from ..weighting.context import Columns
from ..weighting.judging import Measured, as_table
from ..weighting.refusal import Outcome
from .collect import TaskSlots
from .passes import Pass
from .skipped import with_losses
from .table import GradientTable, Source
from .weigher import GRAMS, Weigher

__all__ = ["Batch", "Combination", "TaskGradients", "Weighed"]

Losses = Tensor | Sequence[Tensor]
"""float64 [K, T], or K T scalars, row after row, that nobody has put into a table yet."""


@dataclass(eq=False)
class Batch:
    """All that backward leaves for the next step, beside the gradients.

    losses: for each row float64 [1, T] (one [K, T], if stacked), added up over micro-batches, or T scalars of one
        backward; None: there was none yet.
    early: the weights with which the losses were added up before their backward; None: they were not.
    shown: ``.grad`` holds the combined gradient.
    transformed: the weighting has changed the gradients in the tables, and learned from them.
    scaler: the GradScaler whose factor the gradients carry.
    gram: float64 [K, T, T] (of squares alone [K, T]), of the task gradients, where the weighting needed it.
    found: float32 [K], what was found when they were weighed, until the step takes it; None: nobody has looked.
    absent: the tasks that no backward had a loss of, in the row that was seen last; absent_of: in each row.
    constant: all losses of a loop over tasks were without a graph, or None, and some were no None.
    left: a loop over tasks was left before its end.  missed: the tasks whose turn did not come.
    table: float64 [K, T], of which ``losses`` are the rows; None: nobody has put them together.
    """

    losses: list[Losses | None] = field(default_factory=list)
    early: Outcome | None = None
    shown: bool = False
    transformed: bool = False
    scaler: Any = None
    gram: Tensor | None = None
    found: Tensor | None = None
    absent: frozenset[int] = frozenset()
    absent_of: dict[int, frozenset[int]] = field(default_factory=dict)
    constant: bool = False
    left: bool = False
    missed: tuple[int, ...] = ()
    table: Tensor | None = None

    def see(self, absent: frozenset[int], row: int = 0) -> None:
        """Notes which tasks the next losses of a row lack, before these are added."""
        self.absent = absent if self.losses[row] is None else self.absent_of.get(row, frozenset()) & absent
        self.absent_of[row] = self.absent

    def add_losses(self, row: int, losses: Losses) -> None:
        """Adds the losses of a row, float64 [1, T] (or [K, T], if stacked), or T scalars."""
        before = self.losses[row]
        self.losses[row] = losses if before is None else _table(before) + _table(losses)
        self.table = None

    @property
    def begun(self) -> bool:
        """True if a backward has left losses for this step."""
        return any(losses is not None for losses in self.losses)

    def drop_losses(self, row: int) -> None:
        """Forgets the losses of a row."""
        self.losses[row] = self.table = None

    def all_losses(self) -> Tensor | None:
        """float64 [K, T], or None where a row has none yet."""
        losses = self.given_losses()
        if losses is None or isinstance(losses, Tensor):
            return losses
        self.take_table(as_table(losses, len(self.losses)))
        return self.all_losses()

    def given_losses(self) -> Losses | None:
        """The same, but scalars where nobody has put them into a table yet."""
        if self.table is not None:
            return self.table
        there = [losses for losses in self.losses if losses is not None]
        if len(there) < len(self.losses):
            return None
        if any(isinstance(losses, Tensor) for losses in there):
            return _table(there[0]) if len(there) == 1 else torch.cat([_table(losses) for losses in there])
        return list(chain.from_iterable(there))

    def take_table(self, losses: Tensor) -> None:
        """Takes the table [K, T] that was made of the scalars."""
        self.losses = [losses] if len(losses) == 1 else list(losses.split(1))
        self.table = losses


def _table(losses: Losses) -> Tensor:
    return losses if isinstance(losses, Tensor) else as_table(losses, 1)


class Weighed(NamedTuple):
    """Weights of the task gradients.

    weights: float64 [K, T], of each tensor [K, S, T]; NaN in rows that skip the step.
    applied: the same times the factor of a GradScaler where it was divided out of the gradients; 0 in rows that are
        refused.
    found: float32 [K], not zero in rows that skip the step: `NONFINITE`, or the number of a refusal.
    """

    weights: Tensor
    applied: Tensor
    found: Tensor


class Combination(NamedTuple):
    """Gradients [K, T, P] and the weights, float64 [K, T], that combine them; None where T = 1."""

    source: Source
    weights: Tensor | None


def largest_number(dtypes: Iterable[torch.dtype]) -> float:
    """The largest number of the types that gradients of these are added up in."""
    return min(torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).max for dtype in dtypes)


class TaskGradients:
    """The gradients of T tasks on their way to one.

    Tables of shared parameters hold T gradients of each row, those of heads one, that of their own task.

    Args:
        weigher: gives the weights.
        num_tasks: T.
        heads: "plain" or "weighted": whether the gradient of a head is multiplied by its task's weight.
        collecting: "sequential" or "batched".
    """

    def __init__(self, weigher: Weigher, num_tasks: int, heads: str, collecting: str) -> None:
        self.weigher = weigher
        self.heads = heads
        self.collecting = collecting
        self.num_tasks = num_tasks
        self.bind([], [])

    def bind(
        self, tables: Sequence[GradientTable], tasks: Sequence[Sequence[int | None]], *, forget: bool = True
    ) -> None:
        """Goes on with these tables.

        tasks: for each of them, the task of each of its parameters, None where they are shared.
        forget: at the first time, the weighting forgets what it remembers of an earlier use.
        """
        self.tables = list(tables)
        self._tasks = list(tasks)
        self.trunks = [table for index, table in enumerate(self.tables) if not self.is_head(index)]
        self.slots = TaskSlots(self.tables, self._tasks, self.num_tasks)
        self._scratch: dict[int, Tensor] = {}
        self._present: dict[frozenset[int], Tensor] = {}
        self._limit = largest_number(table.layout.dtype for table in self.trunks) if self.trunks else 0.0
        if self.tables:
            layouts = [table.layout for table in self.trunks]
            columns = [numel for layout in layouts for numel in layout.numels]
            self.weigher.bind(
                len(columns),
                self.tables[0].layout.device,
                [layout.dtype for layout in layouts],
                columns=columns,
                widths=[layout.width for layout in layouts],
                forget=forget,
            )

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and deepcopy: without tables, until `bind`."""
        left_out: dict[str, Any] = {"tables": [], "_tasks": [], "trunks": [], "slots": None, "_scratch": {}}
        left_out["_present"] = {}
        return {**self.__dict__, **left_out}

    def is_head(self, index: int) -> bool:
        """True if the parameters of this table belong to single tasks."""
        return bool(self._tasks[index]) and self._tasks[index][0] is not None

    def collect(
        self, losses: Sequence[Tensor | None], row: int, way: Pass, weights: Sequence[Tensor] | None = None
    ) -> None:
        """Backward of T scalar losses into the tables; None: of tasks that are absent.

        If it fails, what the row had collected before is dropped as well: part of it has been added to.

        weights: like the losses, multiply their gradients; None: nothing does.
        """
        try:
            self.slots.collect(losses, row, self.collecting, way, weights)
        except BaseException:
            self.slots.forget(row)
            raise

    def present(self, absent: frozenset[int]) -> Tensor | None:
        """int64 [P], all tasks but these, on the device; None: there are no absent ones."""
        if not absent:
            return None
        if absent not in self._present:
            there = [task for task in range(self.num_tasks) if task not in absent]
            self._present[absent] = to_device(torch.tensor(there, dtype=torch.int64), self.weigher.preferences.device)
        return self._present[absent]

    # ------------------------------------------------------------------ weights
    def find_nonfinite(self, found: Tensor | None, new: Callable[[], Tensor]) -> Tensor | None:
        """Looks at the gradients that `weigh` does not see squares of.

        Args:
            found: float32 [K], to which 1 is written where one is infinite or NaN; None: one is made where needed.
            new: makes zeros [K].
        """
        rows = Needs.ROWS in self.weigher.due()
        for index, table in enumerate(self.tables):
            if self.is_head(index) or rows or not self._reads_squares():
                found = new() if found is None else found
                table.find_nonfinite(found)
        return found

    def _reads_squares(self) -> bool:
        """Tells whether the Gram matrix, or its diagonal, is taken.

        It is for the weighting, or to see whether the weights of several gradients fit these gradients' type.
        """
        due = self.weigher.due()
        several = any(table.num_tasks > 1 for table in self.trunks)
        return bool(due & GRAMS) or (several and Needs.ROWS not in due)

    def transform(
        self,
        batch: Batch,
        losses: Losses | None,
        found: Tensor | None,
        factor: Tensor | None,
        *,
        together: bool = False,
        preferences: Tensor | None = None,
    ) -> None:
        """Lets a weighting that does so change the gradients in place; it has learned from them then, for good.

        Args: as of `weigh`.
        """
        weigher = self.weigher
        if not self.trunks or batch.transformed or Needs.ROWS not in weigher.due():
            return
        rows = [table.flat() for table in self.trunks]
        if factor is not None:  # what a weighting remembers of gradients must not carry the factor of one step
            for row in rows:
                row.div_(factor.to(row.dtype))
        batch.transformed = True  # also if what follows fails: a step that is repeated divides no second time
        present = self.present(batch.absent)
        table = losses if losses is None or isinstance(losses, Tensor) else batch.all_losses()
        context = weigher.context(table, present=present, preferences=preferences)
        columns = [Columns(each.layout.chunks, len(each.layout.parameters)) for each in self.trunks]
        context = replace(context, columns=columns)
        if found is not None:
            finite = found == 0
            context = replace(context, finite=finite.all().expand_as(finite) if together else finite)
        weigher.weighting.transform_(rows, context)

    def weigh(
        self,
        batch: Batch,
        losses: Losses | None,
        found: Tensor | None,
        factor: Tensor | None,
        *,
        together: bool = False,
        again: bool = False,
        preferences: Tensor | None = None,
    ) -> Weighed:
        """Finds the weights of this step, after `transform`.

        Args:
            batch: of the gradients.
            losses: of all rows, or None.
            found: float32 [K], `NONFINITE` in rows that were found to be so before; None: nobody has looked yet.
            factor: float32 [1], what the gradients have to be divided by, or None.
            together: what is found in one row skips the step of all.
            again: the gradients are looked at again in the step.
            preferences: float64 [K, T] of this step alone; None: those of the weigher.
        """
        weigher = self.weigher
        if not self.trunks:
            ones = torch.ones_like(weigher.preferences)
            found = torch.zeros(len(ones), dtype=torch.float32, device=ones.device) if found is None else found
            return Weighed(ones, ones, with_losses(found, batch.all_losses() if losses is not None else None))
        present = self.present(batch.absent)
        divided, factor = (factor, None) if batch.transformed else (None, factor)
        given: dict[str, Any] = {"found": found, "together": together, "again": again}
        rest = losses
        if losses is not None and not isinstance(losses, Tensor) and present is None:
            given["scalars"], rest = losses, None
        if self._reads_squares():
            given |= {"grams": weigher.segment_grams(self.trunks), "factor": factor, "limit": self._limit}
        measured = Measured(**given)
        outcome = weigher.weigh(rest, measured, present=present, preferences=preferences)
        if outcome.losses is not None and not isinstance(losses, Tensor):
            batch.take_table(outcome.losses)
        if weigher.due() & GRAMS:
            batch.gram = outcome.sums if present is None else measured.sums()
        applied = outcome.applied if divided is None else outcome.applied * divided.double()
        return Weighed(outcome.weights, applied, outcome.found)

    # ------------------------------------------------------------------ the combination
    def combination(self, index: int, weights: Tensor) -> Combination:
        """The gradients of a table, and what combines them.

        weights: float64 [K, T] or [K, S, T], as `weigh` found and applied them.
        """
        table = self.tables[index]
        if self.is_head(index):
            if self.heads == "plain":
                return Combination(table.source(), None)
            return Combination(Source(self._combined(index, weights).unsqueeze(1), None), None)
        if weights.dim() == 2:
            return Combination(table.source(), weights)
        return Combination(Source(self._combined(index, weights).unsqueeze(1), None), None)

    def combine_into(self, index: int, weights: Tensor, out: Tensor) -> None:
        """out [K, P] <- the combined gradient of a table."""
        table = self.tables[index]
        if self.is_head(index) and self.heads == "weighted":
            of_tasks = [weights[:, task : task + 1] for task in self._tasks[index] if task is not None]
            table.combine(out, torch.stack(of_tasks, 1))
        elif self.is_head(index):
            table.combine(out, weights.new_ones(len(weights), 1))
        elif weights.dim() == 2:
            table.combine(out, weights)
        else:
            sizes = [len(trunk.layout.parameters) for trunk in self.trunks]
            place = self.trunks.index(table)
            table.combine(out, weights.split(sizes, 1)[place])

    def _combined(self, index: int, weights: Tensor) -> Tensor:
        """[K, P], the combined gradient in a buffer of its own."""
        if index not in self._scratch:
            layout = self.tables[index].layout
            wide = torch.promote_types(layout.dtype, torch.float32)  # 16 bits are rounded once, in the step
            self._scratch[index] = torch.zeros(layout.num_rows, layout.width, dtype=wide, device=layout.device)
        self.combine_into(index, weights, self._scratch[index])
        return self._scratch[index]
