"""Checks of what the methods are built with; numbers of each task on the device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mt2o_ext.transfer.checks import check_count, check_positive, check_real

__all__ = ["check_choice", "check_count", "check_per_task", "check_positive", "check_real", "per_task"]

PerTask = float | tuple[float, ...]


def check_choice(name: str, value: str, choices: Sequence[str]) -> str:
    if value not in choices:
        raise ValueError(f"expected {name} as one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def check_per_task(name: str, value: float | Sequence[float] | Tensor, *, positive: bool = False) -> PerTask:
    """A number for all tasks, or one for each as a tuple; finite, and greater than 0 where ``positive``."""
    if isinstance(value, Tensor):
        value = value.tolist()
    try:
        checked = tuple(float(each) for each in value) if isinstance(value, Sequence) else float(value)
    except (TypeError, ValueError):
        raise TypeError(f"expected {name} as a number or one number for each task, got {value!r}") from None
    numbers = (checked,) if isinstance(checked, float) else checked
    if not numbers or not all(math.isfinite(each) and (each > 0 or not positive) for each in numbers):
        raise ValueError(f"expected {name} finite{' and > 0' if positive else ''}, got {value!r}: choose other numbers")
    return checked


def per_task(name: str, value: PerTask, num_tasks: int, device: torch.device | str) -> Tensor:
    """The checked numbers as float64 [T] on the device; raises ValueError where their count is not T."""
    numbers = (value,) * num_tasks if isinstance(value, float) else value
    if len(numbers) != num_tasks:
        raise ValueError(f"expected {name} for {num_tasks} tasks, got {len(numbers)} numbers: give one for each task")
    return torch.tensor(numbers, dtype=torch.float64, device=device)
