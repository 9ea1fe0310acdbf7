"""The backward of one subproblem: from its T losses to its gradient, or to those of its tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..device import is_gpu
from ..gradients.losses import TaskLosses, backward_done, check_losses, task_losses
from ..gradients.passes import Pass
from ..gradients.tasks import Batch, Losses, TaskGradients
from .buffers import Buffers
from .objective import Objective

if TYPE_CHECKING:
    from .mt2o import MT2OFused

__all__ = ["SubproblemBackward", "SubproblemLosses", "about_statistics", "run_closure"]


class SubproblemLosses(NamedTuple):
    """The losses of one subproblem, of a bank those of all, checked.

    given: of one subproblem, by task; None of a bank.
    whole: with its graph, where the user gave one tensor: [T], of a bank [K, T]; None of a sequence.
    """

    given: TaskLosses | None
    whole: Tensor | None

    @classmethod
    def of(cls, losses: Tensor | Sequence[Tensor | None], num_tasks: int, buffers: Buffers) -> SubproblemLosses:
        """The losses that a user gave.

        Raises:
            TypeError: for anything but tensors (or None, in a sequence).
            ValueError: for another number of losses, for none with a graph, and for those on another device.
        """
        if buffers.stacked:
            checked = cls(None, check_losses(losses, num_tasks, buffers.num_rows))  # type: ignore[arg-type]
        else:
            given = task_losses(losses, num_tasks)
            checked = cls(given, losses if isinstance(losses, Tensor) else None)
        if wrong := [root.device for root in checked.roots if buffers.flats and root.device != buffers.device]:
            raise ValueError(
                f"expected losses on {buffers.device}, the device that the parameters had when the optimizer was made, "
                f"got one on {wrong[0]}: compute them there, or move the model before the optimizer is made"
            )
        return checked

    @property
    def absent(self) -> frozenset[int]:
        """The tasks without a loss."""
        return frozenset() if self.given is None else self.given.absent

    @property
    def roots(self) -> list[Tensor]:
        """The losses that there are, with their graphs: one by one, or all in one tensor."""
        if self.whole is not None:
            return [self.whole]
        assert self.given is not None
        return [loss for loss in self.given.each if loss is not None]

    def are_of(self, dtype: torch.dtype) -> bool:
        """True if all losses have this dtype."""
        return all(root.dtype == dtype for root in self.roots)

    @property
    def stacked(self) -> Tensor:
        """The same as one tensor: [P], of a bank [K, T]."""
        return torch.stack(self.roots) if self.whole is None else self.whole

    @property
    def values(self) -> Tensor:
        """float64 [T] without a graph, 0 where there is none; of a bank [K, T]."""
        if self.whole is not None:
            return self.whole.detach().double()
        assert self.given is not None
        return self.given.values

    def kept(self) -> Losses:
        """The same for the step, which puts the scalars of all subproblems into one table."""
        if self.given is None:
            return self.values
        scalars = self.given.scalars
        if is_gpu(scalars[0].device):  # where a CUDA graph of the model writes the next losses to the same place
            return torch.stack(scalars).unbind()
        return scalars


class SubproblemBackward(NamedTuple):
    """The way of the losses of a subproblem into ``.grad``, or with a weighting into the tables of task gradients.

    row: the subproblem.
    points: float64 [K, T], the preferences of all.
    batch: takes what the step needs beside the gradients.
    """

    buffers: Buffers
    objective: Objective
    tasks: TaskGradients | None
    batch: Batch
    row: int
    points: Tensor

    def run(self, losses: SubproblemLosses, seen: Tensor | None, scaler: Any, way: Pass) -> None:
        """Backward of the losses, times their coefficients in the scalarized sum.

        Args:
            losses: of the subproblem, or of all.
            seen: float64 like the losses, those that coefficients are made of; None: they do not depend on any.
            scaler: a GradScaler that is in use, or None.
            way: of the backward passes.
        """
        row = None if self.buffers.stacked else self.row
        if self.tasks is None:
            self._into_grad(losses, self._factors(losses, seen, row, 1), scaler, way)
        else:
            # Equal weights 1 / T leave the scalarization as it is.
            factors = self._factors(losses, seen, row, self.tasks.num_tasks - len(losses.absent))
            self._into_tables(self.tasks, losses, factors, scaler, way)
        self.batch.add_losses(self.row, losses.kept())
        self.batch.scaler = scaler
        self.objective.see(seen, row, losses.absent)

    def _factors(self, losses: SubproblemLosses, seen: Tensor | None, row: int | None, times: int) -> Tensor | None:
        """The coefficients [T] (of a bank [K, T]) times a number, of the losses' dtype; None: there are none."""
        dtypes = {root.dtype for root in losses.roots}
        dtype = dtypes.pop() if len(dtypes) == 1 else torch.float64
        return self.objective.factors(seen, self.points, row, losses.absent, dtype=dtype, times=times)

    def _into_grad(self, losses: SubproblemLosses, factors: Tensor | None, scaler: Any, way: Pass) -> None:
        """Backward as torch's own; one that fails leaves no gradient where there was none."""
        assert factors is not None
        if losses.given is not None:
            factors = losses.given.of_present(factors)
        empty = [p for p in self.buffers.parameters() if p.grad is None]
        try:
            if way.function is None and scaler is None and losses.are_of(factors.dtype):
                way.run_all(losses.roots, [factors] if losses.whole is not None else factors.unbind())
                return
            stacked = losses.stacked
            [total] = way.scaled([(stacked * factors.to(stacked.dtype)).sum()], scaler)
            way.run(total)
        except BaseException:
            for p in empty:
                p.grad = None
            raise

    def _into_tables(
        self, tasks: TaskGradients, losses: SubproblemLosses, factors: Tensor | None, scaler: Any, way: Pass
    ) -> None:
        """Backward of each loss; one that fails drops what the row has collected before."""
        weights: Sequence[Tensor] | None = None
        if losses.given is None:
            stacked = losses.stacked if factors is None else losses.stacked * factors
            parts: list[Tensor | None] = [part.sum() for part in stacked.unbind(1)]
        elif factors is None:
            parts = losses.given.each
        elif way.function is None and scaler is None and losses.are_of(factors.dtype):
            parts, weights = losses.given.each, factors.unbind()
        else:
            pairs = zip(losses.given.each, factors, strict=True)
            parts = [part if part is None else part * factor.to(part) for part, factor in pairs]
        try:
            tasks.collect(way.scaled(parts, scaler), self.row, way, weights)
        except BaseException:  # the row has lost the gradients of earlier calls as well
            self.batch.drop_losses(self.row)
            self.objective.forget(self.row)
            raise


def run_closure(optimizer: MT2OFused, closure: Callable[[], Any]) -> tuple[bool, Tensor | None]:
    """Calls the closure for each subproblem, and backward; once, if it turns out to do backward itself.

    Returns:
        Whether it has done so, and what it has returned then.
    """
    tasks = optimizer._num_tasks
    one_gradient = optimizer._buffers.num_rows == 1 and optimizer._tasks is None  # of a sum that the user may have made
    with torch.enable_grad(), closing(optimizer._rounds()) as rounds:  # closed: back at the subproblem shown before
        first = next(rounds)
        losses = closure()
        if backward_done(losses, 1 if one_gradient else tasks):
            return True, losses.detach() if isinstance(losses, Tensor) else None
        optimizer.zero_grad()
        try:
            optimizer.backward(_again(losses, tasks, first))
            for k in rounds:
                optimizer.backward(_again(closure(), tasks, k))
        except BaseException:
            optimizer.zero_grad()
            raise
    return False, None


def _again(losses: Any, num_tasks: int, k: int) -> Any:
    if backward_done(losses, num_tasks):
        raise TypeError(f"expected losses of subproblem {k} as of those before, got {losses!r}")
    return losses


def about_statistics(buffers: Buffers) -> str:
    """The words about running statistics that all subproblems share: what to do."""
    if buffers.vertices is None:
        return "give each its own with MT2OFused(..., buffers=model.buffers())"
    return (
        "they are those of the random points of the steps; pass MT2OFused(..., buffers=model.buffers()), and call "
        "optimizer.update_buffers(...) before you evaluate or save"
    )
