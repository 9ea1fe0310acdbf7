"""Collecting the gradients of T losses, without a copy of the whole in between.

Two ways, both with no more memory than the gradients themselves and those of one parameter:

* sequential: T times backward over the graph, which is kept until the last one.  ``.grad`` is empty meanwhile, so that
  autograd hands over the tensors that it made; or it is the gradient of an earlier call, to which autograd adds.  Works
  with everything that backward works with.
* batched: one backward for all losses through ``torch.func.vmap``; every parameter's T gradients are taken as soon as
  they are complete.  Faster where operations are small, but only for graphs whose backward has batching rules: not for
  compiled models, nor for sparse gradients.

``.grad`` of the tables' parameters is left as it was.  Sequential passes go through the whole graph, as torch's own
backward does: a pass that was limited to the parameters asked for (``inputs=``) would not reach those inside of
reentrant checkpoints and of functions that close over them.  So they also give gradients to parameters of nobody here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from ..device import to_device
from ..ops import gram_, plan_layout
from .passes import Pass
from .table import GradientTable

__all__ = [
    "Slot",
    "TaskSlots",
    "batched_backward",
    "collect_batched",
    "collect_gram",
    "collect_sequential",
    "collect_sum",
    "grads_kept",
    "gram_of",
    "weighted_sum",
]


class Slot(NamedTuple):
    """The place of the gradient of one task by one parameter; several gradients add up until they are forgotten.

    head: the parameter belongs to a head.
    """

    table: GradientTable
    row: int
    task: int
    segment: int
    head: bool = False

    @property
    def parameter(self) -> Tensor:
        """The parameter that the gradient is by."""
        return self.table.layout.parameters[self.segment]

    @property
    def accumulator(self) -> Tensor | None:
        """The gradient that is there already, if autograd may add to it.

        It may not where the parameter was converted or laid out anew since the table was made.
        """
        grad, p = self.table.at(self.row, self.task, self.segment), self.parameter
        if self.table.layout.sharded:
            return None
        like = grad is not None and (p.dtype, p.device, p.shape) == (grad.dtype, grad.device, grad.shape)
        return grad if like else None

    def put(self, grad: Tensor, *, copy: bool = False) -> None:
        """Adds a gradient; ``copy``: the tensor itself is not kept."""
        self.table.put(self.row, self.task, self.segment, grad, copy=copy)


class TaskSlots:
    """The slots of several tables.

    Args:
        tables: of shared parameters, which keep T gradients (or one: of a weighted sum), and of heads.
        tasks: for each table, the task of each of its parameters; None: shared.
        num_tasks: T.
    """

    def __init__(self, tables: Sequence[GradientTable], tasks: Sequence[Sequence[int | None]], num_tasks: int) -> None:
        self._tables, self._tasks, self._num_tasks = list(tables), list(tasks), num_tasks
        self._rows: dict[int, list[list[Slot]]] = {}
        self._heads: dict[int, list[list[Slot]]] = {}

    def of_row(self, row: int) -> list[list[Slot]]:
        """For each task, the slots of this row: shared parameters and the task's own heads."""
        if row not in self._rows:
            slots: list[list[Slot]] = [[] for _ in range(self._num_tasks)]
            for table, segment, task in self._segments():
                if task is not None:
                    slots[task].append(Slot(table, row, 0, segment, head=True))
                    continue
                for one in range(table.num_tasks):
                    slots[one].append(Slot(table, row, one, segment))
            self._rows[row] = slots
        return self._rows[row]

    def shared(self, row: int) -> list[Slot]:
        """The slots of a weighted sum: those of the first task."""
        return [slot for slot in self.of_row(row)[0] if not slot.head]

    def heads(self, row: int) -> list[list[Slot]]:
        """For each task, the slots of its heads."""
        if row not in self._heads:
            self._heads[row] = [[slot for slot in slots if slot.head] for slots in self.of_row(row)]
        return self._heads[row]

    def head_parameters(self) -> list[Tensor]:
        """The parameters that belong to a head."""
        return [table.layout.parameters[segment] for table, segment, task in self._segments() if task is not None]

    def collect(
        self,
        losses: Sequence[Tensor | None],
        row: int,
        how: str,
        way: Pass,
        weights: Sequence[Tensor] | None = None,
    ) -> None:
        """Backward of T scalar losses, "sequential" or "batched"; None: of tasks that are absent.

        Sequential also where hooks want to see each complete gradient, which a batched pass has none of.

        weights: like the losses, multiply their gradients; None: nothing does.
        """
        slots = self.of_row(row)
        if how == "sequential" or any(map(_has_hooks, (p for table in self._tables for p in table.layout.parameters))):
            collect_sequential(losses, slots, self.head_parameters(), way=way, weights=weights)
        else:
            if weights is not None:
                pairs = zip(losses, weights, strict=True)
                losses = [None if loss is None else loss * weight for loss, weight in pairs]
            there = [(loss, of_task) for loss, of_task in zip(losses, slots, strict=True) if loss is not None]
            of_parameter: dict[Tensor, list[tuple[int, Slot]]] = {}
            for index, (_, of_task) in enumerate(there):
                for slot in of_task:
                    of_parameter.setdefault(slot.parameter, []).append((index, slot))
            collect_batched(torch.stack([loss for loss, _ in there]), of_parameter, retain_graph=way.retain_graph)

    def collect_one(self, loss: Tensor, row: int, task: int, way: Pass) -> None:
        """Backward of the loss of one task."""
        collect_sum(loss, self.of_row(row)[task], self.head_parameters(), way=way)

    def forget(self, row: int) -> None:
        """Drops the gradients of one row."""
        for table in self._tables:
            table.forget(row)

    def _segments(self) -> Iterator[tuple[GradientTable, int, int | None]]:
        for table, tasks in zip(self._tables, self._tasks, strict=True):
            for segment, task in enumerate(tasks):
                yield table, segment, task


def _has_hooks(p: Tensor) -> bool:
    """True if there are hooks for the complete gradient of a parameter (no public attribute tells)."""
    return bool(getattr(p, "_post_accumulate_grad_hooks", None))


def collect_sum(
    loss: Tensor,
    slots: Sequence[Slot],
    others: Sequence[Tensor] = (),
    *,
    short: bool = False,
    way: Pass,
    weight: Tensor | None = None,
) -> None:
    """Backward of one loss into these slots, as far as their parameters have a part in it.

    others: parameters whose gradients of this loss nobody wants.  short: go to the parameters of the slots only,
    through the part of the graph that leads to them.  weight: like the loss, multiplies the gradient.
    """
    live = [slot for slot in slots if slot.parameter.requires_grad]
    if short and not live:  # else there may be parameters of nobody here, behind a frozen trunk, say
        return
    parameters = [slot.parameter for slot in live]
    known = set(map(id, parameters))
    unwanted = [p for p in others if p.requires_grad and id(p) not in known]
    with grads_kept([*parameters, *unwanted]):
        for slot, p in zip(live, parameters, strict=True):
            p.grad = slot.accumulator
        way.run(loss, parameters if short else None, weight)
        found = [p.grad for p in parameters]
    with torch.no_grad():
        for slot, grad in zip(live, found, strict=True):
            if grad is not None:  # else the parameter has no part in the loss
                slot.put(grad)


@contextmanager
def grads_kept(parameters: Sequence[Tensor]) -> Iterator[None]:
    """While this lasts ``.grad`` of these parameters may take anything; afterwards it is what it was."""
    kept = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    try:
        yield
    finally:
        for p, grad in zip(parameters, kept, strict=True):
            p.grad = grad


def weighted_sum(losses: Sequence[Tensor | None], weights: Tensor) -> Tensor:
    """The sum of T scalars times weights [T]; without those that are None."""
    pairs = zip(losses, weights, strict=True)
    return torch.stack([loss * weight.to(loss) for loss, weight in pairs if loss is not None]).sum()


def collect_sequential(
    losses: Sequence[Tensor | None],
    slots: Sequence[Sequence[Slot]],
    others: Sequence[Tensor] = (),
    *,
    short: bool = False,
    way: Pass,
    weights: Sequence[Tensor] | None = None,
) -> None:
    """Backward of one loss after the other.

    Args:
        losses: T scalars, or None of tasks that are absent.
        slots: those of each task.
        others: as of `collect_sum`.
        short: as of `collect_sum`.
        way: of each backward; the graph is kept until the last one in any case.
        weights: like the losses, multiply their gradients; None: nothing does.
    """
    each: Sequence[Tensor | None] = [None] * len(losses) if weights is None else weights
    there = [one for one in zip(losses, slots, each, strict=True) if one[0] is not None]
    last = len(there) - 1
    for index, (loss, of_task, weight) in enumerate(there):
        assert loss is not None
        collect_sum(loss, of_task, others, short=short, way=way.keeping(index < last), weight=weight)


def collect_batched(losses: Tensor, slots: Mapping[Tensor, Sequence[tuple[int, Slot]]], *, retain_graph: bool) -> None:
    """Backward of all losses at once.

    Args:
        losses: [T], of one graph.
        slots: for each parameter, the tasks whose gradients are wanted, and their slots.
        retain_graph: as in ``torch.autograd.backward``.

    Raises:
        RuntimeError: if the graph has an operation that vmap cannot do, or sparse gradients.
    """

    def taker(of_tasks: Sequence[tuple[int, Slot]]) -> Callable[[Tensor], None]:
        def take(grads: Tensor) -> None:
            for task, slot in of_tasks:
                slot.put(grads[task], copy=True)  # of a tensor that may be the gradient of others too

        return take

    batched_backward(losses, [(p, taker(of_tasks)) for p, of_tasks in slots.items()], retain_graph)


def collect_gram(losses: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """float64 [S, T, T], the Gram matrix of the task gradients by each parameter, without storing these.

    losses: [T], of one graph, which is kept.  Parameters that no loss depends on give zeros.
    """
    tasks = len(losses)
    result = losses.new_zeros(len(parameters), tasks, tasks, dtype=torch.float64)

    def taker(segment: int) -> Callable[[Tensor], None]:
        def take(grads: Tensor) -> None:
            result[segment] = gram_of(grads)

        return take

    batched_backward(losses, [(p, taker(segment)) for segment, p in enumerate(parameters)], retain_graph=True)
    return result


def gram_of(grads: Tensor) -> Tensor:
    """float64 [T, T], inner products of gradients [T, *shape]."""
    tasks, numel = len(grads), grads[0].numel()
    _, row, chunks = plan_layout([numel])
    flat = grads.reshape(1, tasks, numel)
    if row == numel and flat.is_contiguous():
        rows = flat
    else:
        rows = grads.new_zeros(1, tasks, row)
        rows[0, :, :numel] = flat[0]
    table = to_device(torch.tensor(chunks, dtype=torch.int64).reshape(-1, 3), grads.device)
    out = grads.new_empty(1, 1, tasks, tasks, dtype=torch.float64)
    gram_(out, out.new_empty(1, len(chunks), tasks * (tasks + 1) // 2), rows, None, table)
    return out[0, 0]


class _Take(torch.autograd.Function):
    """Hands on the whole batch that a vmapped function sees one element of, and gives back nothing."""

    generate_vmap_rule = False

    @staticmethod
    def forward(grad: Tensor, take: Callable[[Tensor, int | None], None]) -> Tensor:
        take(grad, None)
        return grad.new_zeros(())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], grad: Tensor, take: Any) -> tuple[Tensor, None]:
        take(grad, in_dims[0])
        return grad.new_zeros(()), None


def batched_backward(
    losses: Tensor,
    takers: Sequence[tuple[Tensor, Callable[[Tensor], None]]],
    retain_graph: bool,
    points: Sequence[GradientEdge] = (),
) -> list[Tensor | None]:
    """One backward for all losses, [T], through ``torch.func.vmap``.

    Args:
        losses: [T], of one graph.
        takers: parameters, and the function that each one's gradients [T, *shape] are given to when they are complete.
        retain_graph: as in ``torch.autograd.backward``.
        points: places of the graph.

    Returns:
        The gradients [T, *shape] by each point, None where no loss depends on it.
    """
    live = [(p, take) for p, take in takers if p.requires_grad]
    if not live and not points:
        return []
    inputs: list[Any] = [*points, *(p for p, _ in live)]
    reached: list[bool] = []

    def vector_jacobian(vector: Tensor) -> tuple[Tensor, ...]:
        found = torch.autograd.grad(losses, inputs, vector, retain_graph=retain_graph, allow_unused=True)
        reached[:] = [grad is not None for grad in found[: len(points)]]
        return tuple(grad for grad in found[: len(points)] if grad is not None)

    with _taking(live, len(losses)):
        found = torch.func.vmap(vector_jacobian)(torch.eye(len(losses), dtype=losses.dtype).to(losses))
    there = iter(found)
    return [next(there) if one else None for one in reached]


@contextmanager
def _taking(live: Sequence[tuple[Tensor, Callable[[Tensor], None]]], num_tasks: int) -> Iterator[None]:
    """While this lasts, complete gradients are taken away from backward, which keeps zeros without memory instead."""

    def hook_of(take: Callable[[Tensor], None]) -> Callable[[Tensor], Tensor]:
        def take_batch(grads: Tensor, dim: int | None) -> None:
            take(grads.expand(num_tasks, *grads.shape) if dim is None else grads.movedim(dim, 0))

        def hook(grad: Tensor) -> Tensor:
            return _Take.apply(grad, take_batch).expand(grad.shape)

        return hook

    handles = [p.register_hook(hook_of(take)) for p, take in live]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
