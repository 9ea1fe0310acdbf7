"""The state of an optimizer between two of its calls, in one object."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..gradients.tasks import Batch
from ..gradients.visit import TaskVisit
from .turns import Turns

__all__ = ["Loop", "Now"]


@dataclass(eq=False)
class Loop:
    """A loop over subproblems: where it began, and whether it has ended."""

    before: int
    detached: bool
    ended: bool = False


@dataclass(eq=False)
class Now:
    """All that calls of an optimizer leave for the next ones.

    Trainers wrap optimizers in objects of a class derived from the optimizer's, which share the attributes that exist
    and keep those that a method sets to themselves.  So methods change this object, and never set attributes.

    row: the subproblem that the model shows.  detached: its parameters are tensors of their own.  averaged: and values
    that are not trained.  point: those of this point of a front on vertices (of a buffer, or of theta).  loops: over
    subproblems, the outermost first.  graph_checked: whether the losses' graph was looked at.
    batch: what backward left for the next step.  weights: float64 [K, T] or [K, S, T], of the last step.
    grad_norm: float64 [K], of the last step, where it was measured.  warned: what there was one warning of already.
    skipped: float32 [K], of the last step of connection strength, not zero where it was skipped.
    visit: the loop over tasks that goes on, or None.  turns: of connection strength and masks, that loop, until its
    step.
    """

    row: int = 0
    detached: bool = False
    point: tuple[str | None, Tensor] | None = None
    averaged: bool = False
    loops: list[Loop] = field(default_factory=list)
    graph_checked: bool = False
    batch: Batch = field(default_factory=Batch)
    weights: Tensor | None = None
    grad_norm: Tensor | None = None
    skipped: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.float32))
    warned: set[str] = field(default_factory=set)
    visit: TaskVisit | None = None
    turns: Turns | None = None

    @property
    def between_tasks(self) -> bool:
        """True inside of a loop over tasks."""
        return self.visit is not None or (self.turns is not None and not self.turns.complete)
