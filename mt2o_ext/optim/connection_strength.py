"""Connection strength (Jeong & Yoon, CVPR 2024): the priority of tasks is learned, then conserved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..base import AdamW, BaseRule, as_base_rule
from ..checks import check_choice, check_count
from ..gradients.passes import Backward
from ..ops.limits import MAX_OWNERS
from ..priority.connection import Connection, check_connections
from ..priority.history import HistoryRecorder, PriorityHistory
from ..priority.phases import PhaseDraw
from ..priority.projection import Projections
from ..priority.schedule import mixed
from ..ranks import Ranks
from .buffers import Buffers
from .connection_state import Kept
from .connection_step import ConnectionSteps

__all__ = ["ConnectionStrengthFused"]

SNAPSHOTS = 500  # of shares that a run records at most (of one that keeps to total_steps)


class ConnectionStrengthFused(ConnectionSteps):
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

    The same as a loop, in which each task may have a mini-batch of its own:

        for task in optimizer.tasks():
            optimizer.backward(task_loss(model, *next(batches[task]), task))
        optimizer.step()

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

    def _share_draws(self, ranks: Ranks) -> None:
        self._draw.share(ranks)

    # ------------------------------------------------------------------ diagnostics
    @property
    def last_phase(self) -> int:
        """1 or 2, of the last step; 0 before the first."""
        return self._draw.phase

    def history(self) -> PriorityHistory:
        """Phases, who owned how many channels of which layer, and conflicts; the last steps, if ``history=`` asks."""
        last = None if self._step_recorder is None else self._step_recorder.history()
        return replace(self._recorder.history(), last=last)

    # ------------------------------------------------------------------ state
    def _kept(self) -> Kept:
        return Kept(self._draw, self._recorder, self._step_recorder, self._report)

    def _export_shared(self) -> dict[str, Any]:
        return self._kept().exported()

    def _loaded_shared(self, shared: Any, state: dict[Any, Any]) -> Callable[[], None]:
        return self._kept().loaded(shared, self._family)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in super().__getstate__().items() if key != "_projections"}
