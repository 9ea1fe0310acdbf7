"""Optimizers that keep the gradients of T tasks apart until a weighting has combined them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..collect import TaskSlots
from ..flat import FlatParameters
from ..weighting import Needs
from .base import FlatOptimizer
from .losses import check_losses
from .options import check_task
from .skipped import NONFINITE, Refuser
from .weigher import GRAMS, Weigher, largest_weights

__all__ = ["TaskGradients"]


class TaskGradients(FlatOptimizer):
    """The part of an optimizer between backward and the base rule: T gradients, a weighting, one gradient.

    Buffers of shared parameters keep T gradients of each row, those of heads (groups with ``task=``) one, that of their
    own task.  Gradients go to the buffers at once, ``.grad`` is left as it was, and a step uses them up.
    """

    _weigher: Weigher | None
    _num_tasks: int
    _heads: str  # "plain" or "weighted"
    _collecting: str  # "sequential" or "batched"

    def _check_task(self, options: dict[str, Any]) -> None:
        if self._weigher is None:
            super()._check_task(options)
            return
        check_task(options.get("task"), self._num_tasks)

    def _build(self) -> None:
        super()._build()
        self._scratch: dict[int, Tensor] = {}
        self._tasks_of = [[self.param_groups[group].get("task") for group in groups] for groups in self._groups]
        self._slots = TaskSlots(self._flat, self._tasks_of, self._num_tasks)
        if self._weigher is not None and self._flat:
            trunks = self._trunks()
            columns = [numel for flat in trunks for numel in flat.numels]
            self._weigher.bind(
                len(columns),
                self._flat[0].device,
                [flat.dtype for flat in trunks],
                columns=columns,
                widths=[flat.row for flat in trunks],
            )

    def _is_head(self, index: int) -> bool:
        return bool(self._tasks_of[index]) and self._tasks_of[index][0] is not None

    def _trunks(self) -> list[FlatParameters]:
        return [flat for index, flat in enumerate(self._flat) if not self._is_head(index)]

    # ------------------------------------------------------------------ backward
    def _collect(self, losses: Sequence[Tensor], row: int, *, retain_graph: bool) -> None:
        """Backward of T scalar losses into the buffers."""
        with self._all_or_nothing():
            self._slots.collect(losses, row, self._collecting, retain_graph=retain_graph)

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Gradients of a backward that failed half-way are of no use, nor are those that it was added to."""
        try:
            yield
        except BaseException:
            self._forget()
            raise

    def _forget(self) -> None:
        """Drops the gradients in the buffers, and what was kept or learned with them and was for no step yet."""
        for flat in self._flat:
            flat.forget_gradients()
        self._now.scaler = None
        self._forget_calls()
        if self._weigher is not None:
            self._weigher.forget()

    # ------------------------------------------------------------------ data parallelism
    def _description(self) -> dict[str, Any]:
        own: dict[str, Any] = {"num_tasks": self._num_tasks}
        if self._weigher is not None:
            own |= {**self._weigher.description(), "heads": self._heads, "collect": self._collecting}
        return {**super()._description(), **own}

    def _share_draws(self) -> None:
        if self._weigher is not None and self._ranks is not None:
            self._weigher.share(self._ranks)

    def _call(self, name: str) -> dict[str, Any]:
        assert self._ranks is not None
        calls = {f"of subproblem {row}": self._ranks.calls.get(row, 0) for row in range(self._num_rows)}
        own: dict[str, Any] = {"call": name, "number of backward calls": calls}
        if self._weigher is not None:
            own |= self._weigher.progress()
        return {**own, **super()._call(name)}

    def _count_call(self, row: int) -> None:
        if self._ranks is not None:
            self._ranks.count(row)

    def _forget_calls(self) -> None:
        if self._ranks is not None:
            self._ranks.calls.clear()

    def _reduce(self) -> None:
        """Sums gradients over the ranks, after a look at whether all are at the same step."""
        if self._ranks is not None:
            if self._under_scaler and self._now.scaler is None:
                raise RuntimeError(
                    "with process_group= a scaler has to know what other ranks find: optimizer.backward(losses, "
                    "scaler=scaler)"
                )
            self._ranks.reduce_(self._flat, self._call("step()"))

    def _divisor(self, device: torch.device) -> Tensor | None:
        if self._weigher is None:
            return super()._divisor(device)
        return None if self._now.unscaled else self._of_all_ranks(self._remembered_factor(device), device)

    # ------------------------------------------------------------------ weights
    def _weigh(self, losses: Tensor | None, found: Tensor) -> tuple[Tensor, Tensor]:
        """Finds the weights of this step, or the rows [K] that must skip it: what was found, what is skipped.

        losses: float64 [K, T], or None.  found: float32 [K], what was found so far, NONFINITE or 0.
        """
        weigher = self._weigher
        assert weigher is not None
        trunks, due = self._trunks(), weigher.due()
        if not trunks:
            weigher.last_weights = torch.ones_like(weigher.preferences)
            found = self._with_refusals(found)
            return found, self._rows_to_skip(found)
        factor = self._divisor(found.device)
        context = weigher.context(losses, self._rows_to_skip(found))
        if Needs.ROWS in due:
            if factor is not None:  # what the weighting remembers of gradients must not carry the factor of one step
                for flat in trunks if self._now.shown else self._flat:  # .grad will carry it
                    flat.grads.div_(factor.to(flat.dtype))
                self._now.unscaled, factor = True, None  # so does _divisor now
            weigher.weighting.transform_([flat.grads for flat in trunks], context)
        if self._reads_squares():
            segments = weigher.segment_grams(trunks, factor)
            gram = segments.sum(1)
            squares = gram.diagonal(dim1=1, dim2=2)
            found = torch.where(squares.isfinite().all(1), found, float(NONFINITE))
            largest = largest_weights(squares, trunks)
            context = replace(context, largest=largest, finite=self._rows_to_skip(found) == 0)
            if due & GRAMS:
                context = replace(context, gram=gram, segments=segments)
        weigher.last_weights = weigher.weighting.weights(context)
        found = self._with_refusals(found)
        return found, self._rows_to_skip(found)

    def _reads_squares(self) -> bool:
        """Whether the Gram matrix, or its diagonal, is taken: for the weighting, or to see whether the weights of
        several gradients fit these gradients' type."""
        assert self._weigher is not None
        due = self._weigher.due()
        return bool(due & GRAMS) or (self._task_rows > 1 and Needs.ROWS not in due)

    def _refusers(self) -> Sequence[Refuser]:
        return () if self._weigher is None else (self._weigher.weighting,)

    def _find_rows_to_skip(self, losses: Tensor | None) -> tuple[Tensor, Tensor]:
        """What was found in a row (see `_reasons`), and whose step is skipped for it, both float32 [K]; with them, the
        weights.
        """
        weigher = self._weigher
        if weigher is None:
            found = self._with_refusals(self._find_nonfinite(losses))
            return found, self._rows_to_skip(found)
        self._now.unscaled = False
        found = self._with_losses(self._with_infinities(torch.zeros_like(self._skipped, dtype=torch.float32)), losses)
        for index, flat in enumerate(self._flat):
            if self._is_head(index) or Needs.ROWS in weigher.due() or not self._reads_squares():  # else these tell
                flat.find_nonfinite(found)
        return self._weigh(losses, found)

    def _combination(self, index: int) -> tuple[Tensor, Tensor | None]:
        if self._weigher is None or self._weigher.last_weights is None:
            return super()._combination(index)
        flat, weights = self._flat[index], self._weigher.last_weights
        if not self._is_head(index):
            if not self._weigher.weighting.per_segment:
                return flat.grads, weights
            before = sum(len(trunk.parameters) for trunk in self._trunks_before(index))
            return self._by_segment(index, weights[:, before : before + len(flat.parameters)]), None
        if self._heads == "plain":
            return flat.grads, None
        of_tasks = [weights[:, task : task + 1] for task in self._tasks_of[index] if task is not None]
        return self._by_segment(index, torch.stack(of_tasks, 1)), None

    def _trunks_before(self, index: int) -> list[FlatParameters]:
        return [flat for at, flat in enumerate(self._flat[:index]) if not self._is_head(at)]

    def _by_segment(self, index: int, weights: Tensor) -> Tensor:
        """[K, 1, P], gradients combined with weights [K, S, T'] of each tensor."""
        flat = self._flat[index]
        if index not in self._scratch:
            self._scratch[index] = torch.zeros_like(flat.theta)
        out = self._scratch[index]
        flat.combine_by_segment(out, weights)
        return out.unsqueeze(1)

    @property
    def weights(self) -> Tensor | None:
        """float64 [K, T] (per tensor: [K, S, T]), the weights of the last step; NaN where it was skipped."""
        last = None if self._weigher is None else self._weigher.last_weights
        return None if last is None else last.clone()

    # ------------------------------------------------------------------ what weightings learn from
    def _await_feedback(self, losses: Tensor | None, skipped: Tensor) -> None:
        if self._weigher is not None:
            missed = skipped.unsqueeze(1) != 0
            self._weigher.await_feedback(None if losses is None else torch.where(missed, torch.nan, losses))

    @torch.no_grad()
    def feedback(self, losses: Tensor | Sequence[Tensor]) -> None:
        """For weightings that learn from it (FAMO): the losses of the last mini-batch again, after the step.

        losses: T scalars or [T]; [K, T] of several subproblems.
        """
        weigher = self._weigher
        if weigher is None:
            raise RuntimeError("this optimizer learns nothing from feedback: it has no weighting")
        weigher.check_feedback()
        num_rows = self._num_rows if self._num_rows > 1 else None
        after = check_losses(losses, self._num_tasks, num_rows, graph=False).detach().double()
        if self._ranks is not None:
            self._ranks.agree(self._call("feedback()"))
        weigher.learn(self._joint(after))

    def epoch_end(self) -> None:
        """Counts an epoch, for weightings that go by them (DWA)."""
        if self._weigher is not None:
            self._weigher.epoch += 1
