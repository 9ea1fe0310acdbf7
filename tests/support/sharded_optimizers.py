"""Runs of the optimizers on sharded models, and the same in one process on the joined batch."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import torch
from torch import nn

from mt2o_ext import MT2OFused, WeightedFused
from support.sharded_runs import SHARDINGS, Net, batch_of, fully_sharded, losses_of
from support.sharded_steps import (
    LOOPS,
    by_backward,
    by_closure,
    data,
    every_weighting,
    model,
    run,
    state,
    values,
    weighted,
)
from support.worlds import Check

PREFERENCES = [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]


def front(rank: int, ranks: int, sharding: str, **options: Any) -> dict[str, Any]:
    net = model(ranks, sharding)
    if options.get("front") == "vertices":
        options["generator"] = torch.Generator().manual_seed(5)
    optimizer = MT2OFused(
        net.parameters(), num_tasks=3, num_subproblems=3, preferences=PREFERENCES, lr=1e-2, ema=0.9, **options
    )
    for number in range(2):
        for k in optimizer.subproblems():
            optimizer.backward(losses_of(net, data(10 * number + k, rank, ranks, sharding)))
        optimizer.step()
    found: dict[str, Any] = {"shown": values(net), "state": state(optimizer)["state"]}
    with optimizer.subproblem(1):
        found["one"] = values(net)
    with optimizer.subproblem(2, ema=True):
        found["average"] = values(net)
    found["front"] = optimizer.front(lambda: losses_of(net, batch_of(99, 0, 1))).losses
    return found


def branched(rank: int, ranks: int) -> dict[str, Any]:
    """From torch's optimizer to vertices, and from these to rows, which somebody changes beside the steps."""
    net = model(ranks, "layers")
    plain = torch.optim.AdamW(net.parameters(), lr=1e-2)
    losses_of(net, data(0, rank, ranks, "layers"))[0].backward()
    plain.step()
    options: dict[str, Any] = {"num_tasks": 3, "num_subproblems": 3, "preferences": PREFERENCES}
    generator = torch.Generator().manual_seed(5)
    optimizer = MT2OFused.branch_from(plain, front="vertices", generator=generator, **options)
    rounds(optimizer, net, rank, ranks, 0)
    for p in net.parameters():
        p.data.mul_(0.9)  # moves all vertices
    rounds(optimizer, net, rank, ranks, 1)
    optimizer = MT2OFused.branch_from(optimizer, front="rows", transfer="distance-decrease", **options)
    for k in range(3):
        with optimizer.subproblem(k):
            for p in net.parameters():
                p.data.mul_(0.9 + k / 20)
    p = next(net.parameters())
    optimizer.state[p]["subproblems"] = optimizer.state[p]["subproblems"] * 1.1
    rounds(optimizer, net, rank, ranks, 2)
    return {"values": values(net), "state": state(optimizer)["state"]}


def rounds(optimizer: MT2OFused, net: Net, rank: int, ranks: int, number: int) -> None:
    for k in optimizer.subproblems():
        optimizer.backward(losses_of(net, data(10 * number + k, rank, ranks, "layers")))
    optimizer.step()


# ---------------------------------------------------------------------- what happens beside a step
def shown(rank: int, ranks: int) -> dict[str, Any]:
    """Gradients and state are DTensors like their parameters, and what others make of them counts."""
    net = model(ranks, "layers")
    optimizer = weighted(net)
    by_backward(optimizer, net, data(0, rank, ranks, "layers"))
    optimizer.backward(losses_of(net, data(1, rank, ranks, "layers")))
    kinds = []
    for p in net.parameters():
        moment = optimizer.state[p]["exp_avg"]
        kinds += [(type(p.grad) is type(moment), moment.shape == p.shape)]
        if ranks > 1:
            kinds += [(p.grad.placements == p.placements, moment.placements == p.placements)]  # type: ignore[union-attr]
    for p in net.parameters():
        p.grad.mul_(0.5)  # type: ignore[union-attr]
        p.data.mul_(0.9)
        optimizer.state[p]["exp_avg"].mul_(0.5)
        optimizer.state[p]["exp_avg_sq"] = optimizer.state[p]["exp_avg_sq"] * 2
    optimizer.step()
    optimizer.zero_grad()
    del optimizer.state[next(net.parameters())]
    by_backward(optimizer, net, data(2, rank, ranks, "layers"))
    return {"kinds": sorted(set(kinds)), "values": values(net), "state": state(optimizer)}


def grows(rank: int, ranks: int) -> dict[str, Any]:
    """Groups that come later, parameters that are frozen for a while."""
    net = model(ranks, "layers")
    optimizer = WeightedFused(net.trunk.parameters(), num_tasks=3, weighting="upgrad", lr=1e-2, ema=0.9)
    by_backward(optimizer, net, data(0, rank, ranks, "layers"))
    for task, head in enumerate(net.heads):
        optimizer.add_param_group({"params": head.parameters(), "task": task})
    by_backward(optimizer, net, data(1, rank, ranks, "layers"))
    optimizer.param_groups[3]["params"] = optimizer.param_groups[3]["params"][:1]
    by_backward(optimizer, net, data(2, rank, ranks, "layers"))
    return {"values": values(net), "state": state(optimizer)}


def not_finite(rank: int, ranks: int) -> dict[str, Any]:
    """An infinity in the shards of one rank, of a shared parameter and of a head, and in the loss of one rank."""
    net = model(ranks, "layers")
    optimizer = weighted(net, heads="plain")
    before = values(net)
    last = rank == min(1, ranks - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for parameter in (net.trunk[0].weight, net.heads[0].weight):
            optimizer.backward(losses_of(net, data(0, rank, ranks, "layers")))
            grad = parameter.grad
            if last:
                (grad.to_local() if ranks > 1 else grad)[-1:].fill_(torch.inf)  # type: ignore[operator, union-attr]
            optimizer.step()
        optimizer.step(lambda: [loss * (torch.nan if last else 1) for loss in losses_of(net, batch_of(0, 0, 1))])
        skipped = optimizer.skipped_steps
    return {"skipped": skipped, "before": before, "after": values(net)}


def scaled(rank: int, ranks: int) -> dict[str, Any]:
    """A GradScaler, with an overflow in the second step, and with clipping in the third."""
    net = model(ranks, "layers", torch.float32)
    optimizer = weighted(net)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scales = []
    for number in range(4):
        losses = losses_of(net, data(number, rank, ranks, "layers").float())
        factor = 1e38 if number == 1 else 1.0
        optimizer.backward([loss * factor for loss in losses], scaler=scaler)
        if number == 2:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return {"values": values(net), "scales": scales}


def sixteen_bits(rank: int, ranks: int) -> dict[str, Any]:
    """Parameters of bfloat16 with float32 masters, which go on bit for bit from their state dict."""
    net = model(ranks, "root", torch.bfloat16)
    optimizer = weighted(net)
    for number in range(2):
        by_backward(optimizer, net, data(number, rank, ranks, "root").bfloat16())
    other = model(ranks, "root", torch.bfloat16)
    other.load_state_dict(net.state_dict())
    resumed = weighted(other)
    resumed.load_state_dict(optimizer.state_dict())
    for one, step in ((net, optimizer), (other, resumed)):
        by_backward(step, one, data(2, rank, ranks, "root").bfloat16())
    return {"values": values(net), "resumed": values(other), "master": state(optimizer)["state"][0]["master"]}


def from_whole(rank: int, ranks: int, saved: dict[str, Any]) -> dict[str, Any]:
    """Goes on from the state dict of an optimizer that was not sharded."""
    net = model(ranks, "layers")
    optimizer = weighted(net)
    optimizer.load_state_dict(saved)
    by_backward(optimizer, net, data(7, rank, ranks, "layers"))
    return {"values": values(net), "state": state(optimizer)}


def whole_state() -> dict[str, Any]:
    net = model(1, "layers")
    optimizer = weighted(net)
    by_backward(optimizer, net, batch_of(5, 0, 1))
    return optimizer.state_dict()


# ---------------------------------------------------------------------- refusals
def differs(rank: int, ranks: int, what: str) -> None:
    """Ranks that do not do the same."""
    net = model(ranks, "root")
    optimizer = weighted(net, "cagrad" if what == "weighting" and rank == 0 else "upgrad")
    losses: list[Any] = losses_of(net, data(0, rank, ranks, "root"))
    if what == "tasks" and rank == 1:
        losses[1] = None
    if what == "failure" and rank == 1:
        losses[1] = "nothing"
    optimizer.backward(losses)
    if what == "learning rate" and rank == 1:
        optimizer.param_groups[0]["lr"] = 1.0
    optimizer.step()


def partly_sharded(rank: int, ranks: int) -> None:
    """The trunk alone, of a model whose ranks have data of their own."""
    net = Net()
    fully_sharded(net.trunk, ranks)  # type: ignore[arg-type]
    by_backward(weighted(net), net, data(0, rank, ranks, "root"))


def refused(rank: int, ranks: int, what: str) -> None:
    from mt2o_ext import ConnectionStrengthFused

    net = model(ranks, "root")
    if what == "connection strength":
        ConnectionStrengthFused(net.parameters(), connections=[], num_tasks=3, total_steps=3)
    elif what == "bank":
        bank = nn.Linear(2, 10)
        fully_sharded(bank, ranks)  # type: ignore[arg-type]
        MT2OFused(bank.parameters(), num_tasks=3, num_subproblems=10, preferences=PREFERENCES[:1] * 10, stacked=True)
    elif what == "group":
        weighted(net, process_group=False)
    elif what == "batched":
        weighted(net, collect="batched")
    elif what == "rows":
        MT2OFused(net.parameters(), num_tasks=3, num_subproblems=3, preferences=PREFERENCES, weighting="graddrop")
    elif what == "later":
        plain = nn.Linear(3, 3).double()
        WeightedFused(plain.parameters(), num_tasks=3, process_group=False).add_param_group(
            {"params": net.parameters()}
        )


DIFFERENCES = {
    "weighting": "UPGrad",
    "tasks": "tasks without a loss",
    "failure": "rank 1 failed: TypeError",
    "learning rate": "lr",
}
REFUSALS = {
    "connection strength": (TypeError, "whole weight.*process_group=True"),
    "bank": (TypeError, "bank"),
    "group": (ValueError, "process_group=None"),
    "batched": (ValueError, "collect='batched'"),
    "rows": (ValueError, "GradDrop.*whole tensors"),
    "later": (ValueError, "one optimizer for all"),
}
FRONTS: dict[str, dict[str, Any]] = {
    "rows": {"front": "rows", "scalarization": "tchebycheff", "max_norm": 0.2, "transfer": None},
    "transfer": {"transfer": "distance-decrease"},
    "vertices": {"front": "vertices"},
    "weighting": {"front": "vertices", "weighting": "upgrad"},
}
RUNS: dict[str, Check] = {
    **{f"{sharding}": partial(run, sharding=sharding, max_norm=0.3) for sharding in SHARDINGS},
    **{name: partial(run, sharding="layers", step=step, **options) for name, (step, options) in LOOPS.items()},
    "tensor parallel, closure": partial(run, sharding="tensor parallel", step=by_closure, heads="plain", max_norm=0.3),
    "every weighting": every_weighting,
    "front: rows": partial(front, sharding="root", **FRONTS["rows"]),
    "front: transfer": partial(front, sharding="layers", **FRONTS["transfer"]),
    "front: vertices": partial(front, sharding="root", **FRONTS["vertices"]),
    "front: weighting": partial(front, sharding="tensor parallel", **FRONTS["weighting"]),
    "branched": branched,
    "shown": shown,
    "grows": grows,
    "scaled": scaled,
    "from whole": partial(from_whole, saved=whole_state()),
}
OF_FOUR = ("root", "layers", "replicated", "tensor parallel", "several", "front: rows", "shown")
TWO_MESHES: dict[str, Check] = {
    "both": partial(run, sharding="both", max_norm=0.3),
    "both, front": partial(front, sharding="both", **FRONTS["rows"]),
}
ALONE: dict[str, Check] = {
    "not finite": not_finite,
    "sixteen bits": sixteen_bits,
    "partly sharded": partly_sharded,
    **{f"differs: {what}": partial(differs, what=what) for what in DIFFERENCES},
    **{f"refused: {what}": partial(refused, what=what) for what in REFUSALS},
}


def checks_of(ranks: int) -> dict[str, Check]:
    """All checks for two ranks; for more, those in which shards are empty, or on more than one mesh."""
    if ranks == 2:
        return {**RUNS, **ALONE}
    return {**{name: RUNS[name] for name in OF_FOUR}, **TWO_MESHES, "not finite": not_finite}
