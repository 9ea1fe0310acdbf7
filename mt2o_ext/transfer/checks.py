"""Checks of what the rules are given: what was expected, what came, what to do."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Preferences and matrices of order 1 may come from float32.
TOLERANCE = 1e-6


def check_count(name: str, value: int, minimum: int = 1) -> int:
    """``value`` when it is an int of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"expected {name} as an int, got {type(value).__name__}: pass a whole number >= {minimum}")
    if value < minimum:
        raise ValueError(f"expected {name} >= {minimum}, got {value}: raise it")
    return value


def check_real(name: str, value: float, minimum: float = 0.0, maximum: float = math.inf) -> float:
    """``value`` as a float when it is a finite number in [minimum, maximum]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"expected {name} as a float, got {type(value).__name__}: pass a number")
    if not (math.isfinite(value) and minimum <= value <= maximum):
        allowed = f"in [{minimum:g}, {maximum:g}]" if math.isfinite(maximum) else f"finite and >= {minimum:g}"
        raise ValueError(f"expected {name} {allowed}, got {value}: choose a value in that range")
    return float(value)


def check_positive(name: str, value: float) -> float:
    """``value`` as a float when it is a finite number greater than 0."""
    if check_real(name, value) == 0:
        raise ValueError(f"expected {name} > 0, got {value}: choose a positive value")
    return float(value)


def check_preferences(preferences: Tensor) -> None:
    """Raises TypeError or ValueError unless ``preferences`` is [K, T] float64 with rows on the simplex."""
    if not isinstance(preferences, Tensor) or preferences.dtype != torch.float64:
        got = preferences.dtype if isinstance(preferences, Tensor) else type(preferences).__name__
        raise TypeError(f"expected preferences as a float64 tensor, got {got}: convert them with .double()")
    if preferences.dim() != 2 or 0 in preferences.shape:
        raise ValueError(
            f"expected preferences of shape [subproblems, tasks], got {list(preferences.shape)}: "
            "give one row of task weights per subproblem"
        )
    # Written so that a NaN fails.
    on_simplex = (preferences >= 0).all() & ((preferences.sum(1) - 1).abs() <= TOLERANCE).all()
    if not on_simplex:
        raise ValueError(
            f"expected preferences that are non-negative with rows summing to 1, got {preferences.tolist()}: "
            "divide each row by its sum"
        )


def check_mix(matrix: Tensor, num_subproblems: int, num_segments: int | None = None) -> None:
    """Raises unless M can be applied at every step without growing the parameters.

    M is [K, K] or [S, K, K] (any S where ``num_segments`` is None), floating, finite, its rows sum to 1, and it is
    non-negative or else symmetric with its spectrum in [-1, 1]. Reads values: waits for the device.
    """
    if not isinstance(matrix, Tensor) or not matrix.is_floating_point():
        got = matrix.dtype if isinstance(matrix, Tensor) else type(matrix).__name__
        raise TypeError(f"expected the transfer matrix as a floating-point tensor, got {got}: convert it")
    _check_shape(matrix, num_subproblems, num_segments)
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


def _check_shape(matrix: Tensor, num_subproblems: int, num_segments: int | None) -> None:
    square = [num_subproblems, num_subproblems]
    shape = list(matrix.shape)
    per_segment = matrix.dim() == 3 and shape[1:] == square and num_segments in (None, shape[0]) and shape[0] > 0
    if shape != square and not per_segment:
        segments = "segments" if num_segments is None else num_segments
        raise ValueError(
            f"expected a transfer matrix of shape {square} or [{segments}, {num_subproblems}, {num_subproblems}], "
            f"got {shape}: give one row per subproblem"
        )
