"""The turns of tasks in one step: what each has left for the step that ends them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..gradients.losses import takes_task, task_loss
from ..gradients.passes import Pass, scaler_in_use
from ..gradients.table import GradientTable

__all__ = ["ANOTHER", "OUTSIDE", "Turns", "ask_each", "take_turn", "whose_turn"]

ANOTHER = (
    "expected optimizer.step() after the loop over tasks(), got another round of all tasks: call it when all have had "
    "their turns, and before the next loop or closure"
)
OUTSIDE = (
    "expected backward(loss) inside of `for task in optimizer.tasks():`, got it outside: each task has its turn there; "
    "or call optimizer.step(lambda task: ...)"
)


@dataclass(eq=False)
class Turns:
    """One loop over tasks.

    Attributes:
        phase: of connection strength, 1 or 2.
        order: of the tasks that have a turn.
        before: the state of the draw before this step.
        num_tasks: T.
        task: whose turn it is; None: nobody's, the loop has ended.
        losses: float64 [], by task, of those that have given one.
        found: float32 [1], of each step that phase 1 has made: what was found in its gradients; not zero: skipped.
        scaler: the GradScaler of the losses, or None.
        complete: every task has had its turn.
    """

    phase: int
    order: Sequence[int]
    before: dict[str, Any]
    num_tasks: int
    task: int | None = None
    losses: dict[int, Tensor] = field(default_factory=dict)
    found: list[Tensor] = field(default_factory=list)
    scaler: Any = None
    complete: bool = False

    def give(self, loss: Any, scaler: Any, way: Pass, parameters: Sequence[Tensor]) -> None:
        """Backward of a loss of the task whose turn it is into ``.grad``; None, or a constant: the task is absent.

        Raises:
            TypeError: for a loss that is no tensor.
            ValueError: for a loss that is no scalar, and another scaler than before.
        """
        assert self.task is not None
        scalar = task_loss(loss, self.task)
        if scalar is None:
            return
        self.scaler = scaler_in_use(scaler, self.scaler, begun=bool(self.losses))
        [scaled] = way.scaled([scalar], self.scaler)
        try:
            way.run(scaled)
        except BaseException:
            self.losses.pop(self.task, None)
            for p in parameters:  # the gradients of the tasks before lie in the tables
                p.grad = None
            raise
        self.add(scalar.detach().double())

    def add(self, loss: Tensor) -> None:
        """Adds a loss of the task whose turn it is."""
        assert self.task is not None
        before = self.losses.get(self.task)
        self.losses[self.task] = loss if before is None else before + loss

    @property
    def absent(self) -> frozenset[int]:
        """The tasks that have had a turn, and have given no loss."""
        return frozenset(self.order).difference(self.losses)

    def all_losses(self) -> Tensor:
        """float64 [T], NaN of tasks that have given none."""
        first = next(iter(self.losses.values()))
        nothing = torch.full_like(first, torch.nan)
        return torch.stack([self.losses.get(task, nothing) for task in range(self.num_tasks)])


def whose_turn(turns: Turns | None) -> int:
    """The task whose turn it is.

    Raises:
        RuntimeError: if it is nobody's.
    """
    if turns is None or turns.task is None:
        raise RuntimeError(
            "expected optimizer.task to be read in the closure of step(closure) or in a loop over tasks(), got it "
            "elsewhere: only there is it one task's turn"
        )
    return turns.task


def ask_each(
    closure: Callable[..., Tensor | None],
    before: Turns | None,
    loop: Callable[[], Generator[int, None, None]],
    give: Callable[[Callable[[], Tensor | None]], None],
) -> bool:
    """Asks a closure for the loss of each task.

    Args:
        closure: ``task -> loss``, or without arguments.
        before: the loop over tasks that no step has ended, or None.
        loop: begins one.
        give: takes the loss of the task whose turn it is from a function.

    Returns:
        False: a loop was there before, and the closure is a trainer's, which has no loss to give.

    Raises:
        RuntimeError: if it has one all the same.
    """
    if before is not None and before.complete:
        if (closure(before.order[0]) if takes_task(closure) else closure()) is not None:
            raise RuntimeError(ANOTHER)
        return False
    with torch.enable_grad(), closing(loop()) as tasks:
        for task in tasks:
            give(lambda: closure(task) if takes_task(closure) else closure())  # noqa: B023
    return True


def take_turn(tables: Sequence[GradientTable], tasks: Sequence[Sequence[int | None]], task: int) -> None:
    """Moves ``.grad`` to a task's row of the tables, or to their only one, but for the heads of other tasks.

    tasks: for each table, the task that a parameter belongs to, or None.
    """
    for table, of_table in zip(tables, tasks, strict=True):
        for p, of_task in zip(table.layout.parameters, of_table, strict=True):
            if of_task not in (task, None):
                p.grad = None
        table.take(task=task if table.num_tasks > 1 else 0)
