"""The rounds of a model with masks: whose turn it is, and when masks change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..checks import check_index
from ..masks.arguments import chosen_tasks
from ..masks.harmony import CosineBudget

__all__ = ["Rounds"]


@dataclass(eq=False)
class Rounds:
    """Counts the steps.

    every: all tasks have a turn in each step; else the next one.
    interval: steps from one exchange to the next; None: the user says when.
    budget: of an exchange, or None.
    steps: taken.
    exchanged: the number of steps at the last exchange.
    """

    every: bool
    interval: int | None = None
    budget: CosineBudget | None = None
    steps: int = 0
    exchanged: int = 0

    def order(self, chosen: Any, num_tasks: int) -> list[int]:
        """The tasks of a step.

        Raises:
            TypeError: for anything but tasks.
            ValueError: for no task, and for one that comes twice.
            IndexError: for a number of no task.
        """
        if chosen is None:
            return list(range(num_tasks)) if self.every else [self.steps % num_tasks]
        tasks = chosen_tasks(chosen)
        if not tasks:
            raise ValueError("expected at least one task, got none: name those that this step trains")
        checked = [check_index("task", task, num_tasks) for task in tasks]
        if len(set(checked)) < len(checked):
            raise ValueError(f"expected every task once, got {checked}: leave it out once")
        return checked

    def amount(self) -> int:
        """The number of elements that change now.

        Raises:
            ValueError: without a budget.
        """
        if self.budget is None:
            raise ValueError("expected an amount, got none: pass one, or make HarmonyFused(..., budget=...)")
        return self.budget(self.steps)

    @property
    def due(self) -> bool:
        """True if masks are to change now."""
        return self.interval is not None and self.steps - self.exchanged >= self.interval

    @property
    def late(self) -> bool:
        """True if they should have changed an interval ago."""
        return self.interval is not None and self.steps - self.exchanged >= 2 * self.interval

    @property
    def words(self) -> str:
        """The words about an exchange that does not come."""
        return (
            f"masks were to change every {self.interval} steps, and have not for {self.steps - self.exchanged}: in a "
            "loop over tasks(), call optimizer.exchange(loss_of) when optimizer.due, or leave interval= out"
        )
