"""Fronts whose subproblems are divided over ranks; on one rank, the same front in one process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mt2o_ext import MT2OFused
from mt2o_ext.base import SGD, AdamW
from mt2o_ext.scalarization import SmoothTchebycheff
from mt2o_ext.transfer import (
    GumbelPrior,
    LinearDecay,
    Mean,
    Moments,
    Neighbours,
    Sequence,
    Spectral,
    TransferContext,
)
from mt2o_ext.weighting import ExcessMTL, PaMaL
from support.optim.towers import Towers, batch_of
from support.worlds import Check

DOUBLE = torch.float64
FIVE = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]
STEPS = 3


def mesh_of(ranks: int) -> bool | None:
    return True if ranks > 1 else None


class Trained:
    """A model, its optimizer, and steps of it on batches that are known by step and subproblem.

    Args:
        rank, ranks: as of a check.
        absent: tasks without a loss, by subproblem.
        dtype: of the model.
        mesh: as of ``subproblem_mesh=``.
        options: of `MT2OFused`; pieces as partials of their classes, which each optimizer makes anew.
    """

    def __init__(
        self,
        rank: int,
        ranks: int,
        *,
        absent: dict[int, int] | None = None,
        dtype: torch.dtype = DOUBLE,
        mesh: Any = None,
        **options: Any,
    ) -> None:
        self.model = Towers(dtype=dtype, seed=rank)  # the first rank's values count
        self.absent, self.dtype = absent or {}, dtype
        if options.get("front") == "vertices":
            options.setdefault("generator", torch.Generator().manual_seed(3 + rank))  # and its numbers
        options = {name: value() if isinstance(value, partial) else value for name, value in options.items()}
        options = {"num_subproblems": 5, "preferences": FIVE, "lr": 1e-2, "ema": 0.9, **options}
        groups = options.pop("groups", None)
        params = self.model.parameters() if groups is None else groups(self.model)
        mesh = mesh_of(ranks) if mesh is None else mesh
        self.optimizer = MT2OFused(params, num_tasks=3, subproblem_mesh=mesh, **options)

    def batch(self, step: int, k: int) -> Tensor:
        return batch_of(10 * step + k, self.dtype)

    def losses(self, step: int, k: int) -> list[Tensor | None]:
        losses = self.model.losses(self.batch(step, k))
        return [None if self.absent.get(k) == task else loss for task, loss in enumerate(losses)]

    def steps(self, numbers: range) -> Trained:
        for step in numbers:
            for k in self.optimizer.subproblems():
                self.optimizer.backward(self.losses(step, k))
            self.optimizer.step()
        return self

    def found(self, *, ema: bool = True) -> dict[str, Any]:
        """The front, and on the first rank the whole state."""
        calls = []

        def evaluate() -> tuple[list[Tensor], dict[str, float]]:
            calls.append(1)
            losses = self.model.losses(self.batch(99, 0))
            return losses, {"first": float(losses[0])}

        front = self.optimizer.front(evaluate, ema=ema, model=self.model)
        whole = self.optimizer.whole_state_dict()
        return {
            "losses": front.losses, "metrics": front.metrics, "states": front.states, "calls": len(calls),
            "here": list(self.optimizer.subproblems_here), "state": whole,
        }  # fmt: skip


def mesh_run(rank: int, ranks: int, **options: Any) -> dict[str, Any]:
    return Trained(rank, ranks, **options).steps(range(STEPS)).found()


def closure_run(rank: int, ranks: int, **options: Any) -> dict[str, Any]:
    """Steps by a closure, with a history; what is of this rank's subproblems."""
    trained = Trained(rank, ranks, history=10, **options)
    own, losses = trained.optimizer.subproblems_here, torch.zeros(0)
    for step in range(STEPS):
        turns = iter(own)
        losses = trained.optimizer.step(lambda turns=turns, step=step: trained.losses(step, next(turns)))
    history = trained.optimizer.history()
    return {
        **trained.found(), "own losses": losses, "skipped": trained.optimizer.skipped_steps,
        "columns": {key: column[-1] for key, column in history.columns().items() if key.startswith(("loss", "point"))},
    }  # fmt: skip


def mixed_by_tensor(context: TransferContext) -> Tensor:
    """Another M for each tensor, by the losses and the distances of all subproblems."""
    assert context.losses is not None and context.gram is not None
    near = torch.softmax(-torch.cdist(context.losses, context.losses), 1)
    size = context.gram.diagonal(dim1=1, dim2=2).sum(1).tanh()[:, None, None]
    return (1 - 0.2 * size) * torch.eye(len(near), dtype=near.dtype) + 0.2 * size * near


def outside(model: Towers) -> list[dict[str, Any]]:
    """Heads that are never blended."""
    trunk, heads = list(model.trunk.parameters()), list(model.heads.parameters())
    return [{"params": trunk}, {"params": heads, "transfer": False}]


def marked(model: Towers) -> list[dict[str, Any]]:
    return model.groups()


def drawn() -> GumbelPrior:
    return GumbelPrior(0.3, every=1, generator=torch.Generator().manual_seed(3))


def one_after_another() -> Sequence:
    return Sequence([(Mean(1.0), 2), (Spectral(every=1), None)])


NEAR = partial(Neighbours, 0.2, 0.3, nearest=1)
ROWS: dict[str, dict[str, Any]] = {
    "independent": {"transfer": None},
    "spectral": {"transfer": partial(Spectral, every=2), "base": AdamW(weight_decay=0.1, amsgrad=True)},
    "mean of a schedule": {"transfer": partial(Mean, LinearDecay(0.5, steps=5)), "base": SGD(momentum=0.9)},
    "neighbours": {"transfer": NEAR},
    "neighbours, moments": {"transfer": NEAR, "moments": Moments.MIX, "groups": outside},
    "moments": {"transfer": partial(Mean, 0.1), "moments": Moments.MIX_SQUARED},
    "adapt, then combine": {"transfer": partial(Mean, 0.2), "order": "adapt_then_combine"},
    "changes": {"transfer": partial(Spectral, every=2, relative=True)},
    "by tensor": {"transfer": mixed_by_tensor, "groups": outside},
    "one after another": {"transfer": partial(one_after_another)},
    "drawn": {"transfer": partial(drawn)},
    "warm-up": {"transfer": partial(Spectral, every=2), "warm_up": 3},
    "max_norm": {"transfer": NEAR, "max_norm": 0.1},
    "absent": {"transfer": partial(Mean, 0.1), "absent": {0: 1, 4: 2}},
    "absent, neighbours": {"transfer": NEAR, "absent": {0: 1, 4: 2}, "scalarization": SmoothTchebycheff(mu=0.5)},
    "weighting": {"weighting": "cagrad", "groups": marked, "heads": "weighted"},
    "weighting with memory": {"weighting": partial(ExcessMTL), "transfer": partial(Spectral, every=2)},
    "weighting of preferences": {"weighting": "upgrad", "scalarization": None},
    "all together": {"skip_nonfinite": "all", "transfer": partial(Mean, 0.1)},
}
VERTICES: dict[str, dict[str, Any]] = {
    "plain": {},
    "more points": {"points": 8, "concentration": 2.0, "num_subproblems": 3, "preferences": FIVE[:3]},
    "max_norm": {"max_norm": 0.1, "warm_up": 2},
    "absent": {"absent": {0: 1, 1: 1, 2: 1, 3: 1, 4: 1}},
    "absent on some": {"absent": {0: 1, 4: 2}},
    "weighting": {"weighting": "cagrad"},
    "weighting of points": {"scalarization": None, "weighting": partial(PaMaL, balancing="both")},
}
RUNS: dict[str, Check] = {
    **{f"rows, {name}": partial(mesh_run, front="rows", **options) for name, options in ROWS.items()},
    **{f"vertices, {name}": partial(mesh_run, front="vertices", **options) for name, options in VERTICES.items()},
    "rows, closure": partial(closure_run, front="rows"),
    "vertices, closure": partial(closure_run, front="vertices"),
}


# ---------------------------------------------------------------------- other models
class Normed(nn.Module):
    """With running statistics."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2)).double()

    def losses(self, batch: Tensor) -> Tensor:
        found: Tensor = (self.net(batch) - batch[:, :2] * batch.new_tensor([1.0, -1.0])).square().mean(0)
        return found


def normed_run(rank: int, ranks: int, front: str) -> dict[str, Any]:
    """Batch norm, whose statistics are computed anew for the averages."""
    model = Normed(rank)
    options = {"generator": torch.Generator().manual_seed(rank)} if front == "vertices" else {}
    optimizer = MT2OFused(
        model.parameters(), num_tasks=2, num_subproblems=5, front=front, ema=0.9, buffers=model.buffers(),
        subproblem_mesh=mesh_of(ranks), **options,
    )  # fmt: skip
    for step in range(3):
        for k in optimizer.subproblems():
            optimizer.backward(model.losses(batch_of(10 * step + k, DOUBLE)))
        optimizer.step()
    optimizer.update_buffers(lambda: passes(model))
    model.eval()
    found = optimizer.front(lambda: model.losses(batch_of(99, DOUBLE)), ema=True)
    whole = optimizer.whole_state_dict()
    evaluated = None if whole is None else whole["param_groups"][0]["mt2o"]["evaluated_buffers"]
    return {"losses": found.losses, "evaluated": evaluated}


def passes(model: Normed) -> None:
    norm = model.net[1]
    norm.momentum = None  # the mean of all
    norm.reset_running_stats()
    for seed in range(3):
        model.net(batch_of(seed, DOUBLE))


def rounded_run(rank: int, ranks: int, front: str) -> dict[str, Any]:
    """16 bits: the masters are float32."""
    options = {"transfer": partial(Mean, 0.1)} if front == "rows" else {}
    return Trained(rank, ranks, front=front, dtype=torch.bfloat16, **options).steps(range(3)).found()


OTHERS: dict[str, Callable[[int, int], dict[str, Any]]] = {
    **{f"batch norm, {front}": partial(normed_run, front=front) for front in ("rows", "vertices")},
    **{f"16 bits, {front}": partial(rounded_run, front=front) for front in ("rows", "vertices")},
}
