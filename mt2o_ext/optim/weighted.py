"""One model, T tasks: any weighting of task gradients in front of a fused base rule."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..base import AdamW, BaseRule, as_base_rule
from ..checks import check_flag, check_function
from ..device import host_knows
from ..gradients.losses import backward_done, task_losses
from ..gradients.options import check_one_row, check_task_options
from ..gradients.passes import Backward
from ..gradients.tasks import TaskGradients
from ..gradients.visit import words_about
from ..gradients.weigher import READS_GRADIENTS, Weigher, undone_on_error
from ..ops.limits import MAX_TASKS
from ..ranks import together
from ..weighting import Needs, Weighting
from .amp import Scaling
from .base import nothing_left
from .branch import branched
from .buffers import Buffers
from .history import StepHistory
from .step import Plan
from .task_backward import Losses, TaskBackward
from .weighted_state import exported, loaded

__all__ = ["WeightedFused"]


class WeightedFused(TaskBackward):
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

    A task without data in a step is absent from it: ``None`` (or a loss without a graph) in the list, or in a loop over
    `tasks`.  Its gradient and weight are zero, its head and what the weighting remembers of it stay as they are, and
    the weights of the others are as if there were no such task, with their preferences in the same proportions.

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
        history: the number of steps that are recorded for `history`; 0: none.
        process_group: data parallelism without DDP: a process group, or True for the default one.  Gradients and losses
            are averaged over its ranks before they are weighted.  All ranks start from the first one's parameters, draw
            its random numbers and skip a step that one of them has to skip; every rank calls ``backward`` and ``step``
            as often as the others, which is checked at each step, as is whether the ranks have the same model and
            options: an error on all of them names what differs.  None: no data parallelism, with a warning where
            torch.distributed has several ranks.  False: without that warning.  Sharded parameters (DTensors, as
            ``fully_shard`` makes them) need no group: their device mesh tells the ranks, and backward averages.
        backward: the backward of a trainer that wants to make it itself (``fabric.backward``, ``accelerator.backward``,
            ``self.manual_backward``), or None: that of torch.  It is called with one scalar after the other, and with
            those keywords of ``Tensor.backward`` that are needed (``retain_graph``, ``inputs``).  A trainer that scales
            losses does so in there; ``scaler=`` of `backward` then only tells the optimizer of the factor.

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
        history: int = 0,
        process_group: Any = None,
        backward: Backward | None = None,
    ) -> None:
        check_flag("skip_nonfinite", skip_nonfinite)
        check_flag("show_grad", show_grad)
        check_flag("accumulate", accumulate)
        table = check_one_row(preferences, num_tasks)
        weighting = check_task_options(weighting, heads, collect)
        keeps_tasks = accumulate or weighting.per_segment or bool(weighting.needs & READS_GRADIENTS)
        if keeps_tasks and num_tasks > MAX_TASKS:
            raise ValueError(
                f"expected num_tasks <= {MAX_TASKS} where task gradients are kept, got {num_tasks}: take fewer tasks, "
                "because the kernels hold no more task gradients at once"
            )
        base = as_base_rule(base)
        self._num_tasks = num_tasks
        self._accumulate = accumulate
        self._show_grad = show_grad
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
            history=history,
            process_group=process_group,
            backward=backward,
        )

    @classmethod
    def branch_from(cls, optimizer: torch.optim.Optimizer, **options: Any) -> WeightedFused:
        """Goes on from another optimizer of the same parameters: with another weighting, or with another task.

            optimizer = WeightedFused.branch_from(optimizer, weighting="upgrad")                # after a warm-up, say

            optimizer = WeightedFused.branch_from(optimizer, num_tasks=3)                       # of two tasks before
            optimizer.add_param_group({"params": new_head.parameters(), "task": 2})

        Moments, counts of steps and running averages are kept; gradients are dropped.  Learning rates, tasks of heads
        and other options of groups come from the parameter groups.  The weighting starts anew.  Do not use the old
        optimizer any more, and give schedulers the new one.

        Args:
            optimizer: of the model: torch.optim's SGD, Adam or AdamW, or one of this package of one model.
            options: as of the constructor, but for the parameters.  From another `WeightedFused`, ``num_tasks`` and
                ``weighting`` are by default as there, and ``base`` is that of the optimizer.

        Raises:
            TypeError: for anything but an optimizer, before anything is changed.
            ValueError: for an optimizer of several subproblems or vertices, or of a rule that this package does not
                have, before anything is changed.
            RuntimeError: inside of a context or loop of the optimizer, before anything is changed.
        """
        if isinstance(optimizer, WeightedFused):
            own = {"num_tasks": optimizer._num_tasks, "weighting": copy.deepcopy(optimizer.weighting)}
            options = {**own, **options}
        return branched(cls, optimizer, options)

    _family = "weighted"

    def __repr__(self) -> str:
        name = type(self._weigher.weighting).__name__
        options = f"num_tasks={self._num_tasks}, weighting={name}, heads={self._tasks.heads!r}, ema={self._ema}"
        return super().__repr__().replace(" (", f" ({options}", 1)

    def _works_in_wrapper(self) -> bool:
        return self._buffers.num_tasks == 1

    # ------------------------------------------------------------------ the step
    @torch.no_grad()
    def step(self, closure: Callable[[], Losses] | None = None) -> Tensor | None:  # type: ignore[override]
        """One step.

        Args:
            closure: returns the T losses of the model as it is (None: the task has no data, see ``backward``); called
                under grad mode, backward is done here.  A weighting that learns from feedback (FAMO) calls it once
                more, without a graph, after the step: it must be the same mini-batch then.  A closure that returns None
                (trainers pass such ones), or of one task a scalar as those of torch.optim do, has done backward itself.

        Returns:
            The losses, float64 [T] (NaN of tasks without data), if there was a closure that returned them, else None.

        Raises:
            RuntimeError: if there is no gradient at all; nothing is changed then.
        """
        if self._now.visit is not None:
            raise RuntimeError(
                "expected step() after the loop over tasks(), got it inside: call it when all have their gradients (a "
                "loop that was left by break ends when its generator is closed)"
            )
        if closure is None and self._only_asked_for_state():
            return None
        done, result = True, None
        with together(self._ranks):
            if closure is not None:
                check_function("closure", closure, "pass a function that returns the losses, or nothing")
                done, result = self._run(closure)
            scaling = self._prepare()
            if self._now.batch.missed:
                self._warn_once("missed tasks", words_about(self._now.batch.missed))
        self._reduce(scaling)
        batch = self._now.batch
        given = batch.given_losses()
        given = self._joint_at_step(given) if isinstance(given, Tensor) else given
        gradients = self._round.gradients(batch, given, scaling, self._divisor(scaling))
        with undone_on_error(self._weigher.weighting):
            plan, weights = gradients.plan(self._tasks, self._report)
            if weights is not None:
                self._now.weights = weights
            idle = nothing_left(plan.skipped)
            if idle:
                self._weigher.undo()
            else:
                self._apply(plan.inputs)
        losses = given if isinstance(given, Tensor) else batch.all_losses()
        self._finish(plan, losses, scaling, idle=idle)
        if done or losses is None:
            return result
        if closure is not None and Needs.FEEDBACK in self._weigher.weighting.needs:
            with together(self._ranks):
                again = closure()  # grad mode is off here
            self.feedback(again)
        return self._without_absent(losses[0], batch.absent)

    def _without_absent(self, losses: Tensor, absent: frozenset[int]) -> Tensor:
        """The losses [T], NaN of tasks that were absent."""
        present = self._tasks.present(absent)
        return losses if present is None else torch.full_like(losses, torch.nan).index_copy(0, present, losses[present])

    def _run(self, closure: Callable[[], Losses | None]) -> tuple[bool, Tensor | None]:
        """Calls the closure, and backward; whether it has done so itself, and what it has returned then."""
        with torch.enable_grad():
            losses = closure()
            if backward_done(losses, self._num_tasks):
                return True, losses.detach() if isinstance(losses, Tensor) else None
            assert losses is not None
            given = task_losses(losses, self._num_tasks)
            self._forget()
            self._collect(given, None, self._pass)  # combined within the step: nobody can look in between
        return False, None

    def _prepare(self) -> Scaling:
        """Takes in what others did since the last step, and the gradients."""
        self._look_for_ranks()
        self._synchronize()
        batch = self._now.batch
        scaling = Scaling.of(self, batch.scaler)
        self._round.take(batch, scaling)
        tables = self._round.tables(batch)
        if tables and not any(any(table.reached()) for table in tables):
            raise RuntimeError(self._without_gradients())
        if batch.losses[0] is None:  # else backward has seen what it reached
            self._name_unreached(tables)
        self._buffers.refresh(self.param_groups, self._base, self._ema)
        return scaling

    def _divisor(self, scaling: Scaling) -> Tensor | None:
        """float32 [1], what the gradients of the next step are divided by, or None."""
        device = self._buffers.device
        # Of gradients in .grad a scaler says itself what they have still to be divided by.
        shown = self._now.batch.shown
        return scaling.factor(device) if shown else self._of_all_ranks(scaling.kept_factor(device))

    def _finish(self, plan: Plan, losses: Tensor | None, scaling: Scaling, *, idle: bool) -> None:
        """Counts the step, and uses its gradients up."""
        weigher, skipped = self._weigher, plan.skipped
        if not idle:
            if not host_knows(skipped):
                weigher.undo_where(skipped)
            weigher.done()
        self._await_feedback(losses, skipped)
        batch = self._now.batch
        if self._step_recorder is not None:
            own = None if losses is None else self._without_absent(losses[0], batch.absent)[None]
            self._record_step(own, skipped)
        self._count_skipped(plan.found, skipped, scaling, batch.early)
        if self._now.batch.shown:
            self._round.showing.mark_used(early=self._round.weighs_early)
        self._forget()

    def _reduce(self, scaling: Scaling) -> None:
        """Sums gradients over the ranks, after a look at whether all are at the same step."""
        if self._ranks is not None:
            self._check_scaler_of_ranks(scaling)
            self._ranks.reduce_(self._round.tables(self._now.batch), self._call("step()"))

    @property
    def preferences(self) -> Tensor:
        """float64 [T], weights of the tasks on the simplex, for weightings that have a use for them; may be set."""
        return self._weigher.preferences[0].clone()

    @preferences.setter
    def preferences(self, preferences: Tensor | Sequence[float]) -> None:
        self._weigher.prefer(preferences, self._ranks)

    @property
    def weighting(self) -> Weighting:
        """The weighting.  Another one in the middle of a run: `branch_from`, which keeps moments and averages."""
        return self._weigher.weighting

    @weighting.setter
    def weighting(self, weighting: Weighting | str) -> None:
        raise AttributeError(
            "expected another weighting by WeightedFused.branch_from(optimizer, weighting=...), which keeps moments, "
            "got one set: make the new optimizer, and leave the old one"
        )

    # ------------------------------------------------------------------ what weightings learn from
    @property
    def weights(self) -> Tensor | None:
        """float64 [1, T] (per tensor: [1, S, T]), the weights of the last step; NaN where it was skipped."""
        return self._last_weights()

    def history(self) -> StepHistory:
        """The last steps, of which ``history=`` says how many are kept.

        Raises:
            RuntimeError: if none are.
        """
        return self._recorded_steps()

    @torch.no_grad()
    def feedback(self, losses: Losses) -> None:
        """For weightings that learn from it (FAMO): the losses of the last mini-batch again, after the step.

        losses: T scalars or [T].
        """
        self._weigher.check_feedback()
        self._learn_from(task_losses(losses, self._num_tasks, graph=False).values)

    def epoch_end(self) -> None:
        """Counts an epoch, for weightings that go by them (DWA)."""
        self._weigher.epoch += 1

    # ------------------------------------------------------------------ state
    def _export_shared(self) -> dict[str, Any]:
        return exported(self._weigher, self._report, self._step_recorder)

    def _loaded_shared(self, shared: Any, state: dict[Any, Any]) -> Callable[[], None]:
        return loaded(shared, self._weigher, self._report, self._step_recorder, others=bool(state))
