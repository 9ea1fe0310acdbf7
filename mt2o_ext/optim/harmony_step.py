"""The steps of a model with masks: the turns of the tasks, each at its own view, and the update of what they have."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..checks import check_flag, check_function, check_index
from ..device import refuse_in_graph
from ..gradients.passes import Backward
from ..gradients.skipped import NONFINITE
from ..gradients.table import GradientTable
from ..gradients.visit import ALONE
from ..masks.tables import MaskTables
from ..ranks import together
from .amp import Scaling
from .base import FlatOptimizer, nothing_left
from .harmony_rounds import Rounds
from .harmony_shares import Shares
from .harmony_view import TaskView
from .turns import ANOTHER, OUTSIDE, Turns, ask_each, take_turn, whose_turn

__all__ = ["HarmonySteps"]


class HarmonySteps(FlatOptimizer):
    """An optimizer of one model that each task sees through its mask, and trains inside of it."""

    _tables: MaskTables
    _rounds: Rounds
    _hold: bool  # moments outside of the masks of a step
    _longest: float | None  # of a task's gradient
    _skips: bool  # steps of gradients that are not finite

    # ------------------------------------------------------------------ one task after the other
    def tasks(self, chosen: int | Sequence[int] | None = None) -> Generator[int, None, None]:
        """Goes through the tasks of one step, at each of which the model is what the task sees.

            for task in optimizer.tasks():
                optimizer.backward(task_loss(model, *next(batches[task]), task))
            optimizer.step()

        Run the model and ``backward`` in the same turn.  What is changed in the parameters meanwhile is dropped, with a
        warning.  With a ``torch.amp.GradScaler``: ``optimizer.backward(loss, scaler=scaler)``, and
        ``scaler.step(optimizer)`` after the loop.  A loop that is left early makes no step.

        Args:
            chosen: a task, or several; None: as ``turns=`` of the constructor says, the next one or all.

        Yields:
            The task whose turn it is.

        Raises:
            TypeError: for anything but tasks.
            ValueError: for no task, and for a number of no task or one that comes twice.
            RuntimeError: inside of another such loop or of `shown`, and after one that no ``step`` has ended.
        """
        order = self._rounds.order(chosen, self._num_tasks)
        if (turns := self._now.turns) is not None:
            raise RuntimeError(ANOTHER if turns.complete else ALONE)
        self._check_truth_shown()
        refuse_in_graph(self._buffers.device, "HarmonyFused", "the host tells which task's mask is shown")
        self._look_for_ranks()
        self._prepare()
        turns = self._now.turns = Turns(0, order, {}, self._num_tasks)
        try:
            self._clear()
            for task in order:
                turns.task = task
                versions = self._view.enter(task)
                try:
                    yield task
                finally:
                    self._show_truth(versions)
                self._end_turn(turns, task)
            turns.task, turns.complete = None, True
        finally:
            if not turns.complete:
                self._take_back()

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
            loss: a scalar; None, or a constant, if the task has no data now: it is absent from the step then.
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
            self._now.turns.give(loss, scaler, self._way(backward, retain_graph), self._buffers.parameters())

    @torch.no_grad()
    def _end_turn(self, turns: Turns, task: int) -> None:
        """Keeps the gradients of a task."""
        if task in turns.losses:
            with together(self._ranks):
                take_turn(self._tables_of(turns), self._buffers.tasks, task)

    def _tables_of(self, turns: Turns) -> list[GradientTable]:
        """One gradient of each parameter for the step of a single task, else those of T tasks."""
        return [flat.combined if len(turns.order) == 1 else flat.tasks for flat in self._buffers.flats]

    def _take_back(self) -> None:
        """Drops a step that does not come to its end."""
        self._clear()
        self._now.turns = None

    # ------------------------------------------------------------------ what the parameters show
    def _prepare(self) -> None:
        """Takes in what others did to parameters, groups, state and masks since the last step."""
        with together(self._ranks):
            self._synchronize()
            self._tables.refresh()

    @property
    def _view(self) -> TaskView:
        return TaskView(self._buffers, self._tables, self._now)

    def _show_truth(self, versions: dict[Tensor, int]) -> None:
        """Shows all of the model again; versions: of the parameters when the task was shown."""
        if any(p._version != version for p, version in versions.items()):
            self._warn_of_changes()
        self._view.leave()

    def _warn_of_changes(self) -> None:
        self._warn_once(
            "dropped changes",
            "parameters were changed while the model showed what a task sees, inside of tasks() or shown(): the "
            "changes are dropped. Change them outside.",
            stacklevel=5,
        )

    def _check_truth_shown(self) -> None:
        if self._now.averaged:
            raise RuntimeError(
                "expected the whole model, got what a task sees: leave shown(), or the loop over tasks(), first"
            )

    @contextmanager
    def shown(self, task: int, *, ema: bool = False) -> Iterator[None]:
        """In this context the model is what a task sees, to evaluate it and to save it.

        Its parameters are tensors of their own here: ``torch.save(model.state_dict())`` writes the model of this task,
        and a state dict that is kept stays what it is.
        What is changed in them is dropped, with a warning, and so are gradients that are made here.

        Args:
            task: 0 .. T - 1.
            ema: the running average.

        Raises:
            IndexError: for another number.
            ValueError: for ``ema=True`` without a running average.
            RuntimeError: inside of another such context, and of a loop over `tasks`.
        """
        task = check_index("task", task, self._num_tasks)
        if check_flag("ema", ema) and self._ema is None:
            raise ValueError(
                "expected an optimizer with a running average for ema=True, got one without: make HarmonyFused(..., "
                "ema=0.98), or leave ema= out"
            )
        self._check_truth_shown()
        self._prepare()
        name = "ema" if ema else None
        kept = [(p, p.grad) for _, p in self._parameters()]
        for p, _ in kept:
            p.grad = None
        view = self._view
        view.enter(task, name)
        try:
            yield
            if not view.is_kept(task, name):
                self._warn_of_changes()
        finally:
            for p, grad in kept:
                p.grad = grad
            view.leave()
            view.give_away()

    # ------------------------------------------------------------------ the step
    @torch._disable_dynamo
    @torch.no_grad()
    def step(self, closure: Callable[..., Tensor | None] | None = None) -> Tensor:  # type: ignore[override]
        """One step.

        Args:
            closure: ``task -> loss``, a scalar with a graph; None, or a constant, if the task has no data now: it is
                absent then.  Called under grad mode once for each task of this step, with the model as the task sees
                it, and with ``interval=`` once more for each task where masks are due to change.  One without
                arguments (trainers hand on such ones) finds the task in ``optimizer.task``.  None (or a trainer's,
                which returns None) after a loop over `tasks`.

        Where an error is raised, nothing has been changed; by an exchange, no mask, but the step is made then.  With
        ``skip_nonfinite`` an exchange waits where its gradients are not finite.

        Returns:
            The losses, float64 [T]; NaN of tasks that have given none.

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
        asked = closure is not None and self._run(check_function("closure", closure, "pass a function task -> loss"))
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
                raise ValueError(self._without_losses(turns))
            found = self._make(turns, scaling)
        except BaseException:
            self._take_back()
            raise
        losses = turns.all_losses()
        scaling.tell(self, found)
        self._clear()
        self._now.turns = None
        self._rounds.steps += 1
        self._record_step(losses[None], found)
        if asked and self._rounds.due:
            assert closure is not None
            self._exchange_due(closure)
        elif self._rounds.late:
            self._warn_once("late", self._rounds.words)
        return losses

    def _without_losses(self, turns: Turns) -> str:
        words = (
            "expected a loss of at least one task, got none: do not call step() without any data (None, or a loss "
            "without graph, says that a task has none; were the losses detached, computed under no_grad, or their "
            "backward() called in the place of optimizer.backward(loss)?)"
        )
        if len(turns.order) == self._num_tasks:
            return words
        asked = " and ".join(map(str, turns.order))
        return (
            f"{words}; only task {asked} was asked: go on with `for task in optimizer.tasks(another):`, or take "
            'turns="all", where tasks may be absent'
        )

    def _exchange_due(self, closure: Callable[..., Tensor | None]) -> None:
        """Exchanges elements of the masks by the losses of a closure; where that cannot be, at a later step."""
        raise NotImplementedError

    def _run(self, closure: Callable[..., Tensor | None]) -> bool:
        """Asks a closure for the loss of each task; False: it is a trainer's, which has none to give, after a loop."""
        return ask_each(closure, self._now.turns, self.tasks, self._give)

    def _give(self, loss_of: Callable[[], Tensor | None]) -> None:
        """Backward of the loss of the task whose turn it is."""
        turns = self._now.turns
        assert turns is not None
        with together(self._ranks):
            turns.give(loss_of(), None, self._pass, self._buffers.parameters())

    def _make(self, turns: Turns, scaling: Scaling) -> Tensor:
        """The step of the tasks that have gradients; returns float32 [1], not zero if it was skipped."""
        there = sorted(turns.losses)
        tables = self._tables_of(turns)
        with together(self._ranks):
            self._synchronize()
            self._buffers.refresh(self.param_groups, self._base, self._ema)
            if not any(any(table.reached()) for table in tables):
                raise RuntimeError(
                    "expected a loss with a gradient for parameters of this optimizer, got none: were they replaced in "
                    "the model since it was made? Then make a new one"
                )
        if self._ranks is not None:
            place = {"call": "step()", "number of steps": self._rounds.steps, "tasks with a loss": there}
            self._ranks.reduce_(tables, {**place, **self._call("step()")})
        if len(turns.order) > 1 or there == list(range(self._num_tasks)):
            self._name_unreached(tables)
        losses = self._joint(torch.stack([turns.losses[task] for task in there]))
        turns.losses = dict(zip(there, losses, strict=True))
        divisor = self._of_all_ranks(scaling.kept_factor(self._buffers.device))
        found = self._find_nonfinite(tables, losses.reshape(1, -1).to(self._buffers.device), scaling)
        shares = Shares(tables, self._buffers.tasks, turns.order, there, self._num_tasks)
        if self._longest is None:
            weights = shares.equal()
        else:
            weights, self._now.grad_norm, finite = shares.shortened(self._longest, divisor)
            if self._skips:
                found = torch.where(finite, found, torch.full_like(found, NONFINITE))
        if not nothing_left(found):
            masks = [self._tables.of_step(index, there, hold=self._hold) for index in range(len(tables))]
            self._apply(shares.inputs(weights, divisor, found, masks))
        self._report.count(found, found, expected=turns.scaler is not None)
        return found

    @property
    def task(self) -> int:
        """The task whose turn it is, in the closure of ``step`` or a loop over `tasks`; RuntimeError elsewhere."""
        return whose_turn(self._now.turns)
