"""Runs of the optimizers on sharded models, and the same in one process on the joined batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mt2o_ext import MT2OFused, WeightedFused
from mt2o_ext.weighting import Needs, PerSegment, UPGrad, as_weighting
from mt2o_ext.weighting.registry import register
from support.sharded_runs import SHARDINGS, Net, batch_of, fully_sharded, losses_of, whole
from support.worlds import Check

STEPS = 3
PREFERENCES = [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]
SAME_DATA = ("tensor parallel", "both")  # shardings whose ranks have the same data, or some of them
WEIGHTINGS = {"per tensor": lambda: PerSegment(UPGrad())}


def both(net: Net, ranks: int) -> None:
    """Tensor parallelism over two ranks, and shards over the others: parameters on two meshes, one in the other."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (ranks // 2, 2), mesh_dim_names=("data", "tensor"))
    parallelize_module(net.trunk, mesh["tensor"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    fully_shard(net, mesh=mesh["data"])


def model(ranks: int, sharding: str, dtype: torch.dtype = torch.float64) -> Net:
    net = Net(8 if sharding in SAME_DATA else 10).to(dtype)
    if ranks > 1:
        {**SHARDINGS, "both": both}[sharding](net, ranks)
    return net


def data(step: int, rank: int, ranks: int, sharding: str) -> Tensor:
    if sharding == "both" and ranks > 1:
        return batch_of(step, rank // 2, ranks // 2)
    return batch_of(step, 0, 1) if sharding == "tensor parallel" else batch_of(step, rank, ranks)


def values(net: nn.Module) -> dict[str, Tensor]:
    return {name: whole(p.detach()).clone() for name, p in net.named_parameters()}


def state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state, of whole tensors."""
    found: dict[str, Any] = optimizer.state_dict()
    found["state"] = {
        index: {key: whole(value) if isinstance(value, Tensor) else value for key, value in own.items()}
        for index, own in found["state"].items()
    }
    return found


def groups_of(net: Net) -> list[dict[str, Any]]:
    heads = [{"params": head.parameters(), "task": task} for task, head in enumerate(net.heads)]
    return [{"params": net.trunk.parameters()}, *heads]


def weighted(net: Net, weighting: str = "upgrad", *, heads: str | None = None, **options: Any) -> WeightedFused:
    params: Any = net.parameters() if heads is None else groups_of(net)
    made: Any = WEIGHTINGS[weighting]() if weighting in WEIGHTINGS else weighting
    generator = torch.Generator().manual_seed(5)
    return WeightedFused(
        params, num_tasks=3, weighting=made, lr=1e-2, heads=heads or "plain", generator=generator, **options
    )


# ---------------------------------------------------------------------- loops that end in a step
Step = Callable[[Any, Net, Tensor], object]


def by_backward(optimizer: WeightedFused, net: Net, batch: Tensor) -> None:
    optimizer.backward(losses_of(net, batch))
    optimizer.step()


def by_closure(optimizer: WeightedFused, net: Net, batch: Tensor) -> None:
    optimizer.step(lambda: losses_of(net, batch))


def task_after_task(optimizer: WeightedFused, net: Net, batch: Tensor) -> None:
    for task in optimizer.tasks():
        optimizer.backward(losses_of(net, batch)[task])
    optimizer.step()


def several_and_clipped(optimizer: WeightedFused, net: Net, batch: Tensor) -> None:
    """Two backward passes, the second without a task, and torch's own clipping of what stands in ``.grad``."""
    optimizer.backward(losses_of(net, batch))
    optimizer.backward([*losses_of(net, 2 * batch)[:2], None])
    nn.utils.clip_grad_norm_(net.parameters(), 0.5)
    optimizer.step()


def beside_others(optimizer: WeightedFused, net: Net, batch: Tensor) -> None:
    """To what stood in ``.grad`` before the backward pass the combined gradient is added."""
    losses_of(net, batch)[0].backward()
    by_backward(optimizer, net, batch)


def with_epochs(optimizer: WeightedFused, net: Net, batch: Tensor) -> None:
    by_backward(optimizer, net, batch)
    optimizer.epoch_end()


LOOPS: dict[str, tuple[Step, dict[str, Any]]] = {
    "closure": (by_closure, {"max_norm": 0.3}),
    "task after task": (task_after_task, {"heads": "plain", "ema": 0.9}),
    "several": (several_and_clipped, {"heads": "weighted"}),
    "beside others": (beside_others, {"show_grad": True}),
    "not shown": (by_backward, {"show_grad": False, "heads": "plain"}),
    "by losses": (with_epochs, {"weighting": "dwa", "heads": "plain"}),
    "by losses, kept": (with_epochs, {"weighting": "dwa", "accumulate": True}),
    "feedback": (by_closure, {"weighting": "famo"}),
    "per tensor": (by_backward, {"weighting": "per tensor"}),
}


def run(rank: int, ranks: int, sharding: str, step: Step = by_backward, **options: Any) -> dict[str, Any]:
    net = model(ranks, sharding)
    optimizer = weighted(net, **options)
    weights = []
    for number in range(STEPS):
        step(optimizer, net, data(number, rank, ranks, sharding))
        weights.append(optimizer.weights)
    return {"values": values(net), "state": state(optimizer), "weights": weights, "norm": optimizer.grad_norm}


def every_weighting(rank: int, ranks: int) -> dict[str, Any]:
    """A step with each method of the registry; the text of the error, where it is refused."""
    found: dict[str, Any] = {}
    net = model(ranks, "root")
    for name in register:
        if Needs.CROSS in as_weighting(name).needs:
            continue
        if Needs.ROWS in as_weighting(name).needs:
            if ranks > 1:
                with pytest.raises(ValueError, match="changes the gradients of whole tensors"):
                    weighted(net, name)
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of calls that a method waits for
            optimizer = weighted(net, name)
            by_backward(optimizer, net, data(0, rank, ranks, "root"))
        found[name] = optimizer.weights
        optimizer.zero_grad()
    return {"weights": found, "values": values(net)}


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
