"""One model, K rows: which subproblem the user's model shows, and what goes with it (buffers, gradients)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .base import FlatOptimizer

__all__ = ["OneModel"]


class OneModel(FlatOptimizer):
    """Switching between subproblems of one ordinary model.

    The parameters are views into the row that is active: switching copies nothing.  Buffers (BatchNorm statistics) are few and
    small: they are copied in and out.
    """

    _model_buffers: list[Tensor]
    _row_buffers: list[list[Tensor]]

    def _keep_buffers(self, buffers: Iterable[Tensor]) -> None:
        self._model_buffers = list(buffers)
        if any(not isinstance(buffer, Tensor) for buffer in self._model_buffers):
            raise TypeError("buffers: expected tensors, as model.buffers() gives them")
        self._row_buffers = [[buffer.detach().clone() for buffer in self._model_buffers] for _ in range(self._num_rows)]

    def _leave(self) -> None:
        """Stores what belongs to the active subproblem: its gradients and buffers."""
        for flat in self._synchronize():
            flat.collect_gradients(self._row, detach=True)
        for kept, buffer in zip(self._row_buffers[self._row], self._model_buffers, strict=True):
            kept.copy_(buffer)

    def _enter(self, row: int) -> None:
        for flat in self._flat or []:
            flat.activate(row)
        for kept, buffer in zip(self._row_buffers[row], self._model_buffers, strict=True):
            buffer.copy_(kept)
        self._row = row

    def _activate(self, row: int) -> None:
        if row != self._row:
            self._leave()
            self._enter(row)

    def subproblems(self) -> Iterator[int]:
        """Goes through the subproblems 0 .. K-1; in each round of the loop the model is that subproblem.

        The gradients that a round leaves in ``.grad`` are stored for ``step()``.  Afterwards the model is subproblem 0 again,
        as it is whenever no other one was asked for.
        """
        self._check_one_model()
        try:
            for row in range(self._num_rows):
                self._activate(row)
                yield row
        finally:
            self._activate(0)

    @contextmanager
    def subproblem(self, k: int, *, ema: bool = False) -> Iterator[None]:
        """In this context the model is subproblem k: for evaluation, for saving, for going on with it.

        Its parameters are tensors of their own here (not views: ``torch.save(model.state_dict())`` writes this subproblem
        only); what is changed in them is kept.  With ``ema`` they are the running average, and changes are dropped.
        """
        self._check_one_model()
        if not 0 <= k < self._num_rows:
            raise IndexError(f"expected a subproblem 0 .. {self._num_rows - 1}, got {k}")
        if ema and any("ema" not in flat.buffers for flat in self._flat or []):
            raise ValueError("ema=True needs an optimizer with a running average: MT2OFused(..., ema=0.98)")
        before = self._row
        self._leave()
        self._enter(k)
        for flat in self._flat or []:
            flat.detach_values("ema" if ema else None, k)
        try:
            yield
        finally:
            self._end_subproblem(k, keep=not ema)
            self._enter(before)

    @torch.no_grad()
    def _end_subproblem(self, k: int, *, keep: bool) -> None:
        for flat in self._flat or []:
            if keep:
                flat.adopt(k)
                flat.collect_gradients(k, detach=True)
            for p in flat.parameters:
                p.grad = None
        if keep:
            for kept, buffer in zip(self._row_buffers[k], self._model_buffers, strict=True):
                kept.copy_(buffer)

    def _check_one_model(self) -> None:
        if self._stacked:
            raise RuntimeError(
                "with stacked=True all subproblems are in the bank's parameters at once: use bank.subproblem(k), and "
                "optimizer.averaged() for the running average"
            )

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """With stacked=True: in this context all subproblems are their running averages; changes are dropped."""
        if not self._stacked:
            raise RuntimeError("averaged() is for stacked=True; use subproblem(k, ema=True)")
        if any("ema" not in flat.buffers for flat in self._flat or []):
            raise ValueError("averaged() needs an optimizer with a running average: MT2OFused(..., ema=0.98)")
        for flat in self._synchronize():
            flat.detach_values("ema", 0)
        try:
            yield
        finally:
            for flat in self._flat or []:
                flat.activate(0)
