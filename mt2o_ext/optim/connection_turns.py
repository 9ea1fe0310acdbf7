"""The turns of T tasks in one step of connection strength: what each has left for the step that ends them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["Turns"]


@dataclass(eq=False)
class Turns:
    """One loop over the tasks.

    Attributes:
        phase: 1 or 2, of this step.
        order: of the tasks.
        before: the state of the draw before this step.
        task: whose turn it is; None: nobody's, the loop has ended.
        losses: float64 [], by task, of those that have given one.
        found: float32 [1], of each step that phase 1 has made: what was found in its gradients; not zero: skipped.
        scaler: the GradScaler of the losses, or None.
        complete: every task has had its turn.
    """

    phase: int
    order: Sequence[int]
    before: dict[str, Any]
    task: int | None = None
    losses: dict[int, Tensor] = field(default_factory=dict)
    found: list[Tensor] = field(default_factory=list)
    scaler: Any = None
    complete: bool = False

    def add(self, loss: Tensor) -> None:
        """Adds a loss of the task whose turn it is."""
        assert self.task is not None
        before = self.losses.get(self.task)
        self.losses[self.task] = loss if before is None else before + loss

    @property
    def absent(self) -> frozenset[int]:
        """The tasks that have given no loss."""
        return frozenset(self.order).difference(self.losses)

    def all_losses(self) -> Tensor:
        """float64 [T], NaN of absent tasks."""
        first = next(iter(self.losses.values()))
        nothing = torch.full_like(first, torch.nan)
        return torch.stack([self.losses.get(task, nothing) for task in range(len(self.order))])
