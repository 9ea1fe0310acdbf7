"""A loop over tasks, one backward after another: whose turn it is, and what each has given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .collect import TaskSlots
from .losses import task_loss
from .passes import Pass, scaler_in_use

__all__ = ["ALONE", "TaskVisit", "check_alone", "words_about"]

ALONE = (
    "expected one loop over tasks() at a time, got one inside of another: leave that first (one that was left by break "
    "ends when its generator is closed)"
)


class TaskVisit:
    """A loop over T tasks.

    Args:
        slots: where the gradients go.
        num_tasks: T.

    Attributes:
        task: whose turn it is.
        complete: all have had their turn; not so where the loop was left.
        scaler: the GradScaler of the losses, or None.
        constant: a loss without a graph was given.
    """

    def __init__(self, slots: TaskSlots, num_tasks: int) -> None:
        self._slots = slots
        self.num_tasks = num_tasks
        self.task = -1
        self.complete = False
        self.scaler: Any = None
        self.constant = False
        self._losses: dict[int, Tensor] = {}

    def turns(self, end: Callable[[TaskVisit], None]) -> Iterator[int]:
        """Goes through the tasks 0 .. T-1.

        end: called when the loop has ended, also by ``break`` or an exception.
        """
        try:
            for task in range(self.num_tasks):
                self.task = task
                yield task
            self.complete = True
        finally:
            end(self)

    def backward(self, loss: Any, scaler: Any, way: Pass, *, drop: Callable[[], None]) -> Tensor | None:
        """Backward of a loss of the task whose turn it is.

        Args:
            loss: a scalar; None, or a constant: the task has no data.
            scaler: a GradScaler, or None.
            way: of the backward pass.
            drop: called if the backward pass fails: some gradients have been added to.

        Returns:
            The loss, float64 [], or None.

        Raises:
            TypeError: for anything but a tensor or None, before any gradient is computed.
            ValueError: for anything but one number, and another scaler than before, before any gradient is computed.
        """
        scalar = task_loss(loss, self.task)
        if scalar is None:
            self.constant = self.constant or loss is not None
            return None
        self.scaler = scaler_in_use(scaler, self.scaler, begun=bool(self._losses))
        [scaled] = way.scaled([scalar], self.scaler)
        try:
            self._slots.collect_one(scaled, 0, self.task, way)
        except BaseException:
            self.forget()
            drop()
            raise
        own = scalar.detach().double()
        self._losses[self.task] = self._losses[self.task] + own if self.task in self._losses else own
        return own

    def forget(self) -> None:
        """Drops the losses that were given by now."""
        self._losses.clear()

    def losses(self) -> Tensor | None:
        """float64 [1, T], 0 of tasks that have given none; None: nobody has."""
        if not self._losses:
            return None
        first = next(iter(self._losses.values()))
        return torch.stack([self._losses.get(task, torch.zeros_like(first)) for task in range(self.num_tasks)])[None]

    @property
    def absent(self) -> frozenset[int]:
        """The tasks that have given no loss."""
        return frozenset(range(self.num_tasks)).difference(self._losses)

    @property
    def missed(self) -> tuple[int, ...]:
        """The tasks whose turn has not come because the loop was left."""
        return tuple(range(self.task + 1, self.num_tasks))


def check_alone(visit: TaskVisit | None) -> None:
    """Checks that no loop goes on, before another one begins.

    Raises:
        RuntimeError: if one does.
    """
    if visit is not None:
        raise RuntimeError(ALONE)


def words_about(missed: tuple[int, ...], consequence: str = "this step takes them as absent") -> str:
    """Return the warning about tasks whose turn has not come."""
    return (
        f"tasks {', '.join(map(str, missed))} have no gradients, because the loop over tasks() was left before their "
        f"turn: {consequence}. Go through all tasks; for one without data call backward(None)"
    )
