"""Options that all optimizers with task gradients share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks import check_choice, check_count, check_list
from ..preferences import check_preferences
from ..sharding import is_sharded
from ..weighting import Needs, Weighting, as_weighting

__all__ = [
    "check_generator",
    "check_given",
    "check_idle_task_options",
    "check_one_row",
    "check_task",
    "check_task_options",
    "check_ways_of_shards",
    "members_of",
    "own_generator",
]


def check_task_options(weighting: Weighting | str | None, heads: str, collect: str) -> Weighting:
    """The weighting as an instance, after a check of all three options.

    Raises:
        TypeError: for a weighting of another type.
        ValueError: for an unknown name, and for heads that the weighting has no weights for.
    """
    check_choice("heads", heads, ("plain", "weighted"))
    check_choice("collect", collect, ("sequential", "batched"))
    weighting = as_weighting(weighting)
    if heads == "weighted" and weighting.per_segment:
        raise ValueError(
            f'expected a weighting with one weight for each task for heads="weighted", got {type(weighting).__name__}, '
            'which has one for each tensor: take heads="plain"'
        )
    return weighting


def check_idle_task_options(heads: str, collect: str, generator: torch.Generator | None) -> None:
    """Checks the options of an optimizer without a weighting, where they have to be the defaults.

    Raises:
        TypeError: for a generator of another type.
        ValueError: for an option that is out of range, or would have no effect.
    """
    check_task_options(None, heads, collect)
    check_generator(generator)
    idle = {"heads": heads != "plain", "collect": collect != "sequential", "generator": generator is not None}
    if given := [f"{name}=" for name, set_ in idle.items() if set_]:
        raise ValueError(
            f"{', '.join(given)} would have no effect without weighting=: leave it out, or give a weighting"
        )


def check_generator(generator: torch.Generator | None) -> None:
    """Checks the source of random numbers.

    Raises:
        TypeError: for anything but a generator or None.
    """
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"expected generator as a torch.Generator, got {type(generator).__name__}: pass one, or None")


def own_generator(generator: torch.Generator | None, *, used: bool = True) -> torch.Generator:
    """The source of random numbers: the user's, or one that begins with a number of torch's default generator.

    used: whether anybody draws: if not, torch's own numbers go on as if nobody had been here.

    Raises:
        TypeError: for anything but a generator or None.
    """
    check_generator(generator)
    if generator is not None:
        return generator
    return torch.Generator().manual_seed(int(torch.randint(2**62, (), dtype=torch.int64)) if used else 0)


def check_one_row(preferences: Tensor | Sequence[float] | None, num_tasks: int) -> Tensor:
    """Preferences of one model, float64 [1, T]; 1 / T where there are none.

    Raises:
        TypeError: for a number of tasks that is no int.
        ValueError: for fewer than one task, and for preferences off the simplex or of another number of tasks.
    """
    check_count("num_tasks", num_tasks)
    if preferences is None:
        return torch.full((1, num_tasks), 1 / num_tasks, dtype=torch.float64)
    advice = "pass one number for each task"
    given = preferences.tolist() if isinstance(preferences, Tensor) else check_list("preferences", preferences, advice)
    return check_preferences([given], 1, num_tasks)


def check_task(task: object, num_tasks: int | None) -> int | None:
    """The ``task`` of a parameter group.

    Args:
        task: the number of a task, or None for shared parameters.
        num_tasks: T; None for an optimizer that knows of no heads.

    Raises:
        TypeError: for anything but an int or None.
        ValueError: for a number of no task, and for any number where there are no heads.
    """
    if task is None:
        return None
    if num_tasks is None:
        raise ValueError(
            f"expected parameter groups without task=, got task={task!r}: this optimizer keeps one gradient for all "
            "parameters, so leave it out"
        )
    if not isinstance(task, int) or isinstance(task, bool):
        raise TypeError(
            f"expected task as an int, got {task!r}: pass the number of a task, or None (shared parameters)"
        )
    if not 0 <= task < num_tasks:
        raise ValueError(f"expected task in 0 .. {num_tasks - 1}, got {task}: tasks are counted from 0")
    return task


def check_given(params: Any) -> None:
    """Check that parameters are given by themselves, before anybody goes through them.

    Raises:
        TypeError: for a tensor, and for a module, which torch cannot go through.
    """
    if isinstance(params, Tensor):
        raise TypeError("expected parameters or parameter groups, got one tensor: put it into a list")
    if isinstance(params, torch.nn.Module):
        raise TypeError(
            f"expected parameters or parameter groups, got the module {type(params).__name__}: pass its .parameters()"
        )


def members_of(params: Any, num_tasks: int) -> Iterator[tuple[Tensor, int | None]]:
    """Parameters and the task that they belong to, or None; from parameters or groups.

    Raises:
        TypeError: for one tensor or a module instead of parameters, and for a ``task`` of another type.
        ValueError: for a parameter that comes twice, and for a number of no task.
    """
    check_given(params)
    seen: set[Tensor] = set()
    for item in params:
        group: dict[str, Any] = item if isinstance(item, dict) else {"params": [item]}
        task = check_task(group.get("task"), num_tasks)
        members = group["params"]
        for named in [members] if isinstance(members, Tensor) else members:
            p: Any = named[1] if isinstance(named, tuple) and len(named) == 2 else named  # of named_parameters()
            if p in seen:
                raise ValueError("expected every parameter once, got one twice: leave it out once")
            seen.add(p)
            yield p, task


def check_ways_of_shards(
    parameters: Sequence[Tensor], weighting: Weighting, *, collect: str, store: bool = True
) -> None:
    """Checks options where parameters are sharded.

    Raises:
        ValueError: for a batched backward, and for a weighting that changes the gradients themselves.
    """
    if not any(map(is_sharded, parameters)):
        return
    if collect != "sequential" or not store:
        got = f"collect={collect!r}" if store else "store=False"
        raise ValueError(
            "expected a backward pass for each loss with sharded parameters, whose gradients are complete after an "
            f"ordinary one only, got {got}: leave it out"
        )
    if Needs.ROWS in weighting.needs:
        raise ValueError(
            "expected a weighting of the Gram matrix or losses for sharded parameters, got "
            f"{type(weighting).__name__}, which changes the gradients of whole tensors: take another one, or leave the "
            "model whole and pass process_group=True"
        )
