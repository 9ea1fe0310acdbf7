"""The combined gradient of T tasks in ``.grad``, from an optimizer's backward to its step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..gradients.shown import ShownGradients, is_used
from ..gradients.skipped import with_losses
from ..gradients.table import check_dense
from ..gradients.tasks import Batch, TaskGradients
from ..weighting import Needs
from .flat import FlatParameters
from .skips import SkipReport

__all__ = ["Showing"]


class Showing:
    """Writes the combined gradient to ``.grad``, and takes back what others made of it.

    Args:
        tasks: the task gradients.
        flats: the buffers, as they are now.
        report: says which rows skip the step.
        look_for_nonfinite: whether gradients are read for that where nothing else tells.
    """

    def __init__(
        self, tasks: TaskGradients, flats: Sequence[FlatParameters], report: SkipReport, *, look_for_nonfinite: bool
    ) -> None:
        self._tasks = tasks
        self._flats = list(flats)
        self._report = report
        self._look_for_nonfinite = look_for_nonfinite
        self._made: dict[bool, ShownGradients] = {}

    def _shown(self, early: bool) -> ShownGradients:
        """The shown gradients, of those weighted before their backward, or of task gradients."""
        if early not in self._made:
            tables = [flat.combined if early else flat.tasks for flat in self._flats]
            plain = self._tasks.heads == "plain"
            apart = [not early and not (plain and self._tasks.is_head(index)) for index in range(len(tables))]
            self._made[early] = ShownGradients(tables, apart)
        return self._made[early]

    # ------------------------------------------------------------------ backward
    def dropped(self, *, early: bool) -> bool:
        """True if the gradients that were shown have been taken away, or set to zero: their batch counts no more."""
        return self._shown(early).dropped()

    def begin(self, batch: Batch, *, early: bool) -> None:
        """Prepares for the next backward.

        Raises:
            RuntimeError: if it is not the first since a step, and cannot be added to the one before.
        """
        if not batch.shown:
            self._shown(early).begin()
            return
        weighting = self._tasks.weigher.weighting
        if Needs.ROWS in weighting.needs:
            raise RuntimeError(
                f"expected one backward() before a step, got a second one: {type(weighting).__name__} has learned from "
                "the gradients of the first; for several of them, make WeightedFused(..., accumulate=True)"
            )
        self._shown(early).check_unchanged()

    def show(self, batch: Batch, factor: Tensor | None, *, early: bool) -> Tensor | None:
        """Weighs the gradients that are there and puts their combination into ``.grad``.

        Args:
            batch: of these gradients.
            factor: float32 [1], of a GradScaler, which they carry, or None.
            early: whether they were weighted before their backward.

        Returns:
            The weights, float64 [1, T] (per tensor: [1, S, T]); None: they were known before.
        """
        first, batch.shown = not batch.shown, True
        if early:
            self._shown(early).show(lambda index, out: None, first=first)
            return None
        weigher, losses, found = self._tasks.weigher, batch.given_losses(), None
        if self._look_for_nonfinite:
            found = self._tasks.find_nonfinite(None, self._report.nothing_found)
        if Needs.ROWS in weigher.due():
            found = with_losses(self._report.nothing_found() if found is None else found, batch.all_losses())
            self._tasks.transform(batch, losses, found, factor)
        if Needs.ROWS not in weigher.weighting.needs:  # else it has learned from them for good
            weigher.undo()
            weigher.remember()
        weighed = self._tasks.weigh(batch, losses, found, factor, again=True)
        batch.found = weighed.found
        # Where the weights are refused the step is skipped for that; what stands in `.grad` are numbers.
        self._shown(early).show(lambda index, out: self._tasks.combine_into(index, weighed.applied, out), first=first)
        return weighed.weights

    # ------------------------------------------------------------------ the step
    def take_back(self) -> None:
        """Takes what stands in ``.grad`` now as the combined gradients.

        Those that the last step has used are left out: they still stand in ``.grad`` for others to see, where no
        backward since has put another one.

        Raises:
            TypeError: for gradients that are not dense, before anything is taken.
        """
        check_dense(p.grad for flat in self._flats for p in flat.parameters)
        for flat in self._flats:
            flat.combined.take(keep=True)
            if torch.compiler.is_compiling():  # then a step takes the gradients away
                continue
            for segment, p in enumerate(flat.parameters):
                if p.grad is not None and is_used(p.grad):
                    flat.combined.leave_out(segment)

    def mark_used(self, *, early: bool) -> None:
        """Notes that a step has used what stands in ``.grad``."""
        if torch.compiler.is_compiling():  # versions are not to be had
            self._shown(early).drop()
        else:
            self._shown(early).mark_used()

    def drop(self) -> None:
        """Takes the gradients of this round out of ``.grad``."""
        for shown in self._made.values():
            shown.drop()

    def forget(self) -> None:
        """Ends the round; ``.grad`` is left as it is."""
        for shown in self._made.values():
            shown.forget()
