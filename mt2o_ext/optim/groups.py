"""Parameter groups: what may stand in them, and words about their parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from ..base import BaseRule
from ..device import host_knows
from ..gradients.options import check_task
from ..gradients.table import GradientTable
from ..sharding import is_sharded

__all__ = ["about_unreached", "check_options", "listed_of"]


def check_options(options: dict[str, Any], base: BaseRule, heads_of: int | None) -> None:
    """Check the options of a parameter group.

    Args:
        options: of the group, complete.
        base: the base rule, whose options are among them.
        heads_of: the number of tasks whose head the group may be; None: it may not be one.

    Raises:
        TypeError: for an option of the wrong kind.
        ValueError: for an option out of range.
    """
    lr = options["lr"]
    real = isinstance(lr, (int, float)) and not isinstance(lr, bool)
    if not real and not (isinstance(lr, Tensor) and lr.numel() == 1 and not lr.is_complex()):
        error = ValueError if isinstance(lr, Tensor) else TypeError
        raise error(f"expected lr as a number or a one-element tensor, got {lr!r:.80}: pass one number")
    if not 0.0 <= float(lr) < math.inf:
        raise ValueError(f"expected lr finite and >= 0, got {lr}: choose a value in that range")
    if not isinstance(options.get("transfer", True), bool):
        raise TypeError(
            f"expected transfer of a parameter group as True or False, got {options['transfer']!r:.80}: pass "
            "one of them"
        )
    if options.get("differentiable"):
        raise ValueError(
            "expected differentiable=False, got True: leave it out, because the step is made by kernels without a "
            "backward"
        )
    base.check(options)
    check_task(options.get("task"), heads_of)


def listed_of(group: Any) -> list[Any]:
    """Return the parameters of a group as a list.

    Raises:
        TypeError: for what is no group, and for a set, which has no order.
    """
    if not isinstance(group, dict) or "params" not in group:
        raise TypeError(f'expected a parameter group as a dict with "params", got {group!r:.80}: pass one')
    params = group["params"]
    if isinstance(params, set):
        raise TypeError("expected parameters in an ordered collection, got a set: pass a list")
    return [params] if isinstance(params, Tensor) else list(params)


def about_unreached(groups: Sequence[dict[str, Any]], tables: Sequence[GradientTable]) -> str | None:
    """Return the words about trainable parameters that have no gradient in these tables; None: all have one.

    For a head, zeros are none, as far as the host knows them: losses that were stacked lead to the heads of all tasks.
    """
    grads: dict[Tensor, list[Tensor]] = {}
    for table in tables:
        for p, of_slots in zip(table.layout.parameters, zip(*table.tensors, strict=True), strict=True):
            grads[p] = [grad for grad in of_slots if grad is not None]
    left = []
    for label, p, task in _labelled(groups):
        found = grads.get(p, [])
        if task is not None and not is_sharded(p):  # whose shard here may well be zeros, or empty
            found = [grad for grad in found if not host_knows(grad) or bool(grad.any())]
        if p.requires_grad and not found:
            left.append((label, task))
    if not left:
        return None
    told = [label if task is None else f"{label} (of a group with task={task})" for label, task in left[:5]]
    more = f" and {len(left) - 5} more" if len(left) > 5 else ""
    return (
        f"no loss has a gradient for {', '.join(told)}{more}: they stay as they are. Are they used in the model, and "
        "is each head in the group of its own task? Freeze what is not trained (requires_grad_(False))"
    )


def _labelled(groups: Sequence[dict[str, Any]]) -> Iterator[tuple[str, Tensor, int | None]]:
    """Yield for each parameter its name or number, itself, and the task that it belongs to, or None."""
    number = 0
    for group in groups:
        names = group.get("param_names") or [None] * len(group["params"])
        for name, p in zip(names, group["params"], strict=True):
            label = f"parameter {number} of shape {list(p.shape)}" if name is None else f'"{name}"'
            yield label, p, group.get("task")
            number += 1
