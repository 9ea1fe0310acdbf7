"""The steps of connection strength: the turns of the tasks, and what phase 1 and phase 2 make of them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks import check_function
from ..device import refuse_in_graph
from ..gradients.passes import Backward, Pass
from ..gradients.table import GradientTable, Source
from ..gradients.tasks import Combination
from ..gradients.visit import ALONE
from ..priority.history import HistoryRecorder
from ..priority.phases import PhaseDraw
from ..priority.projection import Projections
from ..ranks import together
from .amp import Scaling
from .base import FlatOptimizer, nothing_left
from .step import StepInputs
from .turns import ANOTHER, OUTSIDE, Turns, ask_each, take_turn, whose_turn

__all__ = ["ConnectionSteps"]


class ConnectionSteps(FlatOptimizer):
    """An optimizer whose steps run one of two phases, with a turn for each task."""

    _draw: PhaseDraw
    _projections: Projections
    _recorder: HistoryRecorder

    # ------------------------------------------------------------------ one task after the other
    def tasks(self) -> Generator[int, None, None]:
        """Goes through the tasks of one step, each with a mini-batch, a forward and a backward pass of its own.

            for task in optimizer.tasks():
                optimizer.backward(task_loss(model, *next(batches[task]), task))
            optimizer.step()

        Between two turns phase 1 makes the step of the task before, so run the model anew in each turn.  With a
        ``torch.amp.GradScaler``: ``optimizer.backward(loss, scaler=scaler)``, and ``scaler.step(optimizer)`` after the
        loop.  A loop that is left early makes no step: its draw and its gradients are dropped (the steps that phase 1
        has made by then stay).

        Yields:
            The task whose turn it is; in phase 1 in random order, if ``shuffle``.

        Raises:
            RuntimeError: inside of another such loop, and after one that no ``step`` has ended.
        """
        if (turns := self._now.turns) is not None:
            raise RuntimeError(ANOTHER if turns.complete else ALONE)
        refuse_in_graph(
            self._buffers.device, "ConnectionStrengthFused", "it draws phase and order of tasks on the host"
        )
        if self._draw.steps == self._draw.total_steps:
            self._warn_once(
                "total_steps", f"this is step {self._draw.total_steps + 1} of {self._draw.total_steps}: phase 2 stays"
            )
        self._look_for_ranks()
        before = self._draw.state_dict()
        phase, order = self._draw.next(self._num_tasks)
        turns = self._now.turns = Turns(phase, order, before, self._num_tasks)
        try:
            self._clear()
            for task in order:
                turns.task = task
                yield task
                self._end_turn(turns, task)
            turns.task, turns.complete = None, True
        finally:
            if not turns.complete:
                self._take_back(turns)

    def backward(
        self,
        loss: Tensor | None,
        *,
        scaler: Any = None,
        retain_graph: bool = False,
        backward: Backward | None = None,
    ) -> None:
        """Backward of a loss of the task whose turn it is, in a loop over `tasks`; several calls add up.

        Args:
            loss: a scalar; None, or a constant, if the task has no data now: see ``step``.
            scaler: a ``torch.amp.GradScaler``, by whose factor the loss is multiplied.
            retain_graph: as in ``torch.autograd.backward``.
            backward: the trainer's backward for this call, in the place of that of the constructor.

        A call that fails drops what this task has given in its turn.

        Raises:
            TypeError: for a loss that is no tensor.
            ValueError: for a loss that is no scalar, and another scaler than in calls before.
            RuntimeError: outside of a loop over `tasks`.
        """
        if self._now.turns is None or self._now.turns.task is None:
            raise RuntimeError(OUTSIDE)
        with together(self._ranks):
            self._give(self._now.turns, loss, scaler, self._way(backward, retain_graph))

    def _give(self, turns: Turns, loss: Tensor | None, scaler: Any, way: Pass) -> None:
        """Backward of a loss into ``.grad``."""
        turns.give(loss, scaler, way, self._buffers.parameters())

    @torch.no_grad()
    def _end_turn(self, turns: Turns, task: int) -> None:
        """Keeps the gradients of a task; in phase 1 makes a step of the parameters that its loss has one for."""
        if task not in turns.losses:
            return
        with together(self._ranks):
            self._synchronize()
            tables = self._tables(turns.phase)
            take_turn(tables, self._buffers.tasks, task)
            if turns.phase == 2:
                return
            self._buffers.refresh(self.param_groups, self._base, None)
        self._reduce(tables, task)
        loss = turns.losses[task] = self._joint(turns.losses[task])
        turns.found.append(self._take_step(turns, tables, loss.reshape(1, 1)))
        self._clear()

    def _take_back(self, turns: Turns) -> None:
        """Drops a step that does not come to its end."""
        self._clear()
        self._draw.load_state_dict(turns.before)
        self._now.turns = None

    # ------------------------------------------------------------------ the step
    @torch._disable_dynamo
    @torch.no_grad()
    def step(self, closure: Callable[[int], Tensor | None] | None = None) -> Tensor:  # type: ignore[override]
        """One step: phase 1 or phase 2.

        Args:
            closure: ``task -> loss``, a scalar with a graph; None, or a constant, if the task has no data now: it is
                absent then (in phase 2 it owns no channel), and its head stays as it is.  Called under grad mode once
                for each task, in phase 1 with parameters that the tasks before have changed: run the model anew in each
                call.  One without arguments (trainers hand on such ones) finds the task in ``optimizer.task``.  None
                (or a trainer's, which returns None) after a loop over `tasks`.

        In phase 2, and for the first task of phase 1, nothing has been changed where an error is raised.

        Returns:
            The losses, float64 [T]; NaN of absent tasks.

        Raises:
            TypeError: if there is neither a closure nor a loop before, or a loss is no tensor.
            ValueError: for a loss that is no scalar, and where all tasks are absent.
            RuntimeError: if no parameter gets a gradient, and inside of a loop over `tasks`.
        """
        if closure is None and self._now.turns is None:
            if self._only_asked_for_state():
                return torch.zeros(self._num_tasks, dtype=torch.float64)
            raise TypeError(
                "expected step(closure), got none, and no loop over tasks() before: call "
                "optimizer.step(lambda task: task_loss(model, x, y, task))"
            )
        if closure is not None:
            check_function("closure", closure, "pass a function task -> loss")
            self._run(closure)
        turns = self._now.turns
        assert turns is not None
        if not turns.complete:
            raise RuntimeError(
                "expected step() after the loop over tasks(), got it inside: call it when all have their gradients"
            )
        try:
            scaling = Scaling.of(self, turns.scaler)
            scaling.check_known()
            if not turns.losses:
                raise ValueError(
                    "expected a loss of at least one task, got none: do not call step() without any data (None, or a "
                    "loss without graph, says that a task has none; were the losses detached, or computed under "
                    "no_grad?)"
                )
            if turns.phase == 2:
                turns.found.append(self._conserve(turns))
        except BaseException:
            self._take_back(turns)
            raise
        found, losses = torch.stack(turns.found), turns.all_losses()
        scaling.tell(self, found)
        self._clear()
        self._now.skipped, self._now.turns = found.amax(0), None
        self._recorder.phases.append(self._draw.phase)
        self._record_step(losses[None], self._now.skipped)
        return losses

    def _run(self, closure: Callable[..., Tensor | None]) -> None:
        """Asks a closure for the loss of each task; after a loop that of a trainer, which has none to give."""
        ask_each(closure, self._now.turns, self.tasks, self._give_one)

    def _give_one(self, loss_of: Callable[[], Tensor | None]) -> None:
        """Backward of the loss of the task whose turn it is."""
        turns = self._now.turns
        assert turns is not None
        with together(self._ranks):
            self._give(turns, loss_of(), None, self._pass)

    def _conserve(self, turns: Turns) -> Tensor:
        """Phase 2: one step with the gradients of all tasks; returns float32 [1], not zero if it was skipped."""
        with together(self._ranks):
            tables = self._tables(turns.phase)
            self._buffers.refresh(self.param_groups, self._base, None)
        self._reduce(tables, None, turns.absent)
        there = sorted(turns.losses)
        joint = self._joint(torch.stack([turns.losses[task] for task in there]))
        turns.losses = dict(zip(there, joint, strict=True))
        return self._take_step(turns, tables, joint.reshape(1, -1))

    def _tables(self, phase: int) -> list[GradientTable]:
        """One gradient of each parameter in phase 1, those of T tasks in phase 2."""
        return [flat.combined if phase == 1 else flat.tasks for flat in self._buffers.flats]

    def _take_step(self, turns: Turns, tables: Sequence[GradientTable], losses: Tensor) -> Tensor:
        """A step of the base rule; returns float32 [1], not zero if it was skipped."""
        if not any(any(table.reached()) for table in tables):
            raise RuntimeError(
                "expected a loss with a gradient for parameters of this optimizer, got none: were they replaced in the "
                "model since it was made? Then make a new one"
            )
        scaling = Scaling.of(self, turns.scaler)
        found = self._find_nonfinite(tables, losses, scaling)
        if not nothing_left(found):
            combinations = (
                self._project(tables, turns.absent)
                if turns.phase == 2
                else [Combination(table.source(), None) for table in tables]
            )
            divisor = self._of_all_ranks(scaling.kept_factor(self._buffers.device))
            self._apply(
                [
                    StepInputs.of(table, gradients, divisor, found)
                    for table, gradients in zip(tables, combinations, strict=True)
                ]
            )
        self._report.count(found, found, expected=turns.scaler is not None)
        return found

    def _project(self, tables: Sequence[GradientTable], absent: frozenset[int]) -> list[Combination]:
        """The gradients of phase 2: projected where a table is of shared parameters."""
        projected = self._projections.combine(self._ranks, self._recorder, absent)
        return [
            Combination(table.source() if combined is None else Source(combined, None), None)
            for table, combined in zip(tables, projected, strict=True)
        ]

    @property
    def task(self) -> int:
        """The task whose turn it is, in the closure of ``step`` or a loop over `tasks`; RuntimeError elsewhere."""
        return whose_turn(self._now.turns)

    def _reduce(self, tables: Sequence[GradientTable], task: int | None, absent: frozenset[int] = frozenset()) -> None:
        """Sums gradients over the ranks, after a look at whether all are at the same step."""
        if self._ranks is not None:
            place = {"call": "step()", "number of steps": self._draw.steps, "phase": self._draw.phase, "task": task}
            place["tasks without a loss"] = sorted(absent)
            self._ranks.reduce_(tables, {**place, **self._call("step()")})
