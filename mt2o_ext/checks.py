"""Checks of arguments: every option of the pieces is checked here, in one way and in one style of message.

A check returns the value in the form that the caller keeps, or nothing for a tensor that is only looked at. It raises
TypeError for something of the wrong kind and ValueError for a value out of range; both say what was expected, what
came, and what to do.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = [
    "PerTask",
    "check_choice",
    "check_count",
    "check_flag",
    "check_function",
    "check_index",
    "check_list",
    "check_mix",
    "check_per_task",
    "check_positive",
    "check_real",
    "check_simplex",
    "per_task",
]

E = TypeVar("E")
F = TypeVar("F", bound=Callable[..., Any])

PerTask = float | tuple[float, ...]
"""A number for all tasks, or one for each: what `check_per_task` returns."""

TOLERANCE = 1e-6
"""The error of a sum of numbers of order 1 that does not count as a mistake: they may come from float32."""


# ---------------------------------------------------------------------- numbers and choices
def check_count(name: str, value: int, minimum: int = 1) -> int:
    """Return ``value`` if it is an int of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"expected {name} as an int, got {value!r:.80}: pass a whole number >= {minimum}")
    if value < minimum:
        raise ValueError(f"expected {name} >= {minimum}, got {value}: raise it")
    return value


def check_index(name: str, value: Any, size: int) -> int:
    """Return ``value`` as an int if it is one of 0 .. size - 1; raise IndexError for another number."""
    try:
        if isinstance(value, bool):
            raise TypeError
        index = operator.index(value)
    except TypeError:
        raise TypeError(f"expected {name} as an int, got {value!r:.80}: pass its number, 0 .. {size - 1}") from None
    if not 0 <= index < size:
        raise IndexError(f"expected a {name} 0 .. {size - 1}, got {index}: take one of them")
    return index


def check_real(name: str, value: float, minimum: float = 0.0, maximum: float = math.inf) -> float:
    """Return ``value`` as a float if it is a finite number in [minimum, maximum]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"expected {name} as a float, got {value!r:.80}: pass a number")
    if not (math.isfinite(value) and minimum <= value <= maximum):
        if math.isfinite(maximum):
            allowed = f"in [{minimum:g}, {maximum:g}]"
        else:
            allowed = f"finite and >= {minimum:g}" if math.isfinite(minimum) else "finite"
        raise ValueError(f"expected {name} {allowed}, got {value}: choose a value in that range")
    return float(value)


def check_positive(name: str, value: float, advice: str = "choose a positive value") -> float:
    """Return ``value`` as a float if it is a finite number greater than 0; ``advice`` ends the message otherwise."""
    value = check_real(name, value, -math.inf)
    if value <= 0:
        raise ValueError(f"expected {name} > 0, got {value}: {advice}")
    return value


def check_flag(name: str, value: bool) -> bool:
    """Return ``value`` if it is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"expected {name} as True or False, got {value!r:.80}: pass one of them")
    return value


def check_choice(name: str, value: str, choices: Sequence[str]) -> str:
    """Return ``value`` if it is one of the choices."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(
            f"expected {name} as one of {', '.join(map(repr, choices))}, got {value!r:.80}: take one of them"
        )
    return value


# ---------------------------------------------------------------------- functions and lists
def check_function(name: str, value: F, advice: str = "pass a function") -> F:
    """Return ``value`` if it can be called; ``advice`` ends the message otherwise."""
    if not callable(value):
        raise TypeError(f"expected {name} as a function, got {type(value).__name__}: {advice}")
    return value


def check_list(name: str, value: Iterable[E], advice: str) -> list[E]:
    """Return the items of ``value`` as a list, unless it is a tensor or a string; ``advice`` ends the message then."""
    if isinstance(value, (Tensor, str)) or not isinstance(value, Iterable):
        raise TypeError(f"expected {name} as a list or another iterable, got {type(value).__name__}: {advice}")
    return list(value)


# ---------------------------------------------------------------------- numbers of each task
def check_per_task(name: str, value: Any, *, positive: bool = False) -> PerTask:
    """Return a number for all tasks as a float, or one for each (a sequence, a tensor or an array) as a tuple.

    The numbers have to be finite, and greater than 0 where ``positive``.
    """
    plain = value.tolist() if hasattr(value, "tolist") else value
    try:
        checked = tuple(float(each) for each in plain) if isinstance(plain, Sequence) else float(plain)
    except (TypeError, ValueError):
        raise TypeError(
            f"expected {name} as a number or one number for each task, got {value!r:.80}: pass a float or a list"
        ) from None
    numbers = (checked,) if isinstance(checked, float) else checked
    if not numbers or not all(math.isfinite(each) and (each > 0 or not positive) for each in numbers):
        raise ValueError(f"expected {name} finite{' and > 0' if positive else ''}, got {value}: choose other numbers")
    return checked


def per_task(name: str, value: PerTask, num_tasks: int, device: torch.device | str) -> Tensor:
    """Return checked numbers as float64 [T] on the device; raise ValueError if their count is not T."""
    numbers = (value,) * num_tasks if isinstance(value, float) else value
    if len(numbers) != num_tasks:
        raise ValueError(f"expected {name} for {num_tasks} tasks, got {len(numbers)} numbers: give one for each task")
    return torch.tensor(numbers, dtype=torch.float64, device=device)


# ---------------------------------------------------------------------- tables
def check_simplex(preferences: Tensor) -> None:
    """Raise unless ``preferences`` is float64 [K, T] with its rows on the simplex; waits for the device."""
    if not isinstance(preferences, Tensor) or preferences.dtype != torch.float64:
        got = preferences.dtype if isinstance(preferences, Tensor) else type(preferences).__name__
        raise TypeError(f"expected preferences as a float64 tensor, got {got}: convert them with .double()")
    if preferences.dim() != 2 or 0 in preferences.shape:
        raise ValueError(
            f"expected preferences of shape [subproblems, tasks], got {list(preferences.shape)}: "
            "give one row of task weights per subproblem"
        )
    # Written so that a NaN is bad.
    bad = ~(preferences.isfinite() & (preferences >= 0)).all(1)
    if bad.any():
        row = int(bad.nonzero()[0])
        raise ValueError(
            f"expected preferences that are finite and not negative, got {preferences[row].tolist()} in row {row}: "
            "give each task a weight of at least 0"
        )
    sums = preferences.sum(1)
    off = (sums - 1).abs()
    if (off > TOLERANCE).any():
        row = int(off.argmax())
        raise ValueError(
            f"expected rows of preferences that sum to 1, got a sum of {sums[row]:g} in row {row}: divide the rows by "
            "their sums, preferences / preferences.sum(1, keepdim=True)"
        )


def check_mix(matrix: Tensor, num_subproblems: int, num_segments: int | None = None) -> None:
    """Raise unless the transfer matrix M can be applied at every step without growing the parameters.

    M is [K, K] or [S, K, K] (any S where ``num_segments`` is None), floating, finite, its rows sum to 1, and it is
    non-negative or else symmetric with its spectrum in [-1, 1]. Reads values: waits for the device.
    """
    if not isinstance(matrix, Tensor) or not matrix.is_floating_point():
        got = matrix.dtype if isinstance(matrix, Tensor) else type(matrix).__name__
        raise TypeError(f"expected the transfer matrix as a floating-point tensor, got {got}: convert it")
    _check_mix_shape(matrix, num_subproblems, num_segments)
    matrix = matrix.detach().double()
    if not matrix.isfinite().all():
        raise ValueError("expected a finite transfer matrix, got NaN or infinity: check the function that made it")
    error = matrix.sum(-1).flatten() - 1
    worst = error[error.abs().argmax()].item()
    if abs(worst) > TOLERANCE:
        raise ValueError(
            f"expected a transfer matrix with rows that sum to 1, got {1 + worst:.9g}: divide each row by its sum"
        )
    matrices = matrix.reshape(-1, num_subproblems, num_subproblems)
    signed = matrices[matrices.amin((1, 2)) < -TOLERANCE]
    if len(signed) == 0:
        return
    if (signed - signed.mT).abs().max() > TOLERANCE * signed.abs().max():
        raise ValueError(
            "expected a transfer matrix that is non-negative or symmetric, got neither (smallest entry "
            f"{signed.min():.3g}): use (M + M^T) / 2 or clamp and normalise its rows"
        )
    spectrum = torch.linalg.eigvalsh(signed)
    if spectrum.abs().max() > 1 + TOLERANCE:
        raise ValueError(
            "expected a symmetric transfer matrix with its spectrum in [-1, 1], got "
            f"[{spectrum.min():.3g}, {spectrum.max():.3g}]: it grows at each transfer; mix it with the identity"
        )


def _check_mix_shape(matrix: Tensor, num_subproblems: int, num_segments: int | None) -> None:
    square = [num_subproblems, num_subproblems]
    shape = list(matrix.shape)
    per_segment = matrix.dim() == 3 and shape[1:] == square and num_segments in (None, shape[0]) and shape[0] > 0
    if shape != square and not per_segment:
        segments = "segments" if num_segments is None else num_segments
        raise ValueError(
            f"expected a transfer matrix of shape {square} or [{segments}, {num_subproblems}, {num_subproblems}], "
            f"got {shape}: give one row per subproblem"
        )
