"""One model, T tasks: any weighting of task gradients in front of a fused base rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ..base import AdamW, BaseRule, as_base_rule
from ..device import host_knows
from ..entries import member, member_dict
from ..gradients.collect import TaskSlots, collect_sequential, collect_sum, weighted_sum
from ..gradients.losses import as_list, backward_done, check_losses
from ..gradients.options import check_one_row, check_task_options
from ..gradients.shown import ShownGradients, is_used
from ..gradients.skipped import NONFINITE, OF_WEIGHTED_SUM
from ..gradients.table import GradientTable, check_dense
from ..gradients.tasks import Combination, TaskGradients
from ..gradients.weigher import READS_GRADIENTS, Weigher, undone_on_error
from ..ops.limits import MAX_TASKS
from ..ranks import together
from ..weighting import Needs, Weighting
from .amp import Scaling, scaled
from .base import FlatOptimizer, nothing_left, with_losses
from .buffers import Buffers
from .step import Plan, StepInputs

__all__ = ["WeightedFused"]

Losses = Tensor | Sequence[Tensor]


class WeightedFused(FlatOptimizer):
    """Trains one model on T losses with a weighting of their gradients: CAGrad, Nash-MTL, UPGrad, FAMO, ...

        theta <- theta - base rule(sum_t w_t g_t),     w from the Gram matrix of the g_t, from the losses, ...

    Each step reads the task gradients once for the Gram matrix and once in the fused update.  Weightings that need only
    the losses take one backward pass, of the weighted sum, and no memory for task gradients.

        optimizer = WeightedFused([{"params": trunk}, {"params": head_a, "task": 0}, {"params": head_b, "task": 1}],
                                  num_tasks=2, weighting=CAGrad(c=0.4), lr=1e-3)
        optimizer.backward([loss_a, loss_b]); optimizer.step()

    ``backward`` leaves the combined gradient in ``.grad``, where clipping, gradient norms, noise, hooks and
    ``scaler.unscale_`` find it; ``step`` applies what stands there then.  It stays there for others to see, but is used
    up: the next ``backward`` begins anew.  (A backward of your own beside it adds to what it finds, as everywhere: call
    ``zero_grad`` then.)  Several calls of ``backward`` add up until the step.  ``step(closure)`` does all of it at once
    and combines within the fused update: there nobody can look in between.  Parameters that are in no group get what
    the backward passes leave in their ``.grad``, as from any backward.  Give the losses as a list rather than stacked:
    then backward of one does not pass through the heads of the others.

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
        show_grad: leave the combined gradient in ``.grad`` (default), which takes a pass over it.  False: ``.grad``
            stays empty, and ``step`` combines within the fused update, as ``step(closure)`` does.
        accumulate: keep task gradients also where the weighting needs only losses, so that it sees those of all
            ``backward`` calls before a step; without it such a weighting takes one call for each step.
        ema: decay of a running average of the parameters (``state[p]["ema"]``), or None.
        max_norm: shortens the combined gradient to this length, all parameters as one vector, before the base rule
            sees it; ``grad_norm`` tells how long it was.  None: never.
        generator: of the weighting's random numbers; by default one that is seeded from torch's default generator.
        skip_nonfinite: skip steps of infinite or NaN gradients or losses (default).  False: gradients are not looked at
            for that, which saves one read of them; where a weighting reads them anyway, and for losses, it stays.
        process_group: data parallelism without DDP: a process group, or True for the default one.  Gradients and losses
            are averaged over its ranks before they are weighted.  All ranks start from the first one's parameters, draw
            its random numbers and skip a step that one of them has to skip; every rank calls ``backward`` and ``step``
            as often as the others, which is checked at each step, as is whether the ranks have the same model and
            options: an error on all of them names what differs.  None: no data parallelism, with a warning where
            torch.distributed has several ranks.  False: without that warning.

    Raises:
        TypeError: for options and parameters of the wrong kind, before anything is changed.
        ValueError: for options out of range and unsuitable parameters, before anything is changed.
    """

    def __init__(
        self,
        params: Any,
        *,
        num_tasks: int,
        weighting: Weighting | str | None = None,
        lr: float | Tensor | None = None,
        base: BaseRule | str = AdamW(),  # noqa: B008  (frozen)
        preferences: Tensor | Sequence[float] | None = None,
        heads: str = "plain",
        collect: str = "sequential",
        show_grad: bool = True,
        accumulate: bool = False,
        ema: float | None = None,
        max_norm: float | None = None,
        generator: torch.Generator | None = None,
        skip_nonfinite: bool = True,
        process_group: Any = None,
    ) -> None:
        if not isinstance(skip_nonfinite, bool):
            raise TypeError(f"expected skip_nonfinite as True or False, got {skip_nonfinite!r:.80}")
        table = check_one_row(preferences, num_tasks)
        weighting = check_task_options(weighting, heads, collect)
        keeps_tasks = accumulate or weighting.per_segment or bool(weighting.needs & READS_GRADIENTS)
        if keeps_tasks and num_tasks > MAX_TASKS:
            raise ValueError(f"num_tasks must be at most {MAX_TASKS} where task gradients are kept, not {num_tasks}")
        base = as_base_rule(base)
        self._num_tasks = num_tasks
        self._accumulate = accumulate
        self._show_grad = show_grad
        self._shown: dict[bool, ShownGradients] = {}
        tasks = TaskGradients(Weigher(weighting, table, generator), num_tasks, heads, collect)
        super().__init__(
            params,
            {"lr": base.lr if lr is None else lr, **base.defaults()},
            base,
            Buffers(1, num_tasks if keeps_tasks else 1, stacked=False),
            tasks=tasks,
            heads_of=num_tasks,
            ema=ema,
            copies=["ema"] * (ema is not None),
            max_norm=max_norm,
            look_for_nonfinite=skip_nonfinite,
            refusers=[weighting],
            process_group=process_group,
        )

    _family = "weighted"
    _tasks: TaskGradients

    def __repr__(self) -> str:
        name = type(self._weigher.weighting).__name__
        options = f"num_tasks={self._num_tasks}, weighting={name}, heads={self._tasks.heads!r}, ema={self._ema}"
        return super().__repr__().replace(" (", f" ({options}", 1)

    @property
    def _weigher(self) -> Weigher:
        return self._tasks.weigher

    def _works_in_wrapper(self) -> bool:
        return self._buffers.num_tasks == 1

    def _build(self) -> None:
        super()._build()
        flats = self._buffers.flats
        # A sum that was weighted before its backward needs one gradient of each parameter.
        self._early_slots = TaskSlots([flat.combined for flat in flats], self._buffers.tasks, self._num_tasks)
        self._shown.clear()

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

        A call that fails in the backward pass drops the batch, with the calls before it: some of their gradients have
        been added to.

        Raises:
            TypeError: for losses that are no tensors, before any gradient is computed.
            ValueError: for another number of losses or no graph, before any gradient is computed.
            RuntimeError: for a second call before ``step`` if the weighting needs ``accumulate=True`` for it, or
                ``.grad`` was changed since the first.
        """
        check_losses(losses, self._num_tasks, None)
        if not self._shows:
            self._collect(losses, scaler, retain_graph)
            return
        if self._now.batch.shown and self._shown_gradients().dropped():
            self._forget()
        first = not self._now.batch.shown
        if first:
            self._shown_gradients().begin()
        else:
            self._check_second_backward()
        self._collect(losses, scaler, retain_graph)
        try:
            with torch.no_grad():
                self._show(first)
        except BaseException:
            self._drop()
            raise

    @property
    def _shows(self) -> bool:
        """True if backward leaves the combined gradient in ``.grad``.

        Not where it is that of several ranks, nor of task gradients that are kept together for a weighting which
        changes them (and remembers): these are combined in the step.
        """
        several = self._accumulate and Needs.ROWS in self._weigher.weighting.needs
        return self._show_grad and self._ranks is None and not several

    @property
    def _weighs_early(self) -> bool:
        """True if the weights of the next step are made from the losses, before their backward."""
        return not self._accumulate and not self._weigher.reads_gradients()

    def _check_second_backward(self) -> None:
        if Needs.ROWS in self._weigher.weighting.needs:
            raise RuntimeError(
                f"{type(self._weigher.weighting).__name__} has learned from the gradients of the backward() before: "
                "for several backward() calls before a step, make WeightedFused(..., accumulate=True)"
            )
        self._shown_gradients().check_unchanged()

    def _shown_gradients(self) -> ShownGradients:
        early = self._weighs_early
        if early not in self._shown:
            tables = [flat.combined if early else flat.tasks for flat in self._buffers.flats]
            plain = self._tasks.heads == "plain"
            apart = [not early and not (plain and self._tasks.is_head(index)) for index in range(len(tables))]
            self._shown[early] = ShownGradients(tables, apart)
        return self._shown[early]

    def _show(self, first: bool) -> None:
        """Weighs the gradients that are there and puts their combination into ``.grad``."""
        weigher, batch = self._weigher, self._now.batch
        batch.shown = True
        if batch.early_weights is not None:
            self._shown_gradients().show(lambda index, out: None, first=first)
            return
        losses, factor = batch.all_losses(), Scaling.of(self, batch.scaler).kept_factor(self._buffers.device)
        found = with_losses(self._report.nothing_found(), losses)
        if self._look_for_nonfinite:
            self._tasks.find_nonfinite(found)
        self._tasks.transform(batch, losses, found, factor, self._report.rows_to_skip)
        if Needs.ROWS not in weigher.weighting.needs:  # else it has learned from them for good
            weigher.undo()
            weigher.remember()
        weighed = self._tasks.weigh(batch, losses, found, factor, self._report.rows_to_skip)
        self._now.weights = weighed.weights
        refused = weigher.weighting.refused
        some = refused is not None and not (host_knows(refused) and not bool(refused.any()))

        def combine(index: int, out: Tensor) -> None:
            self._tasks.combine_into(index, weighed.applied, out)
            if some and refused is not None:  # the step is skipped for that; what stands in `.grad` are numbers
                out.copy_(torch.where(refused.unsqueeze(1), torch.zeros_like(out), out))

        self._shown_gradients().show(combine, first=first)

    def _collect(self, losses: Losses, scaler: Any, retain_graph: bool) -> None:
        """Backward of T losses into the tables."""
        stacked = check_losses(losses, self._num_tasks, None)
        self._look_for_ranks()
        self._read_shown()
        own = stacked.detach().double()
        scaler = scaler if scaler is not None and scaler.is_enabled() else None
        scalars = scaled(as_list(losses), scaler)
        self._weigher.draw_ahead()
        batch = self._now.batch
        if self._weighs_early:
            batch.early_weights = self._weights_early(own.unsqueeze(0))
        try:
            if batch.early_weights is not None:
                self._collect_early(scalars, batch.early_weights[0], retain_graph)
            else:
                self._tasks.collect(scalars, 0, retain_graph=retain_graph)
        except BaseException:
            self._drop()
            raise
        batch.add_losses(0, own.unsqueeze(0))
        batch.scaler = scaler
        self._name_unreached(self._step_tables)
        if self._ranks is not None:
            self._ranks.count(0)

    def _weights_early(self, losses: Tensor) -> Tensor:
        if self._now.batch.early_weights is None:
            if self._ranks is not None:
                self._ranks.agree(self._call("backward()"))
            return self._weigher.weigh_early(self._joint(losses))
        if Needs.LOSSES in self._weigher.due():
            raise RuntimeError(
                "the weights are made from the losses before backward: for several backward() calls before a step, "
                f"make WeightedFused(..., accumulate=True) (weighting: {type(self._weigher.weighting).__name__})"
            )
        return self._now.batch.early_weights

    def _collect_early(self, losses: Sequence[Tensor], weights: Tensor, retain_graph: bool) -> None:
        """One backward of the weighted sum; heads that are not weighted first, on their own short ways."""
        slots = self._early_slots
        trunk, heads = slots.shared(0), slots.heads(0)
        total = weighted_sum(losses, weights)
        if self._tasks.heads == "weighted":
            collect_sum(total, [*trunk, *chain.from_iterable(heads)], retain_graph=retain_graph)
            return
        if any(heads):
            collect_sequential(losses, heads, short=True, retain_graph=True)
        collect_sum(total, trunk, slots.head_parameters(), retain_graph=retain_graph)

    # ------------------------------------------------------------------ the step
    @torch.no_grad()
    def step(self, closure: Callable[[], Losses] | None = None) -> Tensor | None:  # type: ignore[override]
        """One step.

        Args:
            closure: returns the T losses of the model as it is; called under grad mode, backward is done here.  A
                weighting that learns from feedback (FAMO) calls it once more, without a graph, after the step: it must
                be the same mini-batch then.  A closure that returns None (trainers pass such ones), or of one task a
                scalar as those of torch.optim do, has done backward itself.

        Returns:
            The losses, float64 [T], if there was a closure that returned them, else None.

        Raises:
            RuntimeError: if there is no gradient at all; nothing is changed then.
        """
        if closure is None and self._only_asked_for_state():
            return None
        result: Tensor | None = None
        with together(self._ranks):
            if closure is not None:
                result = self._run(closure)
            scaling = self._prepare()
        self._reduce(scaling)
        batch = self._now.batch
        losses = batch.all_losses()
        losses = None if losses is None else self._joint(losses)
        found = self._find(losses, scaling)
        if not self._is_combined:
            self._tasks.transform(batch, losses, found, self._divisor(scaling), self._report.rows_to_skip)
        with undone_on_error(self._weigher.weighting):
            plan = self._plan(found, losses, scaling)
            if nothing_left(plan.skipped):
                self._weigher.undo()
            else:
                self._apply(plan.inputs)
        self._finish(plan, losses, scaling)
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
            self._collect(losses, None, False)  # combined within the step: nobody can look in between
        losses_of_batch = self._now.batch.all_losses()
        assert losses_of_batch is not None
        return losses_of_batch[0]

    @property
    def _is_combined(self) -> bool:
        """True if the gradients of the next step are one of each parameter already.

        They are shown in ``.grad``, weighted before their backward, or those of a single task that the user's own
        backward left.
        """
        batch = self._now.batch
        return batch.shown or batch.early_weights is not None or (self._num_tasks == 1 and batch.losses[0] is None)

    def _prepare(self) -> Scaling:
        """Takes in what others did since the last step, and the gradients."""
        self._look_for_ranks()
        self._synchronize()
        batch = self._now.batch
        scaling = Scaling.of(self, batch.scaler)
        if batch.shown or (self._is_combined and batch.early_weights is None):
            check_dense(p.grad for p in self._buffers.parameters())
            for flat in self._buffers.flats:
                flat.combined.take(keep=True)
            if not batch.shown:
                self._leave_out_used()
        else:
            scaling.check_known()
        if self._buffers.flats and not any(any(table.reached()) for table in self._step_tables):
            raise RuntimeError(self._without_gradients())
        if batch.losses[0] is None:  # else backward has seen what it reached
            self._name_unreached(self._step_tables)
        self._buffers.refresh(self.param_groups, self._base, self._ema)
        return scaling

    def _leave_out_used(self) -> None:
        """Drops gradients that the last step has used: they still stand in ``.grad`` for others to see."""
        for flat in self._buffers.flats:
            for segment, p in enumerate(flat.parameters):
                if p.grad is not None and is_used(p.grad):
                    flat.combined.leave_out(segment)

    @property
    def _step_tables(self) -> list[GradientTable]:
        combined = self._is_combined
        return [flat.combined if combined else flat.tasks for flat in self._buffers.flats]

    def _divisor(self, scaling: Scaling) -> Tensor | None:
        """float32 [1], what the gradients of the next step are divided by, or None."""
        device = self._buffers.device
        # Of gradients in .grad a scaler says itself what they have still to be divided by.
        shown = self._now.batch.shown
        return scaling.factor(device) if shown else self._of_all_ranks(scaling.kept_factor(device))

    def _find(self, losses: Tensor | None, scaling: Scaling) -> Tensor:
        """float32 [1], what is found in the gradients and losses before anything is weighed."""
        if not self._is_combined:
            found = with_losses(scaling.with_infinities(self._report.nothing_found()), losses)
            if self._look_for_nonfinite:
                self._tasks.find_nonfinite(found)
            return found
        found = self._find_nonfinite(self._step_tables, losses, scaling)
        if self._now.batch.early_weights is None:
            return found
        finite = with_losses(self._report.nothing_found(), losses) == 0
        return torch.where((found == NONFINITE) & finite, float(OF_WEIGHTED_SUM), found)

    def _plan(self, found: Tensor, losses: Tensor | None, scaling: Scaling) -> Plan:
        """The step of the gradients that are there; task gradients are weighed for it."""
        batch, tasks, tables = self._now.batch, self._tasks, self._step_tables
        divisor, rows_to_skip = self._divisor(scaling), self._report.rows_to_skip
        if self._is_combined:
            combinations = [Combination(table.source(), None) for table in tables]
            if batch.early_weights is not None:
                self._now.weights = batch.early_weights
        else:
            weighed = tasks.weigh(batch, losses, found, divisor, rows_to_skip)
            self._now.weights, found = weighed.weights, weighed.found
            combinations = [tasks.combination(index, weighed.applied) for index in range(len(tables))]
        found = self._report.with_refusals(found)
        skipped = rows_to_skip(found)
        inputs = [
            StepInputs.of(table, gradients, divisor, skipped)
            for table, gradients in zip(tables, combinations, strict=True)
        ]
        return Plan(found, skipped, inputs)

    def _finish(self, plan: Plan, losses: Tensor | None, scaling: Scaling) -> None:
        """Counts the step, and uses its gradients up."""
        weigher, skipped = self._weigher, plan.skipped
        if not nothing_left(skipped):
            if not host_knows(skipped):
                weigher.undo_where(skipped)
            weigher.done()
        self._await_feedback(losses, skipped)
        self._count_skipped(plan.found, skipped, scaling, self._now.batch.early_weights)
        if self._now.batch.shown:
            if torch.compiler.is_compiling():  # versions are not to be had
                self._shown_gradients().drop()
            else:
                self._shown_gradients().mark_used()
        self._forget()

    def _reduce(self, scaling: Scaling) -> None:
        """Sums gradients over the ranks, after a look at whether all are at the same step."""
        if self._ranks is not None:
            self._check_scaler_of_ranks(scaling)
            self._ranks.reduce_(self._step_tables, self._call("step()"))

    def _drop(self) -> None:
        """Drops the batch, also what of it stands in ``.grad``."""
        for shown in self._shown.values():
            shown.drop()
        self._forget()

    def _forget(self) -> None:
        super()._forget()
        for shown in self._shown.values():
            shown.forget()

    @property
    def preferences(self) -> Tensor:
        """float64 [T], weights of the tasks on the simplex, for weightings that have a use for them; may be set."""
        return self._weigher.preferences[0].clone()

    @preferences.setter
    def preferences(self, preferences: Tensor | Sequence[float]) -> None:
        self._weigher.preferences = check_one_row(preferences, self._num_tasks).to(self._weigher.preferences)

    # ------------------------------------------------------------------ what weightings learn from
    @property
    def weights(self) -> Tensor | None:
        """float64 [1, T] (per tensor: [1, S, T]), the weights of the last step; NaN where it was skipped."""
        return self._last_weights()

    @torch.no_grad()
    def feedback(self, losses: Losses) -> None:
        """For weightings that learn from it (FAMO): the losses of the last mini-batch again, after the step.

        losses: T scalars or [T].
        """
        self._weigher.check_feedback()
        after = check_losses(losses, self._num_tasks, None, graph=False).detach().double()
        self._learn_from(after)

    def epoch_end(self) -> None:
        """Counts an epoch, for weightings that go by them (DWA)."""
        self._weigher.epoch += 1

    # ------------------------------------------------------------------ state
    def _export_shared(self) -> dict[str, Any]:
        state = self._weigher.state_dict()
        if self._num_tasks == 1 and not state["weighting"]:
            return {}  # the dict of torch.optim
        return {**state, "skipped": self._report.counts.clone(), "preferences": self._weigher.preferences.clone()}

    def _loaded_shared(self, shared: Any, state: dict[Any, Any]) -> Callable[[], None]:
        if shared is None:
            if self._num_tasks > 1 and state:
                raise ValueError("expected the state of a WeightedFused of several tasks, got one of another optimizer")
            return lambda: None
        shared = member_dict({"weighted": shared}, "weighted", "the first group")
        weigh = self._weigher.loaded(shared)
        skipped = member(shared, "skipped", (1,), "the optimizer")
        preferences = member(shared, "preferences", (1, self._num_tasks), "the optimizer")

        def commit() -> None:
            weigh()
            self._weigher.preferences = preferences.to(self._weigher.preferences)
            self._report.counts.copy_(skipped)

        return commit
