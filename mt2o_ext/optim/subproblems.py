"""One model, K rows: which subproblem the user's model shows, and what goes with it (buffers, gradients)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..gradients.losses import as_losses
from ..pareto import ParetoFront
from .base import FlatOptimizer
from .now import Loop

__all__ = ["OneModel"]


class OneModel(FlatOptimizer):
    """Switching between subproblems of one ordinary model.

    The parameters are views into the row that is active: switching copies nothing.  Buffers (BatchNorm statistics) are
    few and small: they are copied in and out.
    """

    _model_buffers: list[Tensor]
    _row_buffers: list[list[Tensor]]

    @property
    def preferences(self) -> Tensor:
        """float64 [K, T]."""
        raise NotImplementedError

    def _keep_buffers(self, buffers: Iterable[Tensor]) -> None:
        self._model_buffers = list(buffers)
        if any(not isinstance(buffer, Tensor) for buffer in self._model_buffers):
            raise TypeError("buffers: expected tensors, as model.buffers() gives them")
        if self._model_buffers and self._buffers.stacked:
            raise ValueError("buffers= is for one model; with stacked=True the bank keeps those of each subproblem")
        if self._ranks is not None:
            shapes = [{"shape": list(buffer.shape), "dtype": str(buffer.dtype)} for buffer in self._model_buffers]
            self._ranks.agree({"call": "buffers=", "number of buffers": len(shapes), "buffer": shapes})
            self._ranks.share_(self._model_buffers)
        self._row_buffers = [
            [buffer.detach().clone() for buffer in self._model_buffers] for _ in range(self._buffers.num_rows)
        ]

    def _synchronize(self) -> None:
        if self._now.averaged:
            raise RuntimeError("the parameters are running averages now: leave the context that shows them first")
        super()._synchronize()

    @torch.no_grad()
    def _leave(self) -> None:
        """Stores what belongs to the active subproblem: its parameters, gradients and buffers."""
        self._synchronize()
        if self._buffers.keeps_rows:
            self._store_gradients()
        for kept, buffer in zip(self._row_buffers[self._now.row], self._model_buffers, strict=True):
            kept.copy_(buffer)

    def _store_gradients(self) -> None:
        if self._tasks is not None:  # they are in the tables since backward
            return
        try:
            for flat in self._buffers.flats:
                flat.tasks.take(self._now.row)
        except TypeError:
            self.zero_grad()  # nothing half-stored, and the way back to another subproblem is free
            raise

    @torch.no_grad()
    def _enter(self, row: int) -> None:
        for flat in self._buffers.flats:
            flat.activate(row)
        torch.clear_autocast_cache()  # it knows tensors by their identity: the parameters show other values now
        for kept, buffer in zip(self._row_buffers[row], self._model_buffers, strict=True):
            buffer.copy_(kept)
        self._now.row = row

    def _return(self, row: int, *, detached: bool) -> None:
        self._enter(row)
        if detached:
            self._detach(None)

    def _detach(self, name: str | None) -> None:
        with torch.inference_mode(False):  # parameters cannot become inference tensors
            for flat in self._buffers.flats:
                flat.detach_values(name, self._now.row)
        self._now.detached = True

    def _rounds(self) -> Generator[int, None, None]:
        """One round for each subproblem; a single one if they are stacked."""
        if self._buffers.stacked:
            yield 0
        else:
            yield from self.subproblems()

    def subproblems(self) -> Generator[int, None, None]:
        """Goes through the subproblems 0 .. K-1; in each round of the loop the model is that subproblem.

        The gradients that a round leaves in ``.grad`` are stored for ``step()``, and added to what is stored already
        until ``step()`` uses them up, or ``zero_grad()``.  Afterwards, and after ``break``, the model is what it was
        before the loop: subproblem 0, whenever no other one was asked for.
        """
        self._check_one_model()
        loop = Loop(self._now.row, self._now.detached)
        self._now.loops.append(loop)
        try:
            for row in range(self._buffers.num_rows):
                if self._now.loops[-1] is not loop:
                    raise RuntimeError(
                        "another loop over subproblems() began inside of this one and has not ended: leave it first"
                    )
                if row != self._now.row:
                    self._leave()
                    self._enter(row)
                yield row
        finally:
            self._end(loop)

    def _end(self, loop: Loop) -> None:
        """Goes back to where a loop began; one that a newer loop is inside of has to wait for that.

        (A generator that was left by ``break`` but is kept, in a traceback say, ends at any time.)
        """
        loop.ended = True
        last = None
        while self._now.loops and self._now.loops[-1].ended:
            last = self._now.loops.pop()
        if last is not None and self._now.row != last.before:
            self._leave()
            self._return(last.before, detached=last.detached)

    def _check_behind_loops(self) -> None:
        if self._now.loops:
            raise RuntimeError(
                "step() belongs behind the loop over subproblems(), when all have their gradients (a loop that was "
                "left by break ends when its generator is closed: rounds.close())"
            )

    @contextmanager
    def subproblem(self, k: int, *, ema: bool = False) -> Iterator[None]:
        """In this context the model is subproblem k: for evaluation, for saving, for going on with it.

        Its parameters are tensors of their own here (not views: ``torch.save(model.state_dict())`` writes this
        subproblem only); what is changed in them is kept.  With ``ema`` they are the running average, and changes are
        dropped.
        """
        self._check_one_model()
        if not 0 <= k < self._buffers.num_rows:
            raise IndexError(f"expected a subproblem 0 .. {self._buffers.num_rows - 1}, got {k}")
        if ema:
            self._check_average("ema=True")
        before, detached = self._now.row, self._now.detached
        self._leave()
        self._enter(k)
        self._detach("ema" if ema else None)
        self._now.averaged = ema
        try:
            yield
        finally:
            self._now.averaged = False
            if not ema:
                self._leave()
            elif self._buffers.keeps_rows:  # those of the subproblems are stored
                for _, p in self._parameters():
                    p.grad = None
            self._now.detached = False
            self._return(before, detached=detached)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """With stacked=True: in this context all subproblems are their running averages; changes are dropped."""
        if not self._buffers.stacked:
            raise RuntimeError("averaged() is for stacked=True; use subproblem(k, ema=True)")
        self._check_average("averaged()")
        self._synchronize()
        self._detach("ema")
        self._now.averaged = True
        try:
            yield
        finally:
            self._now.averaged = self._now.detached = False
            for flat in self._buffers.flats:
                flat.activate(0)

    # ------------------------------------------------------------------ the front
    def front(
        self,
        evaluate: Callable[[], Tensor | Sequence[Tensor]],
        *,
        ema: bool = False,
        reference: Tensor | Sequence[float] | None = None,
        task_names: Sequence[str] = (),
    ) -> ParetoFront:
        """Evaluates every subproblem and returns the front.

        Args:
            evaluate: returns the T losses of the model as it is ([K, T], if stacked); called under no_grad.
            ema: evaluate the running averages.
            reference: the hypervolume's reference point, one value per task.
            task_names: for plots and tables.
        """
        if self._buffers.stacked:
            if ema:
                with self.averaged():
                    return self.front(evaluate, reference=reference, task_names=task_names)
            with torch.no_grad():
                rows = as_losses(evaluate(), (self._buffers.num_rows, self._num_tasks))
        else:
            collected = []
            for k in range(self._buffers.num_rows):
                with self.subproblem(k, ema=ema), torch.no_grad():
                    collected.append(as_losses(evaluate(), (self._num_tasks,)))
            rows = torch.stack(collected)
        if reference is not None:
            reference = torch.as_tensor(reference, dtype=torch.float64)
        return ParetoFront(rows, self.preferences.cpu(), reference, task_names)

    # ------------------------------------------------------------------ buffers in the state
    def _export_buffers(self) -> list[list[Tensor]]:
        rows = [[buffer.clone() for buffer in row] for row in self._row_buffers]
        rows[self._now.row] = [buffer.detach().clone() for buffer in self._model_buffers]
        return rows

    def _check_buffers(self, rows: Any) -> None:
        expected = [[list(buffer.shape) for buffer in row] for row in self._row_buffers]
        if not isinstance(rows, (list, tuple)) or not all(isinstance(row, (list, tuple)) for row in rows):
            raise TypeError(f"expected `buffers` as a list of those of each subproblem, got {rows!r:.80}")
        for buffer in (buffer for row in rows for buffer in row):
            if not isinstance(buffer, Tensor) or buffer.is_complex() or buffer.device.type == "meta":
                raise TypeError(f"expected model buffers as tensors of real numbers with values, got {buffer!r:.80}")
            if buffer.is_floating_point() and bool(buffer.isnan().any()):
                raise ValueError("expected model buffers as numbers, got NaN")
        shapes = [[list(buffer.shape) for buffer in row] for row in rows]
        if shapes != expected:
            got = shapes[0] if shapes else shapes
            raise ValueError(f"expected model buffers of shapes {expected[0]}, got {got}: pass the same buffers=")

    @torch.no_grad()
    def _import_buffers(self, rows: list[list[Tensor]]) -> None:
        for kept, saved in zip([*self._row_buffers, self._model_buffers], [*rows, rows[self._now.row]], strict=True):
            for buffer, value in zip(kept, saved, strict=True):
                buffer.copy_(value)

    # ------------------------------------------------------------------ checks
    def _check_average(self, what: str) -> None:
        if self._ema is None:
            raise ValueError(f"{what} needs an optimizer with a running average: MT2OFused(..., ema=0.98)")

    def _check_one_model(self) -> None:
        if self._buffers.stacked:
            raise RuntimeError(
                "with stacked=True all subproblems are in the bank's parameters at once: use bank.subproblem(k), and "
                "optimizer.averaged() for the running average"
            )
