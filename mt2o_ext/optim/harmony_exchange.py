"""Masks that change: a gradient of each task at what it sees, scores, and the elements that change places."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..gradients.losses import takes_task, task_loss
from ..gradients.table import GradientTable
from ..masks.harmony import Harmony
from ..masks.tables import MaskTables
from ..ops import harmony_
from ..ranks import Ranks, together
from .flat import FlatParameters
from .harmony_view import TaskView
from .turns import Turns

__all__ = ["MaskExchange", "StrangeGradients"]


class StrangeGradients(ValueError):
    """Gradients of an exchange that are infinite or NaN."""


class MaskExchange(NamedTuple):
    """One exchange of elements between the masks and what is outside of them.

    flats: the buffers.
    tables: of the masks.
    view: shows the model to a task.
    rule: of scores.
    turns: tell whose turn it is.
    ranks: average gradients, or None.
    channels: whole channels change.
    """

    flats: list[FlatParameters]
    tables: MaskTables
    view: TaskView
    rule: Harmony
    turns: Turns
    ranks: Ranks | None
    channels: bool

    def run(self, loss_of: Callable[..., Tensor | None], amount: int) -> bool:
        """Changes the masks; False: a task had no loss, and nothing has changed.

        Raises:
            TypeError: for a loss that is no tensor.
            ValueError: for a loss that is no scalar or has no graph, and for gradients that are not finite.
        """
        try:
            with together(self.ranks):
                missing = next((t for t in range(self.turns.num_tasks) if not self._collect(loss_of, t)), None)
            call = {"call": "exchange()", "amount": amount, "first task without a loss": missing}
            if self.ranks is not None and missing is not None:
                self.ranks.agree(call)
            if missing is not None:
                return False
            if self.ranks is not None:
                self.ranks.reduce_(self._gradients(), call)
            scores = self._scores(self._factors())
        finally:
            for table in self._gradients():
                table.forget()
        if self.ranks is not None:
            self.ranks.share_([scores])
        if self.channels:
            self.tables.exchange_channels(scores, amount)
        else:
            self.tables.exchange_elements(scores, amount)
        return True

    def _seen(self) -> list[int]:
        """The buffers in which there are masks."""
        return [index for index, segments in enumerate(self.tables.with_masks) if segments]

    def _gradients(self) -> list[GradientTable]:
        return [self.flats[index].tasks for index in self._seen()]

    def _collect(self, loss_of: Callable[..., Tensor | None], task: int) -> bool:
        """Keeps the gradient of a task, of all elements at what it sees; False: it has no loss."""
        places = [
            (index, segment, self.flats[index].parameters[segment])
            for index in self._seen()
            for segment in self.tables.with_masks[index]
        ]
        places = [place for place in places if place[2].requires_grad]
        self.turns.task = task
        self.view.enter(task)
        try:
            with torch.enable_grad():
                loss = loss_of(task) if takes_task(loss_of) else loss_of()
                if loss is None:
                    return False
                scalar = task_loss(loss, task)
                if scalar is None:
                    raise ValueError(f"expected a loss with a graph of task {task}, got one without: compute it anew")
                found = torch.autograd.grad(scalar, [p for *_, p in places], allow_unused=True)
        finally:
            self.view.leave()
            self.turns.task = None
        for (index, segment, _), gradient in zip(places, found, strict=True):
            if gradient is not None:
                self.flats[index].tasks.put(0, task, segment, gradient, copy=True)
        return True

    def _factors(self) -> Tensor:
        """float64 [T], what the gradients are multiplied by: none is longer than the rule allows."""
        size = 1 if self.ranks is None else self.ranks.summed
        squares = torch.stack([table.gram(diagonal=True)[0].sum(0) for table in self._gradients()]).sum(0)
        norms = squares.sqrt() / size
        if bad := (~norms.isfinite()).nonzero()[:, 0].tolist():
            raise StrangeGradients(
                f"expected finite gradients of task {bad[0]}, got NaN or infinities: look at its loss"
            )
        if self.rule.max_norm is None:
            return torch.full_like(norms, 1 / size)
        return (self.rule.max_norm / (norms + 1e-6)).clamp(max=1.0) / size

    def _scores(self, factors: Tensor) -> Tensor:
        """float32 [T, columns], in the order of the table of masks."""
        tables, rule = self.tables, self.rule
        scores = torch.zeros(len(factors), 8 * tables.bits.shape[1], dtype=torch.float32, device=factors.device)
        for index in self._seen():
            flat = self.flats[index]
            (grads, addresses), start = flat.tasks.source(), 8 * tables.start(index)
            harmony_(
                scores[:, start : start + flat.width], grads, flat.values, factors, tables.of(index),
                tables.whole[index], tables.chunks_of(index), addresses=addresses, gamma=rule.gamma,
                magnitude=rule.importance == "magnitude", dense=rule.grow_grad == "dense",
            )  # fmt: skip
        return scores
