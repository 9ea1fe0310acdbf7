"""Models that are sharded, or whole in one process, and runs of `WeightedFused` on them by all kinds of loops."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mt2o_ext import WeightedFused
from mt2o_ext.weighting import Needs, PerSegment, UPGrad, as_weighting
from mt2o_ext.weighting.registry import register
from support.sharded_runs import SHARDINGS, Net, batch_of, losses_of, whole

STEPS = 3
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
