"""Entries of an optimizer's state that are held outside of a mask, beside the parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["entries", "hold_entries", "models_of"]

ALWAYS_HELD = ("master", "ema")  # entries of a state that are values of the parameter itself


def entries(optimizer: torch.optim.Optimizer, p: Tensor, moments: str) -> dict[str, Tensor]:
    """Copies of the entries of a parameter's state that have its shape and are held."""
    state: dict[str, Any] = optimizer.state.get(p, {})
    return {key: value.clone() for key, value in state.items() if _is_held(key, value, p, moments)}


def _is_held(key: str, value: Any, p: Tensor, moments: str) -> bool:
    alike = isinstance(value, Tensor) and value.shape == p.shape and value.is_floating_point() and p.dim() > 0
    return alike and (moments == "hold" or key in ALWAYS_HELD)


@torch.no_grad()
def hold_entries(
    optimizer: torch.optim.Optimizer, p: Tensor, mask: Tensor, old: dict[str, Tensor], moments: str
) -> None:
    """Puts the old entries back outside of the mask; new ones start there as they do without a step."""
    for key, value in optimizer.state.get(p, {}).items():
        if _is_held(key, value, p, moments):
            before = old.get(key, p.to(value.dtype) if key in ALWAYS_HELD else torch.zeros_like(value))
            value.copy_(torch.where(mask, value, before))


def models_of(optimizer: torch.optim.Optimizer) -> int:
    """The number of models that the parameters of an optimizer show one after another."""
    from ..optim import MT2OFused  # which imports this package

    return len(optimizer.preferences) if isinstance(optimizer, MT2OFused) else 1
