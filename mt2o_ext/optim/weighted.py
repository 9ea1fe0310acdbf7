"""One model, T tasks: any weighting of task gradients in front of a fused base rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ..base import AdamW, BaseRule, as_base_rule
from ..collect import collect_sequential, collect_sum, weighted_sum
from ..ops import Order, combine_
from ..ops.limits import MAX_TASKS
from ..ranks import together
from ..weighting import Needs, Weighting
from .entries import member, member_dict
from .losses import as_list, backward_done, check_losses
from .options import check_one_row, check_task_options
from .shown import ShownGradients
from .skipped import NONFINITE, OF_WEIGHTED_SUM
from .task_gradients import TaskGradients
from .weigher import READS_GRADIENTS, Weigher

__all__ = ["WeightedFused"]

Losses = Tensor | Sequence[Tensor]


class WeightedFused(TaskGradients):
    """Trains one model on T losses with a weighting of their gradients: CAGrad, Nash-MTL, UPGrad, FAMO, ...

        theta <- theta - base rule(sum_t w_t g_t),     w from the Gram matrix of the g_t, from the losses, ...

    Each step reads the task gradients once for the Gram matrix and once in the fused update.  Weightings that need only
    the losses take one backward pass, of the weighted sum, and no memory for task gradients.

        optimizer = WeightedFused([{"params": trunk}, {"params": head_a, "task": 0}, {"params": head_b, "task": 1}],
                                  num_tasks=2, weighting=CAGrad(c=0.4), lr=1e-3)
        optimizer.backward([loss_a, loss_b]); optimizer.step()

    ``backward`` leaves the combined gradient in ``.grad``, where clipping, gradient norms, noise, hooks and
    ``scaler.unscale_`` find it; ``step`` applies what stands there then, and uses it up: ``zero_grad`` is only for
    dropping a batch.  Several calls of ``backward`` add up until then.  ``step(closure)`` does all of it at once and
    combines within the fused update: there nobody can look in between.  Parameters that are in no group get what the
    backward passes leave in their ``.grad``, as from any backward.  Give the losses as a list rather than stacked: then
    backward of one does not pass through the heads of the others.

    Args:
        params: parameters or parameter groups.  A group with ``task=t`` is a head: its parameters belong to task t
            alone, take no space among the task gradients and get their own task's gradient.
        num_tasks: T.
        weighting: an instance (it belongs to this optimizer from then on), its name, or None for the sum by
            ``preferences``.
        lr, base: as for :class:`MT2OFused`.
        preferences: T weights on the simplex, for weightings that have a use for them; default 1 / T.
        heads: "plain": heads get their own task's gradient; "weighted": times the task's weight.
        collect: "sequential": a backward pass for each loss; "batched": one for all through ``torch.func.vmap``, which
            can be faster on models of many small operations.
        accumulate: keep task gradients also where the weighting needs only losses, so that it sees those of all
            ``backward`` calls before a step; without it such a weighting takes one call for each step.
        ema: decay of a running average of the parameters (``state[p]["ema"]``), or None.
        max_norm: shortens the combined gradient to this length, all parameters as one vector, before the base rule
            sees it; ``grad_norm`` tells how long it was.  None: never.
        generator: of the weighting's random numbers; by default one that is seeded from torch's default generator.
        process_group: data parallelism without DDP: a process group, or True for the default one.  Gradients and losses
            are averaged over its ranks before they are weighted.  All ranks start from the first one's parameters, draw
            its random numbers and skip a step that one of them has to skip; every rank calls ``backward`` and ``step``
            as often as the others, which is checked at each step, as is whether the ranks have the same model and
            options: an error on all of them names what differs.  None: no data parallelism, with a warning where
            torch.distributed has several ranks.  False: without that warning.

    Raises TypeError or ValueError, before anything is changed, for options out of range and unsuitable parameters.
    """

    def __init__(
        self,
        params: Any,
        *,
        num_tasks: int,
        weighting: Weighting | str | None = None,
        lr: float | Tensor = 1e-3,
        base: BaseRule | str = AdamW(),  # noqa: B008  (frozen)
        preferences: Tensor | Sequence[float] | None = None,
        heads: str = "plain",
        collect: str = "sequential",
        accumulate: bool = False,
        ema: float | None = None,
        max_norm: float | None = None,
        generator: torch.Generator | None = None,
        process_group: Any = None,
    ) -> None:
        table = check_one_row(preferences, num_tasks)
        weighting = check_task_options(weighting, heads, collect)
        self._num_tasks, self._heads, self._collecting = num_tasks, heads, collect
        self._accumulate = accumulate
        self._weigher = Weigher(weighting, table, generator)
        keeps_tasks = accumulate or weighting.per_segment or bool(weighting.needs & READS_GRADIENTS)
        if keeps_tasks and num_tasks > MAX_TASKS:
            raise ValueError(f"num_tasks must be at most {MAX_TASKS} where task gradients are kept, not {num_tasks}")
        self._copies = ["ema"] * (ema is not None)
        base = as_base_rule(base)
        self._shown: ShownGradients | None = None
        self._taken: list[Tensor] = []
        super().__init__(
            params, {"lr": lr, **base.defaults()}, base,
            num_rows=1, num_tasks=num_tasks if keeps_tasks else 1, stacked=False, ema=ema,
            max_norm=max_norm, skip_all=True, process_group=process_group,
        )  # fmt: skip

    _family = "weighted"

    def __repr__(self) -> str:
        assert self._weigher is not None
        name = type(self._weigher.weighting).__name__
        options = f"num_tasks={self._num_tasks}, weighting={name}, heads={self._heads!r}, ema={self._ema}"
        return super().__repr__().replace(" (", f" ({options}", 1)

    # ------------------------------------------------------------------ losses and gradients
    def backward(self, losses: Losses, *, scaler: Any = None, retain_graph: bool = False) -> None:
        """Backward of T losses, and their combined gradient into ``.grad``.

        Several calls before a step add up: the gradients of each task, which are combined anew.  To what somebody else
        left in ``.grad`` before the first of them the combined gradient is added.

        Args:
            losses: T scalars, a sequence (better) or a tensor [T].
            scaler: a ``torch.amp.GradScaler``, whose factor the gradients then carry, but not what is weighed; then
                call ``scaler.step(optimizer)``.
            retain_graph: as in ``torch.autograd.backward``.

        Raises ValueError or TypeError, before any gradient is computed, for another number of losses or no graph;
        RuntimeError for a second call before ``step`` where the weighting needs ``accumulate=True`` for it, or where
        ``.grad`` was changed since the first.
        """
        check_losses(losses, self._num_tasks, None)
        if not self._shows:
            return self._collect_losses(losses, scaler, retain_graph)
        first = not self._now.shown
        if not first and self._shown_gradients().dropped():
            self._forget()
            first = True
        if first:
            self._shown_gradients().begin()
        else:
            self._check_second_backward()
        self._collect_losses(losses, scaler, retain_graph)
        self._now.shown = True
        with self._all_or_nothing(), torch.no_grad():
            self._show(first)
        return None

    @property
    def _shows(self) -> bool:
        """Whether backward leaves the combined gradient in ``.grad``.

        Not where it is that of several ranks, nor of task gradients that are kept together for a weighting which
        changes them (and remembers): these are combined in the step.
        """
        assert self._weigher is not None
        several = self._accumulate and Needs.ROWS in self._weigher.weighting.needs
        return self._ranks is None and not several

    def _check_second_backward(self) -> None:
        assert self._weigher is not None
        if Needs.ROWS in self._weigher.weighting.needs:
            raise RuntimeError(
                f"{type(self._weigher.weighting).__name__} has learned from the gradients of the backward() before: "
                "for several backward() calls before a step, make WeightedFused(..., accumulate=True)"
            )
        self._shown_gradients().check_unchanged()

    def _shown_gradients(self) -> ShownGradients:
        if self._shown is None:
            combined = [
                flat.num_tasks > 1 or (self._is_head(index) and self._heads == "weighted" and self._task_rows > 1)
                for index, flat in enumerate(self._flat)
            ]
            self._shown = ShownGradients(self._flat, combined)
        return self._shown

    def _build(self) -> None:
        super()._build()
        self._shown = None

    def _show(self, first: bool) -> None:
        """Weighs the gradients that are there and puts their combination into ``.grad``."""
        weigher = self._weigher
        assert weigher is not None
        if weigher.early_weights is None:
            if Needs.ROWS not in weigher.weighting.needs:  # else it has learned from them for good
                weigher.undo()
                weigher.remember()
            self._find_rows_to_skip(weigher.losses)
        self._shown_gradients().show(self._write_combined, first=first)

    def _write_combined(self, index: int, out: Tensor) -> None:
        """The combined gradient of a buffer; zero where the weighting refuses the step, which skips it by that."""
        grads, weights = self._combination(index)
        if weights is None:
            out.copy_(grads[:, 0])
        else:
            combine_(out, grads, weights, self._flat[index].chunks)
        assert self._weigher is not None
        refused = self._weigher.weighting.refused
        if refused is not None and not (self._host_knows(refused) and not bool(refused.any())):
            out.copy_(torch.where(refused.unsqueeze(1), torch.zeros_like(out), out))
        if self._now.unscaled and self._now.scaler is not None:  # as a scaler expects to find it
            out.mul_(self._now.scaler.scale(torch.ones((), dtype=torch.float32, device=out.device)).to(out.dtype))

    def _collect_losses(self, losses: Losses, scaler: Any, retain_graph: bool) -> None:
        """Backward of T losses into the buffers."""
        assert self._weigher is not None
        stacked = check_losses(losses, self._num_tasks, None)
        self._warn_if_alone()
        self._read_shown()
        own = stacked.detach().double().unsqueeze(0)
        scalars = self._scale(as_list(losses), scaler)
        self._weigher.draw_ahead()
        if not self._accumulate and not self._weigher.reads_gradients():
            weights = self._weights_early(own)
            self._collect_early(scalars, weights[0], retain_graph)
        else:
            self._collect(scalars, 0, retain_graph=retain_graph)
        before = self._weigher.losses
        self._weigher.losses = own if before is None else before + own
        self._count_call(0)

    def _weights_early(self, losses: Tensor) -> Tensor:
        assert self._weigher is not None
        if self._weigher.early_weights is None:
            if self._ranks is not None:
                self._ranks.agree(self._call("backward()"))
            return self._weigher.weigh_early(self._joint(losses))
        if Needs.LOSSES in self._weigher.due():
            raise RuntimeError(
                "the weights are made from the losses before backward: for several backward() calls before a step, "
                f"make WeightedFused(..., accumulate=True) (weighting: {type(self._weigher.weighting).__name__})"
            )
        return self._weigher.early_weights

    def _collect_early(self, losses: Sequence[Tensor], weights: Tensor, retain_graph: bool) -> None:
        """One backward of the weighted sum; heads that are not weighted first, on their own short ways."""
        trunk, heads = self._slots.shared(0), self._slots.heads(0)
        total = weighted_sum(losses, weights)
        with self._all_or_nothing():
            if self._heads == "weighted":
                collect_sum(total, [*trunk, *chain.from_iterable(heads)], retain_graph=retain_graph)
                return
            if any(heads):
                collect_sequential(losses, heads, short=True, retain_graph=True)
            collect_sum(total, trunk, self._slots.head_parameters(), retain_graph=retain_graph)

    # ------------------------------------------------------------------ the step
    @torch.no_grad()
    def step(self, closure: Callable[[], Losses] | None = None) -> Tensor | None:  # type: ignore[override]
        """One step.

        Args:
            closure: returns the T losses of the model as it is; called under grad mode, backward is done here.  A
                weighting that learns from feedback (FAMO) calls it once more, without a graph, after the step: it must
                be the same mini-batch then.  A closure that returns None (trainers pass such ones), or of one task a
                scalar as those of torch.optim do, has done backward itself.

        Returns the losses, float64 [T], if there was a closure that returned them, else None.
        Raises RuntimeError, and changes nothing, if there is no gradient at all.
        """
        assert self._weigher is not None
        if closure is None and self._only_asked_for_state():
            return None
        result: Tensor | None = None
        with together(self._ranks):
            if closure is not None:
                result = self._run(closure)
            if not self._now.shown:
                self._check_scaler()
            self._take_gradients()
            self._refresh_segments()
        self._reduce()
        losses = None if self._weigher.losses is None else self._joint(self._weigher.losses)
        found, skipped = self._find_rows_to_skip(losses)
        if self._nothing_left(skipped):
            self._weigher.undo()
        else:
            self._apply(skipped, [None] * len(self._flat), Order.CONSENSUS)
            if not self._host_knows(skipped):
                self._weigher.undo_where(skipped)
            self._weigher.done()
        self._await_feedback(losses, skipped)
        self._count_skipped(found, skipped)
        self._forget()
        if result is None or result.dim() == 0 or losses is None:  # the closure did backward itself
            return result
        if closure is not None and Needs.FEEDBACK in self._weigher.weighting.needs:
            with together(self._ranks):
                again = closure()  # grad mode is off here
            self.feedback(again)
        return losses[0]

    def _run(self, closure: Callable[[], Losses | None]) -> Tensor | None:
        """Calls the closure, and backward if it has not done so itself."""
        with torch.enable_grad():
            losses = closure()
            if backward_done(losses, self._num_tasks):
                return losses.detach() if isinstance(losses, Tensor) else None
            assert losses is not None
            check_losses(losses, self._num_tasks, None)
            self._forget()
            self._collect_losses(losses, None, False)  # combined within the step: nobody can look in between
        assert self._weigher is not None and self._weigher.losses is not None
        return self._weigher.losses[0]

    def _take_gradients(self) -> None:
        assert self._weigher is not None
        self._warn_if_alone()
        flats = self._synchronize()
        if self._now.shown:
            self._taken = self._shown_gradients().take()
        elif self._num_tasks == 1 and self._weigher.losses is None:
            for flat in flats:
                flat.collect_gradients(0, detach=False)
        if flats and not any(flat.any_filled() for flat in flats):
            raise RuntimeError("step() needs gradients: call optimizer.backward(losses) first, or step(closure)")

    def _find_rows_to_skip(self, losses: Tensor | None) -> tuple[Tensor, Tensor]:
        assert self._weigher is not None
        weights = self._weigher.early_weights
        if weights is None and self._now.shown and self._taken:
            found = self._with_refusals(self._find_nonfinite(losses))
            return found, self._rows_to_skip(found)
        if weights is None:
            return super()._find_rows_to_skip(losses)
        finite_losses = self._with_losses(torch.zeros_like(self._skipped, dtype=torch.float32), losses) == 0
        found = self._find_nonfinite(losses)
        found = torch.where((found == NONFINITE) & finite_losses, float(OF_WEIGHTED_SUM), found)
        self._weigher.last_weights = weights
        found = self._with_refusals(found)
        return found, self._rows_to_skip(found)

    def _refusals(self, found: Tensor) -> Tensor:
        refusals = super()._refusals(found)
        assert self._weigher is not None
        weights = self._weigher.early_weights
        if weights is None:
            return refusals
        at = weights.abs().argmax(1, keepdim=True)
        largest = torch.cat([refusals[:, :1], at.double(), weights.gather(1, at)], 1)
        return torch.where(found[:, None] == OF_WEIGHTED_SUM, largest, refusals)

    def _mark_nonfinite(self, found: Tensor) -> None:
        if self._taken:
            self._shown_gradients().find_nonfinite(found)
        else:
            super()._mark_nonfinite(found)

    def _divisor(self, device: torch.device) -> Tensor | None:
        # Of gradients in .grad a scaler says itself what they have still to be divided by.
        return self._factor(device) if self._taken else super()._divisor(device)

    def _combination(self, index: int) -> tuple[Tensor, Tensor | None]:
        if self._taken:
            return self._taken[index], None
        if self._weigher is None or self._weigher.early_weights is None:
            return super()._combination(index)
        return self._flat[index].grads[:, :1], None  # combined in backward, into the place of the first task

    def _forget(self) -> None:
        super()._forget()
        if self._shown is not None:
            self._shown.forget(used=bool(self._taken))
        self._taken = []
        self._now.shown = False

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops the gradients since the last step, in ``.grad`` and kept apart."""
        super().zero_grad(set_to_none)
        self._forget()

    # ------------------------------------------------------------------ state
    def _export_shared(self) -> dict[str, Any]:
        assert self._weigher is not None
        state = self._weigher.state_dict()
        if self._num_tasks == 1 and not state["weighting"]:
            return {}  # the dict of torch.optim
        return {**state, "skipped": self._skipped.clone()}

    def _loaded_shared(self, shared: Any, state: dict[Any, Any]) -> Callable[[], None]:
        assert self._weigher is not None
        if shared is None:
            if self._num_tasks > 1 and state:
                raise ValueError("expected the state of a WeightedFused of several tasks, got one of another optimizer")
            return lambda: None
        shared = member_dict({"weighted": shared}, "weighted", "the first group")
        weigh = self._weigher.loaded(shared)
        skipped = member(shared, "skipped", (1,), "the optimizer")

        def commit() -> None:
            weigh()
            self._skipped.copy_(skipped)

        return commit
