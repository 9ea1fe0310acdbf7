"""The solvers of a backend as functions that return their results."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

from mt2o_ext.ops import workspace_size
from support.backends import Backend
from support.gram_samplers import KINDS, TASKS, GramProblem, gram_problems

# The reference takes long for many tasks.
MOST_TASKS = {"reference": 5}
Solver = Callable[[Backend, Tensor], Tensor]  # gram [K, T, T] -> weights [K, ...]


def sizes(backend: Backend, most: int = 64) -> tuple[int, ...]:
    """Numbers of tasks to try a backend with."""
    most = min(most, MOST_TASKS.get(backend.name, most))
    return tuple(tasks for tasks in TASKS if tasks <= most)


def draw(data: st.DataObject, backend: Backend, kinds: Sequence[str] = tuple(KINDS), most: int = 64) -> GramProblem:
    """One of Hypothesis' problems, of a size for this backend."""
    most = min(most, MOST_TASKS.get(backend.name, most))
    return data.draw(gram_problems(kinds, range(1, most + 1)))


def empty(*shape: int) -> Tensor:
    """NaN: whatever is not written shows."""
    return torch.full(shape, torch.nan, dtype=torch.float64)


def scratch(gram: Tensor) -> Tensor:
    return empty(len(gram), workspace_size(gram.shape[-1]))


def minimum_norm(backend: Backend, gram: Tensor, linear: Tensor | None = None) -> Tensor:
    weights = empty(*gram.shape[:2])
    backend.solve.minimum_norm_(weights, scratch(gram), gram, linear)
    return weights


def conflict_averse(
    backend: Backend, gram: Tensor, preferences: Tensor | None = None, radius: float = 0.5, rtol: float = 1e-12
) -> Tensor:
    weights = empty(*gram.shape[:2])
    u = torch.full_like(weights, 1 / gram.shape[-1]) if preferences is None else preferences
    backend.solve.conflict_averse_(weights, scratch(gram), gram, u, radius=radius, rtol=rtol)
    return weights


def power_barrier(
    backend: Backend, gram: Tensor, target: Tensor | None = None, power: float = 1.0, rtol: float = 0.0
) -> tuple[Tensor, Tensor]:
    weights, residual = empty(*gram.shape[:2]), empty(len(gram))
    b = torch.ones_like(weights) if target is None else target
    backend.solve.power_barrier_(weights, residual, scratch(gram), gram, b, power=power, rtol=rtol)
    return weights, residual


def dual_cone(backend: Backend, gram: Tensor, lower: Tensor | None = None, rtol: float = 0.0) -> Tensor:
    batch, _, tasks = gram.shape
    u = torch.full((batch, 1, tasks), 1 / tasks, dtype=torch.float64) if lower is None else lower
    weights = empty(*u.shape)
    backend.solve.dual_cone_(weights, scratch(gram), gram, u, rtol=rtol)
    return weights


def unconflicting(backend: Backend, gram: Tensor) -> Tensor:
    """UPGrad: the sum of T solutions."""
    batch, _, tasks = gram.shape
    each = (torch.eye(tasks, dtype=torch.float64) / tasks).expand(batch, tasks, tasks).contiguous()
    return dual_cone(backend, gram, each).sum(1)


def eigen(backend: Backend, gram: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = empty(*gram.shape[:2]), empty(*gram.shape)
    backend.solve.eigen_(values, vectors, scratch(gram), gram)
    return values, vectors


def orders(batch: int, tasks: int, seed: int = 0) -> Tensor:
    """A random order for each row."""
    keys = torch.rand(batch, tasks, tasks, generator=torch.Generator().manual_seed(seed))
    return keys.argsort(dim=-1)


def project(
    backend: Backend,
    gram: Tensor,
    order: Tensor | None = None,
    targets: Tensor | None = None,
    decay: float = 0.0,
    rtol: float = 0.0,
) -> Tensor:
    weights = empty(*gram.shape[:2])
    order = orders(*gram.shape[:2]) if order is None else order
    backend.solve.project_(weights, targets, scratch(gram), gram, order, decay=decay, rtol=rtol)
    return weights


def descent(
    backend: Backend,
    gram: Tensor,
    losses: Tensor | None = None,
    rays: Tensor | None = None,
    tolerance: float = 1e-4,
    relax: bool = False,
) -> Tensor:
    weights = empty(*gram.shape[:2])
    losses = torch.ones_like(weights) if losses is None else losses
    rays = torch.ones_like(weights) if rays is None else rays
    backend.solve.descent_(weights, scratch(gram), gram, losses, rays, tolerance=tolerance, relax=relax)
    return weights


def vaccinated(backend: Backend, gram: Tensor) -> Tensor:
    return project(backend, gram, targets=torch.full_like(gram, 0.3), decay=0.1)


def balance(backend: Backend, gram: Tensor) -> Tensor:
    """EPO away from the ray."""
    losses = torch.linspace(1, 2, gram.shape[-1], dtype=torch.float64)
    return descent(backend, gram, losses.expand(gram.shape[:2]).contiguous())


# One call of each solver with the Gram matrix as its only argument.
SOLVERS: dict[str, Solver] = {
    "minimum norm": minimum_norm,
    "conflict averse": conflict_averse,
    "barrier": lambda backend, gram: power_barrier(backend, gram)[0],
    "barrier, p = 0.3": lambda backend, gram: power_barrier(backend, gram, power=0.3)[0],
    "dual cone": lambda backend, gram: dual_cone(backend, gram)[:, 0],
    "unconflicting": unconflicting,
    "eigenvalues": lambda backend, gram: eigen(backend, gram)[0],
    "project": project,
    "vaccinated": vaccinated,
    "descent": descent,
    "balance": balance,
}
# weights(a Q) = a^degree weights(Q)
DEGREES = {"barrier": -0.5, "barrier, p = 0.3": -1 / 1.3, "eigenvalues": 1.0}
