"""Losses: their checks, and their forms."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "TaskLosses",
    "as_list",
    "as_losses",
    "backward_done",
    "check_losses",
    "check_running_statistics",
    "takes_task",
    "task_loss",
    "task_losses",
]


def check_losses(
    losses: Tensor | Sequence[Tensor], num_tasks: int, num_rows: int | None, *, graph: bool = True
) -> Tensor:
    """Losses as one tensor.

    Args:
        losses: T scalars, as a sequence or a tensor [T]; [K, T] where ``num_rows`` is K.
        num_tasks: T.
        num_rows: K, or None for one model.
        graph: whether backward has to be possible.

    Returns:
        [T], or [K, T], of the dtype and on the device of the losses.

    Raises:
        TypeError: for anything but tensors.
        ValueError: for another number of losses, losses that are not scalars, and (with ``graph``) losses that no
            parameter can get a gradient from.
    """
    if num_rows is None and isinstance(losses, Sequence):
        return torch.stack(check_scalars(losses, num_tasks, graph=graph))
    expected = (num_tasks,) if num_rows is None else (num_rows, num_tasks)
    if isinstance(losses, Tensor):
        stacked = losses
    else:
        _check_tensors(losses)
        stacked = torch.stack(list(losses)) if len(losses) > 0 else torch.zeros(0, dtype=torch.float32)
    if tuple(stacked.shape) != expected:
        fewer = num_rows is None and stacked.dim() == 1 and len(stacked) < num_tasks
        absent = "; of fewer tasks or samples a list, with None for each that has no data" if fewer else ""
        raise ValueError(
            f"expected losses of shape {list(expected)} (num_tasks={num_tasks}), got {list(stacked.shape)}: pass one "
            f"number for each task, a mean over its mini-batch{absent}"
        )
    _check_graph([stacked], graph)
    return stacked


def check_scalars(losses: Sequence[Tensor], num_tasks: int, *, graph: bool) -> list[Tensor]:
    """T losses of a sequence as scalars; raises as `check_losses`."""
    _check_tensors(losses)
    if any(item.numel() != 1 for item in losses):
        shapes = [list(item.shape) for item in losses]
        raise ValueError(f"expected {num_tasks} scalar losses, got shapes {shapes}: take the mean over the batch")
    if len(losses) != num_tasks:
        raise ValueError(
            f"expected losses of shape [{num_tasks}] (num_tasks={num_tasks}), got [{len(losses)}]: pass one for each "
            "task, None for a task without data"
        )
    _check_graph(losses, graph)
    return [item if item.dim() == 0 else item.reshape(()) for item in losses]


def _check_tensors(losses: Any) -> None:
    if not isinstance(losses, Sequence):
        advice = "pass them as a list"
        if isinstance(losses, Mapping):
            advice = "pass list(losses.values()), with the tasks in the same order every time"
        raise TypeError(f"expected losses as a tensor or a sequence of tensors, got {type(losses).__name__}: {advice}")
    for item in losses:
        if not isinstance(item, Tensor):
            raise TypeError(
                f"expected losses as tensors, got {type(item).__name__}: pass what the loss function returns (.item() "
                "and float() leave no graph behind)"
            )


def _check_graph(losses: Sequence[Tensor], graph: bool) -> None:
    if graph and not any(loss.requires_grad for loss in losses):
        raise ValueError("expected losses with a graph, got constants: were they detached, or computed under no_grad?")


class TaskLosses(NamedTuple):
    """T losses that were checked; a task without one is absent.

    each: scalars, or None.
    scalars: detached, 0 where there is none.
    absent: the tasks without a loss.
    """

    each: list[Tensor | None]
    scalars: tuple[Tensor, ...]
    absent: frozenset[int]

    @property
    def values(self) -> Tensor:
        """float64 [T], 0 where there is none."""
        return torch.stack(self.scalars).double()

    def of_present(self, numbers: Tensor) -> Tensor:
        """Those of numbers [T] whose tasks have a loss."""
        if not self.absent:
            return numbers
        return torch.stack([number for number, loss in zip(numbers, self.each, strict=True) if loss is not None])


def task_losses(losses: Tensor | Sequence[Tensor | None] | None, num_tasks: int, *, graph: bool = True) -> TaskLosses:
    """Losses of tasks that may be absent from this mini-batch: None in a sequence, or (with ``graph``) a constant.

    Raises:
        TypeError: for anything but tensors and None.
        ValueError: as `check_losses`, and where no task has a loss.
    """
    if losses is None:
        raise TypeError(
            "expected losses as a tensor or a sequence of tensors, got None: it stands for one task without data in a "
            "list of losses, and inside of a loop over tasks()"
        )
    if isinstance(losses, Tensor) or not isinstance(losses, Sequence):
        each = as_list(check_losses(losses, num_tasks, None, graph=graph))
        plain = losses.detach().reshape(-1).unbind() if isinstance(losses, Tensor) else [one.detach() for one in each]
        return TaskLosses(list(each), tuple(plain), frozenset())
    there = [loss for loss in losses if isinstance(loss, Tensor) and (loss.requires_grad or not graph)]
    if not there and any(loss is None for loss in losses):
        raise ValueError(
            "expected a loss of at least one task, got none: leave this mini-batch out (None, or a loss without graph, "
            "says that a task has no data in it)"
        )
    absent = frozenset(
        task
        for task, loss in enumerate(losses)
        if there and (loss is None or (graph and isinstance(loss, Tensor) and not loss.requires_grad))
    )
    filled = [there[0].new_zeros(()) if task in absent else loss for task, loss in enumerate(losses)]
    scalars = check_scalars(filled, num_tasks, graph=graph)  # type: ignore[arg-type]
    every: list[Tensor | None] = [None if task in absent else loss for task, loss in enumerate(scalars)]
    return TaskLosses(every, tuple(loss.detach() for loss in scalars), absent)


def task_loss(loss: Any, task: int) -> Tensor | None:
    """The loss of one task, or None where it is absent: None, or a constant.

    Raises:
        TypeError: for anything but a tensor or None.
        ValueError: for anything but one number.
    """
    if loss is None:
        return None
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"expected the loss of task {task} as a tensor, got {type(loss).__name__}: pass one scalar, or None "
            "if it has no data"
        )
    if loss.numel() != 1:
        raise ValueError(
            f"expected one scalar loss of task {task}, got shape {list(loss.shape)}: pass the loss of this "
            "task alone, a mean over its mini-batch"
        )
    return loss.reshape(()) if loss.requires_grad else None


def backward_done(losses: Any, num_tasks: int) -> bool:
    """True if what a closure returned says that it has done backward itself.

    That is None, or of one task a scalar, as the closures of torch.optim return it.
    """
    return losses is None or (num_tasks == 1 and isinstance(losses, Tensor) and losses.dim() == 0)


def takes_task(closure: Callable[..., Any]) -> bool:
    """True if a closure can be called with a task."""
    try:
        inspect.signature(closure).bind(0)
    except TypeError:
        return False
    except ValueError:  # of something compiled, whose signature nobody knows
        return True
    return True


def as_list(losses: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """T checked losses one by one.

    From a sequence they are the user's own tensors: the graph of a stacked tensor leads from each of them to all.
    """
    each = losses.unbind() if isinstance(losses, Tensor) else losses
    return [loss if loss.dim() == 0 else loss.reshape(()) for loss in each]


def check_running_statistics(losses: Sequence[Tensor], warn_once: Callable[[str, str], None], advice: str) -> None:
    """Warns where the losses went through a normalisation whose running statistics all subproblems would share.

    advice: what the user can do about it.
    """
    seen: set[object] = set()
    queue = [loss.grad_fn for loss in losses]
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (
            "BatchNorm" in node.name()
            and getattr(node, "_saved_running_mean", None) is not None
            and getattr(node, "_saved_training", False)
        ):
            warn_once(
                "running statistics",
                f"the model has BatchNorm layers whose running statistics are now shared by all subproblems: {advice}",
            )
            return
        queue.extend(parent for parent, _ in node.next_functions)


def as_losses(losses: Tensor | Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
    """The losses of an evaluation, float64 on the host.

    Raises:
        TypeError: for anything but numbers.
        ValueError: for losses of another shape.
    """
    try:
        given = [] if isinstance(losses, Tensor) else [torch.as_tensor(loss, dtype=torch.float64) for loss in losses]
        values = losses if isinstance(losses, Tensor) else torch.stack(given or [torch.zeros(0, dtype=torch.float64)])
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"expected losses as a tensor or a sequence of numbers from evaluate(), got {losses!r:.80}: return one "
            "loss for each task"
        ) from None
    if tuple(values.shape) != shape:
        raise ValueError(
            f"expected losses of shape {list(shape)} from evaluate(), got {list(values.shape)}: return one "
            "loss for each task"
        )
    return values.detach().to("cpu", torch.float64)
