"""Warnings and refusals for users who have several ranks and did not say what is to become of their gradients."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor

__all__ = ["check_not_wrapped", "warning_of_draws", "warning_of_drift"]


def warning_of_drift(process_group: Any, name: str, *, wrapper: bool) -> str | None:
    """Text of the warning for a user who has several ranks but gave no group; None where there is nothing to say.

    Args:
        process_group: as the user gave it.
        name: of the class that it was given to.
        wrapper: DistributedDataParallel around the model does as well.
    """
    if process_group is not None or not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    other = ", or wrap the model in DistributedDataParallel and pass process_group=False" if wrapper else ""
    return (
        f"torch.distributed runs with {dist.get_world_size()} ranks, but {name} was given no process_group=: each rank "
        "uses the gradients of its own mini-batches only, and the parameters of the ranks drift apart. Pass "
        f"process_group=True (the default group){other}. process_group=False says that this is taken care of"
    )


def warning_of_draws(process_group: Any) -> str | None:
    """Text of the warning where ranks draw points of their own; None where there is nothing to say.

    process_group: as the user gave it.
    """
    if process_group is not False or not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    return (
        'with front="vertices" and process_group=False each rank draws random points of its own, and gradients that '
        "somebody averages over the ranks would be of different points. Pass process_group=True, or a generator= with "
        'the same seed on all ranks, or take front="rows"'
    )


def check_not_wrapped(parameters: Sequence[Tensor], what: str, advice: str = "") -> None:
    """Checks that no DistributedDataParallel is around the model, which cannot average what an optimizer uses.

    It averages one gradient of each parameter, not those of several tasks, nor those of other points on each rank.

    Args:
        parameters: of the optimizer.
        what: it cannot average.
        advice: another way out.

    Raises:
        RuntimeError: if there is one.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return
    from torch.nn.parallel import DistributedDataParallel

    known = set(map(id, parameters))
    for found in gc.get_objects():  # once in the life of an optimizer: nobody else tells who wraps a model
        if type(found) is DistributedDataParallel and any(id(p) in known for p in found.parameters()):
            raise RuntimeError(
                f"DistributedDataParallel cannot average {what}: the ranks would drift apart. Pass process_group=True "
                f"instead of False (and use the model without the wrapper){advice}"
            )
