"""Connection strength (Jeong & Yoon, CVPR 2024): the priority of tasks is learned, then conserved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..base import AdamW, BaseRule, as_base_rule
from ..checks import check_choice, check_count
from ..device import refuse_in_graph
from ..entries import member, member_dict
from ..gradients.losses import takes_task, task_loss
from ..gradients.passes import Backward
from ..gradients.table import GradientTable, Source
from ..gradients.tasks import Combination
from ..ops.limits import MAX_OWNERS
from ..priority.connection import Connection, check_connections
from ..priority.history import HistoryRecorder, PriorityHistory
from ..priority.phases import PhaseDraw
from ..priority.projection import Projections
from ..priority.schedule import mixed
from ..ranks import together
from .amp import Scaling
from .base import FlatOptimizer, nothing_left
from .buffers import Buffers
from .step import StepInputs

__all__ = ["ConnectionStrengthFused"]

SNAPSHOTS = 500  # of shares that a run records at most (of one that keeps to total_steps)


class ConnectionStrengthFused(FlatOptimizer):
    """Trains one model on T tasks whose priority in each channel of the shared layers is learned, then conserved.

    After "Quantifying Task Priority for Multi-Task Optimization" (CVPR 2024, arXiv 2406.02996), from its formulas.  The
    model needs a per-task norm behind its shared layers (:class:`TaskBatchNorm`).  Every step runs one of two phases,
    drawn with the probability that ``schedule`` gives (1 - e / E for phase 1):

    * Phase 1 (Eq. 9): for one task after the other a forward pass, a backward pass and a step of the base rule.  Heads
      and norms of other tasks have no gradient then: neither momentum nor decay moves them.
    * Phase 2 (Algorithm 1): gradients of all tasks at equal parameters; the task with the largest normalised connection
      strength owns a channel (Eq. 10); from every gradient that conflicts with the owner's, on all channels of a layer
      that this task owns as one vector, its part along the owner's is taken away; the sum is one step.

        model = TaskBatchNorm.convert(model, num_tasks=3)
        optimizer = ConnectionStrengthFused(model.named_parameters(), connections=find_connections(model),
                                            num_tasks=3, total_steps=len(loader) * epochs, lr=1e-4)
        optimizer.step(lambda task: task_loss(model, x, y, task))      # the model under select_task(model, task)

    Args:
        params: parameters or parameter groups with options of the base rule.  A group may set ``task``: a head, which
            keeps one gradient instead of T and never gets that of another task.  (Without it a head works too: only its
            own task gives it a gradient.)
        connections: :func:`find_connections`, or a list of :class:`Connection`.
        num_tasks: T.
        total_steps: E, after which phase 2 stays.
        lr: learning rate, a float or a one-element tensor; None: that of the base rule.
        base: ``AdamW()`` (default), ``Adam()`` or ``SGD()`` of this package, or a name.
        mode: "faithful": the paper's method (``nn.Conv2d`` with BatchNorm, without biases; ties go to the lowest task;
            a layer of one owner, or one that a task gives no gradient, takes the plain sum).  "general": all
            connections, a bias with its row, ties have no owner.
        schedule: progress in [0, 1] -> probability of phase 1; see :mod:`mt2o_ext.priority.schedule`.
        steps_per_epoch: the phase is drawn once for so many steps, with the epoch's progress; default: at every step.
        shuffle: the tasks of phase 1 in random order.
        seed: of the one generator behind phases and orders.
        max_norm: shortens the gradient of each step of the base rule to this length, all parameters as one vector (in
            phase 1 that of a task, in phase 2 the projected sum); ``grad_norm`` tells how long it was.  None: never.
        process_group: data parallelism, as of :class:`WeightedFused`: gradients and losses are averaged over the ranks;
            phases, orders and owners are those of the first one.  (A model in DistributedDataParallel with
            ``find_unused_parameters=True`` gives averaged gradients as well: then pass False, the same seed on all
            ranks, and see that they have the same running statistics, from which the owners come.)
        backward: a trainer's backward, as of :class:`WeightedFused`.
        history: the number of last steps of which `history` has losses, skips and (with ``max_norm``) norms; 0: none.
            The norm of a step of phase 1 is that of its last task.

    A step of phase 1 is T steps for the shared parameters and one for a head; learning rate schedulers are advanced
    once.  A non-finite gradient or loss skips the step whole (in phase 1: that task's).

    Where an error is raised, nothing has been changed.

    Raises:
        TypeError: for options and parameters of the wrong kind.
        ValueError: for options out of range, a norm of another number of tasks, weights that are not among the
            parameters or stand in two connections, and BatchNorm without statistics.
    """

    def __init__(
        self,
        params: Any,
        *,
        connections: Iterable[Connection],
        num_tasks: int,
        total_steps: int,
        lr: float | Tensor | None = None,
        base: BaseRule | str = AdamW(),  # noqa: B008  (frozen)
        mode: str = "faithful",
        schedule: Callable[[float], float] = mixed,
        steps_per_epoch: int | None = None,
        shuffle: bool = False,
        seed: int = 0,
        max_norm: float | None = None,
        process_group: Any = None,
        backward: Backward | None = None,
        history: int = 0,
    ) -> None:
        check_count("num_tasks", num_tasks)
        if num_tasks > MAX_OWNERS:
            raise ValueError(
                f"expected num_tasks <= {MAX_OWNERS}, got {num_tasks}: take fewer tasks, because the kernels know no "
                "more owners of a channel"
            )
        check_choice("mode", mode, ("faithful", "general"))
        self._num_tasks = num_tasks
        self._mode = mode
        self._draw = PhaseDraw(schedule, total_steps, steps_per_epoch, shuffle=shuffle, seed=seed)
        self._connections = check_connections(connections, num_tasks)
        self._phase = 0  # of the step that runs
        self._used = [c for c in self._connections if mode == "general" or c.in_the_paper]
        base = as_base_rule(base)
        super().__init__(
            params,
            {"lr": base.lr if lr is None else lr, **base.defaults()},
            base,
            Buffers(1, num_tasks, stacked=False),
            heads_of=num_tasks if num_tasks > 1 else None,
            max_norm=max_norm,
            process_group=process_group,
            backward=backward,
            history=history,
        )
        names = [c.name for c in self._used]
        self._recorder = HistoryRecorder(names, num_tasks, max(1, total_steps // SNAPSHOTS))

    def _build(self) -> None:
        self._used = self._trained(self._used)
        super()._build()
        shared = [tasks[0] is None for tasks in self._buffers.tasks]
        faithful = self._mode == "faithful"
        self._projections = Projections(self._buffers.flats, shared, self._used, faithful=faithful)

    def _trained(self, connections: Sequence[Connection]) -> list[Connection]:
        """The connections whose weight is among the shared parameters; of the others only frozen ones are let pass."""
        groups = {id(p): group for group, p in self._parameters()}
        for connection in connections:
            group = groups.get(id(connection.weight))
            if group is None and connection.weight.requires_grad:
                raise ValueError(
                    f"{connection.name}: expected its weight among the parameters, got one that is not: pass it too, "
                    "or freeze it"
                )
            if group is not None and group.get("task") is not None:
                raise ValueError(
                    f"{connection.name}: expected a shared weight, got one in a group with task=: put it into a group "
                    "without"
                )
        return [c for c in connections if id(c.weight) in groups and self._is_held(c.weight)]

    _family = "connection_strength"
    _needs_whole = "the strength of a connection is that of its whole weight"

    def __repr__(self) -> str:
        options = (
            f"num_tasks={self._num_tasks}, connections={len(self._used)} of {len(self._connections)}, "
            f"mode={self._mode}, total_steps={self._draw.total_steps}"
        )
        return super().__repr__().replace(" (", f" ({options}", 1)

    # ------------------------------------------------------------------ data parallelism
    def _works_in_wrapper(self) -> bool:
        return True

    def _description(self) -> dict[str, Any]:
        own = {"mode": self._mode, "total_steps": self._draw.total_steps}
        own |= {"steps_per_epoch": self._draw.steps_per_epoch, "shuffle": self._draw.shuffle}
        return {**super()._description(), **own, "connections": [c.name for c in self._connections]}

    def _share_draws(self) -> None:
        if self._ranks is not None:
            self._draw.share(self._ranks)

    def _reduce(self, tables: Sequence[GradientTable], task: int | None, absent: frozenset[int] = frozenset()) -> None:
        """Sums gradients over the ranks, after a look at whether all are at the same step."""
        if self._ranks is not None:
            place = {"call": "step()", "number of steps": self._draw.steps, "phase": self._phase, "task": task}
            place["tasks without a loss"] = sorted(absent)
            self._ranks.reduce_(tables, {**place, **self._call("step()")})

    # ------------------------------------------------------------------ the step
    @torch._disable_dynamo
    @torch.no_grad()
    def step(self, closure: Callable[[int], Tensor | None] | None = None) -> Tensor:  # type: ignore[override]
        """One step: phase 1 or phase 2.

        Args:
            closure: ``task -> loss``, a scalar with a graph; None, or a constant, if the task has no data now: it is
                absent then (in phase 2 it owns no channel), and its head stays as it is.  Called under grad mode once
                for each task, in phase 1 with parameters that the tasks before have changed: run the model anew in each
                call.  One without arguments (trainers hand on such ones) finds the task in ``optimizer.task``.

        In phase 2, and for the first task of phase 1, nothing has been changed where an error is raised.

        Returns:
            The losses, float64 [T]; NaN of absent tasks.

        Raises:
            TypeError: if there is no closure, or a loss is no tensor.
            ValueError: for a loss that is no scalar, and where all tasks are absent.
            RuntimeError: if no parameter gets a gradient.
        """
        if closure is None and self._only_asked_for_state():
            return torch.zeros(self._num_tasks, dtype=torch.float64)
        if closure is None:
            raise TypeError(
                "expected step(closure), got none: call optimizer.step(lambda task: task_loss(model, x, y, task))"
            )
        if self._draw.steps == self._draw.total_steps:
            self._warn_once(
                "total_steps", f"this is step {self._draw.total_steps + 1} of {self._draw.total_steps}: phase 2 stays"
            )
        refuse_in_graph(
            self._buffers.device, "ConnectionStrengthFused", "it draws phase and order of tasks on the host"
        )
        self._look_for_ranks()
        before, phase = self._draw.state_dict(), self._phase
        self._phase, order = self._draw.next(self._num_tasks)
        try:
            losses = self._learn(closure, order) if self._phase == 1 else self._conserve(closure)
        except BaseException:
            self.zero_grad()
            self._draw.load_state_dict(before)
            self._phase = phase
            raise
        self._recorder.phases.append(self._phase)
        self._record_step(losses[None], self._now.skipped)
        return losses

    def _learn(self, closure: Callable[[int], Tensor | None], order: Sequence[int]) -> Tensor:
        """Phase 1: a step for each task, of the parameters that its loss has a gradient for."""
        losses = torch.full((self._num_tasks,), torch.nan, dtype=torch.float64, device=self._buffers.device)
        absent, skipped = 0, []
        for task in order:
            with together(self._ranks):
                self.zero_grad()
                own = self._backward(closure, task)
                if own is None:
                    absent += 1
                    continue
                tables = [flat.combined for flat in self._buffers.flats]
                self._take(tables, task, 0)
                self._buffers.refresh(self.param_groups, self._base, None)
            self._reduce(tables, task)
            losses[task] = self._joint(own)
            skipped.append(self._take_step(tables, losses[task].reshape(1, 1), frozenset()))
        self._check_some(absent)
        self._now.skipped = torch.stack(skipped).amax(0)
        self.zero_grad()
        return losses

    def _conserve(self, closure: Callable[[int], Tensor | None]) -> Tensor:
        """Phase 2: one step with the gradients of all tasks."""
        with together(self._ranks):
            self.zero_grad()
            losses: list[Tensor | None] = []
            for task in range(self._num_tasks):
                losses.append(self._backward(closure, task))
                tables = [flat.tasks for flat in self._buffers.flats]
                if losses[task] is not None:
                    self._take(tables, task, task)
            absent = frozenset(task for task, loss in enumerate(losses) if loss is None)
            self._check_some(len(absent))
            self._buffers.refresh(self.param_groups, self._base, None)
        self._reduce(tables, None, absent)
        there = [task for task in range(self._num_tasks) if task not in absent]
        joint = self._joint(torch.stack([loss for loss in losses if loss is not None]))
        self._now.skipped = self._take_step(tables, joint.reshape(1, -1), absent)
        self.zero_grad()
        if not absent:
            return joint
        of_all = torch.full((self._num_tasks,), torch.nan, dtype=torch.float64, device=joint.device)
        of_all[there] = joint
        return of_all

    def _check_some(self, absent: int) -> None:
        if absent == self._num_tasks:
            raise ValueError(
                "expected a loss of at least one task, got none: do not call step() without any data (None, or a loss "
                "without graph, says that a task has none; were the losses detached, or computed under no_grad?)"
            )

    def _backward(self, closure: Callable[..., Tensor | None], task: int) -> Tensor | None:
        """Backward of a task's loss into ``.grad``; returns the loss, or None where the task is absent."""
        self._now.task = task
        try:
            with torch.enable_grad():
                loss = task_loss(closure(task) if takes_task(closure) else closure(), task)
                if loss is not None:
                    self._pass.run(loss)
        finally:
            self._now.task = None
        self._synchronize()
        if loss is None:
            return None
        return loss.detach().double()

    def _take(self, tables: Sequence[GradientTable], task: int, row: int) -> None:
        """Moves ``.grad`` to this task's row of the tables (to the only one of heads), but for heads of others."""
        for table, tasks in zip(tables, self._buffers.tasks, strict=True):
            for p, of_task in zip(table.layout.parameters, tasks, strict=True):
                if of_task not in (task, None):
                    p.grad = None
            table.take(task=row if table.num_tasks > 1 else 0)

    def _take_step(self, tables: Sequence[GradientTable], losses: Tensor, absent: frozenset[int]) -> Tensor:
        """A step of the base rule; returns float32 [1], not zero if it was skipped."""
        if not any(any(table.reached()) for table in tables):
            raise RuntimeError(
                "expected a loss with a gradient for parameters of this optimizer, got none: were they replaced in the "
                "model since it was made? Then make a new one"
            )
        scaling = Scaling.of(self, None)
        found = self._find_nonfinite(tables, losses, scaling)
        if not nothing_left(found):
            combinations = (
                self._project(tables, absent)
                if self._phase == 2
                else [Combination(table.source(), None) for table in tables]
            )
            divisor = self._of_all_ranks(scaling.factor(self._buffers.device))
            self._apply(
                [
                    StepInputs.of(table, gradients, divisor, found)
                    for table, gradients in zip(tables, combinations, strict=True)
                ]
            )
        self._count_skipped(found, found, scaling)
        return found

    def _project(self, tables: Sequence[GradientTable], absent: frozenset[int]) -> list[Combination]:
        """The gradients of phase 2: projected where a table is of shared parameters."""
        projected = self._projections.combine(self._ranks, self._recorder, absent)
        return [
            Combination(table.source() if combined is None else Source(combined, None), None)
            for table, combined in zip(tables, projected, strict=True)
        ]

    # ------------------------------------------------------------------ diagnostics
    @property
    def task(self) -> int:
        """The task whose loss ``step`` asks for, while it calls its closure; RuntimeError at any other time."""
        if self._now.task is None:
            raise RuntimeError(
                "expected optimizer.task to be read in the closure of step(closure), got it elsewhere: only there is "
                "it one task's turn"
            )
        return self._now.task

    @property
    def last_phase(self) -> int:
        """1 or 2, of the last step; 0 before the first."""
        return self._phase

    def history(self) -> PriorityHistory:
        """Phases, who owned how many channels of which layer, and conflicts; the last steps, if ``history=`` asks."""
        last = None if self._step_recorder is None else self._step_recorder.history()
        return replace(self._recorder.history(), last=last)

    # ------------------------------------------------------------------ state
    def _export_shared(self) -> dict[str, Any]:
        recorded = {} if self._step_recorder is None else {"last_steps": self._step_recorder.state_dict()}
        return {
            "draw": self._draw.state_dict(),
            "history": self._recorder.state_dict(),
            "phase": self._phase,
            "skipped": self._report.counts.clone(),
            **recorded,
        }

    def _loaded_shared(self, shared: Any, state: dict[Any, Any]) -> Callable[[], None]:
        if shared is None:
            return lambda: None
        where = "the optimizer"
        shared = member_dict({self._family: shared}, self._family, "the first group")
        draw, history = member_dict(shared, "draw", where), member_dict(shared, "history", where)
        drawn = self._draw.checked(draw)
        recorded = self._recorder.checked(history, drawn["steps"])
        recorder = self._step_recorder if "last_steps" in shared else None
        last = None if recorder is None else recorder.loaded(shared["last_steps"])
        phase, skipped = int(member(shared, "phase", (), where)), member(shared, "skipped", (1,), where)

        def commit() -> None:
            self._draw.load_state_dict(drawn)
            self._recorder.load_state_dict(recorded)
            self._phase = phase
            self._report.counts.copy_(skipped)
            if last is not None:
                last()

        return commit

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in super().__getstate__().items() if key != "_projections"}
