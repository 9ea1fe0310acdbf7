"""Subproblems that go on from another optimizer: from one trained model, or from a front on vertices."""

from __future__ import annotations

from inspect import signature
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..base import BASE_RULES, BaseRule, as_base_rule
from ..scalarization import as_scalarization
from ..sharding import like_parameter, local_of
from ..weighting import as_weighting
from .asked import Asked
from .base import FlatOptimizer

__all__ = ["branched"]

Kind = TypeVar("Kind", bound=FlatOptimizer)


def branched(kind: type[Kind], optimizer: torch.optim.Optimizer, options: dict[str, Any]) -> Kind:
    """An optimizer of this kind that goes on from another optimizer; see the `branch_from` of both kinds."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"expected an optimizer to branch from, got {type(optimizer).__name__}")
    if isinstance(optimizer, FlatOptimizer) and (optimizer._now.averaged or optimizer._now.loops):
        raise RuntimeError(
            "expected branch_from(optimizer) outside of its at(), subproblem() and loops, got it inside: leave them "
            "first, because they put the parameters back that were there before"
        )
    if options.get("stacked") or (isinstance(optimizer, FlatOptimizer) and optimizer._buffers.stacked):
        raise ValueError("expected stacked=False: a bank has other parameters than the model that was trained")
    front = _front_of(optimizer)
    if front is not None and kind._family != "mt2o":
        raise ValueError(
            "expected an optimizer of one model, got one of a front on vertices: save the model inside of at(...), and "
            "make an optimizer of that"
        )
    if front is None and isinstance(optimizer, FlatOptimizer) and optimizer._buffers.share.total > 1:
        raise ValueError(
            f"expected an optimizer of one model, or of a front on vertices, got {optimizer._buffers.share} "
            "subproblems: load their state dict, which keeps them"
        )
    if front is not None and "num_tasks" in options and _kind_of(kind, options) == "vertices":
        _check_tasks(optimizer, options)
    base = as_base_rule(options["base"]) if "base" in options else _base_of(optimizer)
    ours = {"lr", "transfer", *base.defaults()}
    dropped = {*(set(optimizer.defaults) - ours), *options, "transfer"}
    if "lr" in options:
        dropped.add("initial_lr")  # of the old schedule: a new one would begin there, and not at this rate
    if options.get("weighting") is None and kind._family == "mt2o":
        dropped.add("task")  # without a weighting a head needs no mark: its gradient is of its own loss anyway
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


def _kind_of(kind: type[FlatOptimizer], options: dict[str, Any]) -> str:
    """The front that the new optimizer will have."""
    defaults = {name: parameter.default for name, parameter in signature(kind).parameters.items()}
    given = {**defaults, **options, "params": []}  # of the groups ``transfer`` is left out
    for name, made in (("scalarization", as_scalarization), ("weighting", as_weighting)):
        given[name] = None if given[name] is None else made(given[name])
    return Asked(**{name: given[name] for name in Asked._fields}).kind()


def _check_tasks(optimizer: torch.optim.Optimizer, options: dict[str, Any]) -> None:
    """Checks that there is a vertex for each task of the new front."""
    tasks = optimizer.preferences.shape[1]  # type: ignore[attr-defined]
    if options["num_tasks"] != tasks:
        raise ValueError(
            f"expected num_tasks={tasks}, a task for each vertex that goes on, got {options['num_tasks']}: make the "
            "optimizer with as many, or branch to rows"
        )


def _base_of(optimizer: torch.optim.Optimizer) -> BaseRule:
    if isinstance(optimizer, FlatOptimizer):
        return optimizer._base
    name = type(optimizer).__name__.lower()
    if name not in BASE_RULES or not type(optimizer).__module__.startswith("torch.optim"):
        raise ValueError(
            f"expected base= beside the {type(optimizer).__name__}, which has no rule of this package: choose one of "
            f"{list(BASE_RULES)}, or give the optimizer inside of it (.optimizer), if it is a trainer's wrapper"
        )
    return BASE_RULES[name]()


def _take(made: FlatOptimizer, p: Tensor, saved: dict[str, Any], front: str | None) -> None:
    """Puts the rows of a parameter into the state, where the next look at it finds them."""
    group = next(group for group, q in made._parameters() if q is p)
    expected = made._views.expected(group, p)
    own = made.state[p]
    if front is not None and made._buffers.vertices is None:
        preferences = made._buffers.share.rows(made.preferences)  # type: ignore[attr-defined]
        vertices = local_of(saved[front])
        rows = torch.tensordot(preferences, vertices.to(preferences), 1)
        for key in ("subproblems", *made._copies):
            own[key] = like_parameter(p, rows.to(vertices.dtype))
        return
    if front is not None:  # the same vertices go on, as they are
        saved = {**dict.fromkeys(made._copies, saved["vertices"]), **saved}
    left_out = {"subproblems", "transfer_base"} if front is not None else {"subproblems", "vertices", "transfer_base"}
    moments = expected.keys() - {"step", "subproblems", "vertices", "transfer_base", *made._copies}
    if not all(isinstance(saved.get(key), Tensor) for key in moments):  # of another rule: they start anew, and so
        left_out |= {"step", *moments}  # does the count that corrects their bias
    for key, shape in expected.items():
        value = saved.get(key)
        if isinstance(value, Tensor) and key not in left_out:
            own[key] = value.detach().to(torch.float32 if key == "step" else value.dtype).expand(shape).clone()
