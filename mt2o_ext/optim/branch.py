"""Subproblems that go on from another optimizer: from one trained model, or from a front on vertices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..base import BASE_RULES, BaseRule, as_base_rule
from .base import FlatOptimizer

if TYPE_CHECKING:
    from .mt2o import MT2OFused

__all__ = ["branched"]


def branched(kind: type[MT2OFused], optimizer: torch.optim.Optimizer, options: dict[str, Any]) -> MT2OFused:
    """An optimizer of this kind whose subproblems go on from another optimizer; see `MT2OFused.branch_from`."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"expected an optimizer to branch from, got {type(optimizer).__name__}")
    if options.get("stacked") or (isinstance(optimizer, FlatOptimizer) and optimizer._buffers.stacked):
        raise ValueError("expected stacked=False: a bank has other parameters than the model that was trained")
    front = _front_of(optimizer)
    if front is None and isinstance(optimizer, FlatOptimizer) and optimizer._buffers.num_rows > 1:
        raise ValueError(
            f"expected an optimizer of one model, or of a front on vertices, got {optimizer._buffers.num_rows} "
            "subproblems: load their state dict, which keeps them"
        )
    base = as_base_rule(options["base"]) if "base" in options else _base_of(optimizer)
    ours = {"lr", "transfer", *base.defaults()}
    dropped = {*(set(optimizer.defaults) - ours), *options, "transfer"}
    groups = [{key: value for key, value in group.items() if key not in dropped} for group in optimizer.param_groups]
    saved = {p: dict(state) for p, state in optimizer.state.items() if isinstance(p, Tensor)}
    made = kind(groups, **{**options, "base": base})
    with torch.no_grad():
        for p in made._held_parameters():
            _take(made, p, saved.get(p, {}), front)
    made._read_shown()
    made.zero_grad()  # what stands in `.grad` was for the other optimizer's step
    return made


def _front_of(optimizer: torch.optim.Optimizer) -> str | None:
    """Key of the vertices, averaged ones if there are, in the state of an optimizer that has a front on vertices."""
    if isinstance(optimizer, FlatOptimizer) and optimizer._buffers.vertices is not None:
        return "vertices" if optimizer._ema is None else "ema"
    return None


def _base_of(optimizer: torch.optim.Optimizer) -> BaseRule:
    if isinstance(optimizer, FlatOptimizer):
        return optimizer._base
    name = type(optimizer).__name__.lower()
    if name not in BASE_RULES or not type(optimizer).__module__.startswith("torch.optim"):
        raise ValueError(
            f"expected base= beside a {type(optimizer).__name__}, which has no rule of this package: choose one of "
            f"{list(BASE_RULES)}"
        )
    return BASE_RULES[name]()


def _take(made: MT2OFused, p: Tensor, saved: dict[str, Any], front: str | None) -> None:
    """Puts the rows of a parameter into the state, where the next look at it finds them."""
    group = next(group for group, q in made._parameters() if q is p)
    expected = made._views.expected(group, p)
    own = made.state[p]
    if front is not None:
        rows = torch.tensordot(made.preferences, saved[front].to(made.preferences), 1)
        for key in ("subproblems", *made._copies):
            own[key] = rows.to(saved[front].dtype)
        return
    for key, shape in expected.items():
        value = saved.get(key)
        if isinstance(value, Tensor) and key not in ("subproblems", "vertices", "transfer_base"):
            own[key] = value.detach().to(torch.float32 if key == "step" else value.dtype).expand(shape).clone()
