"""Checks of what a front is made of: each returns a copy on the CPU that shares no memory with its source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

__all__ = ["Numbers", "checked_losses", "checked_metrics", "checked_names", "checked_reference", "float64"]

Numbers: TypeAlias = "Tensor | Sequence[float]"
"""A vector: a tensor or a list of numbers."""


def float64(name: str, values: object) -> Tensor:
    """Return a float64 copy on the CPU; raise TypeError for what is no numbers."""
    try:
        return torch.as_tensor(values, dtype=torch.float64).detach().cpu().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"expected {name} as a tensor or (nested) list of numbers, got {type(values).__name__}: convert "
            f"it ({error})"
        ) from error


def checked_losses(losses: object) -> Tensor:
    """Return the losses [K, T] of at least one subproblem and one task."""
    table = float64("losses", losses)
    if table.ndim != 2 or 0 in table.shape:
        raise ValueError(
            f"expected losses of shape [K, T] with at least one row and one task, got {tuple(table.shape)}: give "
            "one row for each subproblem"
        )
    return table


def checked_reference(reference: object, num_tasks: int) -> Tensor:
    """Return the reference [T] of finite numbers."""
    corner = float64("reference", reference)
    if corner.shape != (num_tasks,):
        raise ValueError(
            f"expected a reference of shape ({num_tasks},), got {tuple(corner.shape)}: give one loss for each task"
        )
    if not corner.isfinite().all():
        raise ValueError(f"expected a finite reference, got {corner.tolist()}: choose other losses")
    return corner


def checked_names(names: Sequence[str] | None, num_tasks: int) -> tuple[str, ...]:
    """Return T different names; "task 0", "task 1", ... where there are none."""
    if not names:
        return tuple(f"task {task}" for task in range(num_tasks))
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"expected task_names as a sequence of strings, got {names!r}: give a list")
    if len(names) != num_tasks or len(set(names)) != num_tasks:
        raise ValueError(f"expected {num_tasks} different task_names, got {tuple(names)}: give one for each task")
    return tuple(names)


def checked_metrics(metrics: Any, num_subproblems: int) -> dict[str, Tensor]:
    """Return the metrics as columns: name -> float64 [K].

    Args:
        metrics: a mapping or a data frame from names to K numbers each, or a table of K rows, each a mapping from the
            same names to one number.
        num_subproblems: K.
    """
    columns = _columns(metrics, num_subproblems) if _is_rows(metrics) else dict(metrics.items())
    checked = {}
    for name, column in columns.items():
        if not isinstance(name, str):
            raise TypeError(f"expected names of metrics as strings, got {name!r:.80}: rename it")
        plain = column.tolist() if hasattr(column, "tolist") else column  # torch does not take columns of a data frame
        values = float64(f"the metric {name!r}", plain)
        if values.shape != (num_subproblems,):
            raise ValueError(
                f"expected the metric {name!r} of shape ({num_subproblems},), got {tuple(values.shape)}: give one "
                "number for each subproblem"
            )
        checked[name] = values
    return checked


def _is_rows(metrics: Any) -> bool:
    """True for a table of rows, False for one of columns; raise TypeError for anything else."""
    if hasattr(metrics, "items"):
        return False
    if isinstance(metrics, Sequence) and all(isinstance(row, Mapping) for row in metrics):
        return True
    raise TypeError(
        f"expected metrics as a mapping from names to [K] numbers or as K mappings from names to a number, got "
        f"{type(metrics).__name__}: name them, such as {{'accuracy': [0.9, 0.8]}}"
    )


def _columns(rows: Sequence[Mapping[str, Any]], num_subproblems: int) -> dict[str, list[Any]]:
    if not rows:
        return {}
    if len(rows) != num_subproblems:
        raise ValueError(f"expected metrics of {num_subproblems} subproblems, got {len(rows)} rows: give one for each")
    names = list(rows[0])
    for k, row in enumerate(rows):
        if set(row) != set(names):
            raise ValueError(
                f"expected the metrics {names} of every subproblem, got {list(row)} for subproblem {k}: give the same "
                "names"
            )
    return {name: [row[name] for row in rows] for name in names}
