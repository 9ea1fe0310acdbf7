"""The backward of T losses of one model: of all at once, or of one task after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..gradients.losses import TaskLosses, task_losses
from ..gradients.passes import Backward, Pass, scaler_in_use
from ..gradients.tasks import Losses as GivenLosses
from ..gradients.tasks import TaskGradients
from ..gradients.visit import TaskVisit, check_alone
from ..gradients.weigher import Weigher
from ..ranks import together
from ..weighting import Needs
from .amp import Scaling
from .base import FlatOptimizer
from .weighted_step import TaskRound

__all__ = ["Losses", "TaskBackward"]

Losses = Tensor | Sequence[Tensor | None]


class TaskBackward(FlatOptimizer):
    """An optimizer of one model up to the step: it collects the gradients of T tasks, and shows what they make.

    A subclass makes the step from what is in ``self._now.batch`` then, in the way that ``self._round`` knows.
    """

    _tasks: TaskGradients
    _accumulate: bool  # keep task gradients also where the weighting needs only losses
    _show_grad: bool  # leave the combined gradient in `.grad`

    @property
    def _weigher(self) -> Weigher:
        return self._tasks.weigher

    def _build(self) -> None:
        super()._build()
        self._round = TaskRound(
            self._tasks,
            self._buffers,
            self._report,
            accumulate=self._accumulate,
            look_for_nonfinite=self._look_for_nonfinite,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in super().__getstate__().items() if key != "_round"}

    # ------------------------------------------------------------------ losses and gradients
    def backward(
        self,
        losses: Losses | None,
        *,
        scaler: Any = None,
        retain_graph: bool = False,
        backward: Backward | None = None,
    ) -> None:
        """Backward of T losses, and their combined gradient into ``.grad``.

        Several calls before a step add up: the gradients of each task, which are combined anew.  To what somebody else
        left in ``.grad`` before the first of them the combined gradient is added.

        Args:
            losses: T scalars, a sequence (better) or a tensor [T].  In a sequence None, or a loss without a graph, says
                that the task has no data in this mini-batch: see the class.
            scaler: a ``torch.amp.GradScaler``, whose factor the gradients then carry, but not what is weighed; then
                call ``scaler.step(optimizer)``.
            retain_graph: as in ``torch.autograd.backward``.
            backward: the trainer's backward for this call, in the place of that of the constructor.

        A call that fails in the backward pass drops the batch, with the calls before it: some of their gradients have
        been added to.

        Raises:
            TypeError: for losses that are no tensors, before any gradient is computed.
            ValueError: for another number of losses, no graph, or another scaler than in calls before, before any
                gradient is computed.
            RuntimeError: for a second call before ``step`` if the weighting needs ``accumulate=True`` for it, or
                ``.grad`` was changed since the first.
        """
        with together(self._ranks):
            self._take_losses(losses, scaler, self._way(backward, retain_graph))

    def _take_losses(self, losses: Losses | None, scaler: Any, way: Pass) -> None:
        """Backward of the losses of all tasks, or of the one whose turn it is."""
        if self._now.visit is not None:
            scaler = scaler_in_use(scaler, self._now.batch.scaler, begun=self._now.batch.begun)
            self._now.visit.backward(losses, scaler, way, drop=self._drop)
            return
        given = task_losses(losses, self._num_tasks)
        if not self._shows:
            self._collect(given, scaler, way)
            return
        self._begin_showing()
        self._collect(given, scaler, way)
        self._show()

    def _begin_showing(self) -> None:
        early = self._round.weighs_early
        if self._now.batch.shown and self._round.showing.dropped(early=early):
            self._forget()
        self._round.showing.begin(self._now.batch, early=early)

    def _show(self) -> None:
        """Puts the combined gradient into ``.grad``."""
        batch = self._now.batch
        try:
            with torch.no_grad():
                factor = Scaling.of(self, batch.scaler).kept_factor(self._buffers.device)
                weights = self._round.showing.show(batch, factor, early=self._round.weighs_early)
        except BaseException:
            self._drop()
            raise
        if weights is not None:
            self._now.weights = weights

    # ------------------------------------------------------------------ tasks one at a time
    def tasks(self) -> Iterator[int]:
        """Goes through the tasks 0 .. T-1, each with a mini-batch, a forward and a backward pass of its own.

            for task in optimizer.tasks():
                optimizer.backward(task_loss(model, *next(batches[task]), task))
            optimizer.step()

        Inside of the loop ``backward`` takes one scalar loss, whose graph is freed with it.  A task without a call of
        it, or with ``backward(None)``, is absent: see the class.  Of a loop that is left early, by ``break`` or an
        exception, the gradients count for a ``step`` that follows, with a warning; another loop begins anew.

        Raises:
            RuntimeError: inside of another such loop, and where the weights are made from the losses of all tasks
                before their backward: then make the optimizer with ``accumulate=True``.
        """
        check_alone(self._now.visit)
        if self._round.weighs_early:
            raise RuntimeError(
                f"expected a weighting of gradients for tasks(), got {type(self._weigher.weighting).__name__}, which "
                "weights the losses of all tasks before their backward: make WeightedFused(..., accumulate=True)"
            )
        if self._now.batch.left:
            self._drop()
        self._look_for_ranks()
        self._read_shown()
        if self._shows:
            self._begin_showing()
        self._weigher.draw_ahead()
        visit = self._now.visit = TaskVisit(self._tasks.slots, self._num_tasks)
        yield from visit.turns(self._end_visit)

    def _end_visit(self, visit: TaskVisit) -> None:
        self._now.visit = None
        batch, losses = self._now.batch, visit.losses()
        if losses is None:
            batch.constant = visit.constant
            return
        batch.left, batch.missed = not visit.complete, visit.missed
        losses = self._met(losses, visit.absent)
        batch.see(visit.absent)
        batch.add_losses(0, losses)
        batch.scaler = visit.scaler
        if self._ranks is not None:
            self._ranks.count(0)
        if not visit.complete:
            return
        if not batch.absent:
            self._name_unreached(self._round.collected(batch))
        if self._shows:
            self._show()

    @property
    def _shows(self) -> bool:
        """True if backward leaves the combined gradient in ``.grad``.

        Not where it is that of several ranks (of sharded parameters backward itself makes it so), nor of task gradients
        that are kept together for a weighting which changes them (and remembers): these are combined in the step.
        """
        several = self._accumulate and Needs.ROWS in self._weigher.weighting.needs
        apart = self._ranks is not None and not self._ranks.of_shards
        return self._show_grad and not apart and not several

    def _collect(self, losses: TaskLosses, scaler: Any, way: Pass) -> None:
        """Backward of T losses into the tables."""
        scaler = scaler_in_use(scaler, self._now.batch.scaler, begun=self._now.batch.begun)
        self._look_for_ranks()
        self._read_shown()
        own: GivenLosses = losses.scalars if self._ranks is None else losses.values.unsqueeze(0)
        scalars = way.scaled(losses.each, scaler)
        self._weigher.draw_ahead()
        batch = self._now.batch
        if isinstance(own, Tensor):
            own = self._met(own, losses.absent)
        if self._round.weighs_early:
            own = self._weigh_early(own, losses.absent)
        batch.see(losses.absent)
        try:
            self._round.collect(scalars, batch, way)
        except BaseException:
            self._drop()
            raise
        batch.add_losses(0, own)
        batch.scaler = scaler
        if not batch.absent:  # whose heads have no gradient, as they should
            self._name_unreached(self._round.collected(batch))
        if self._ranks is not None:
            self._ranks.count(0)

    def _met(self, losses: Tensor, absent: frozenset[int]) -> Tensor:
        """The losses of this backward: of sharded parameters, whose ranks meet in it, the means over the ranks."""
        if self._ranks is None or not self._ranks.of_shards:
            return losses
        self._ranks.agree({**self._call("backward()"), "tasks without a loss": sorted(absent)})
        return self._ranks.mean(losses)

    def _joint_at_step(self, losses: Tensor) -> Tensor:
        """The means over the ranks of what `_met` has left as it is."""
        return losses if self._ranks is not None and self._ranks.of_shards else self._joint(losses)

    def _weigh_early(self, losses: GivenLosses, absent: frozenset[int]) -> GivenLosses:
        """Makes the weights at the first backward; returns the losses, in a table if one was made of them."""
        batch, name = self._now.batch, type(self._weigher.weighting).__name__
        if batch.early is None:
            batch.see(absent)
            if self._ranks is not None and not self._ranks.of_shards:
                self._ranks.agree(self._call("backward()"))
            seen = losses if not isinstance(losses, Tensor) else self._joint_at_step(losses)
            single = not isinstance(seen, Tensor) and seen[0].dtype == torch.float32
            dtype = torch.float32 if single else torch.float64
            batch.early = self._weigher.weigh_early(seen, self._tasks.present(absent), dtype)
            batch.found = batch.early.found
            made = batch.early.losses
            return losses if isinstance(losses, Tensor) or made is None else made
        if Needs.LOSSES in self._weigher.due() or absent != batch.absent:
            what = "losses" if Needs.LOSSES in self._weigher.due() else "tasks"
            raise RuntimeError(
                f"expected one backward() before a step, got a second one: {name} has made its weights from the {what} "
                "of the first; for several of them, make WeightedFused(..., accumulate=True)"
            )
        batch.found = None  # it was of the losses before
        return losses

    def _call(self, name: str) -> dict[str, Any]:
        return {**super()._call(name), "tasks without a loss": sorted(self._now.batch.absent)}

    def _drop(self) -> None:
        """Drops the batch, also what of it stands in ``.grad``."""
        self._round.showing.drop()
        self._forget()

    def _forget(self) -> None:
        super()._forget()
        if self._now.visit is not None:
            self._now.visit.forget()
        self._round.showing.forget()
