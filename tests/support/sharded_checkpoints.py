"""Checkpoints of sharded models: saved on some ranks by torch.distributed.checkpoint, loaded on others."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import state_dict as api

from mt2o_ext import MT2OFused
from support.sharded_optimizers import PREFERENCES
from support.sharded_runs import Net, fully_sharded, losses_of
from support.sharded_steps import by_backward, data, model, values, weighted

OPTIMIZERS = {
    "weighted": {"weighting": "dwa", "accumulate": True, "ema": 0.9, "history": 2},
    "rows": {"front": "rows", "transfer": "distance-decrease"},
    "vertices": {"front": "vertices"},
}


def made(net: Net, kind: str) -> Any:
    if kind == "weighted":
        return weighted(net, **OPTIMIZERS[kind])  # type: ignore[arg-type]
    generator = {"generator": torch.Generator().manual_seed(5)} if kind == "vertices" else {}
    return MT2OFused(
        net.parameters(), num_tasks=3, num_subproblems=3, preferences=PREFERENCES, lr=1e-2, ema=0.9, **generator,
        **OPTIMIZERS[kind],
    )  # type: ignore[arg-type]  # fmt: skip


def trained(net: Net, optimizer: Any, steps: range, rank: int, ranks: int) -> None:
    for number in steps:
        batch = data(number, rank, ranks, "layers")
        if not isinstance(optimizer, MT2OFused):
            by_backward(optimizer, net, batch)
            optimizer.epoch_end()
            continue
        for _ in optimizer.subproblems():
            optimizer.backward(losses_of(net, batch))
        optimizer.step()


def state_of(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {"model": api.get_model_state_dict(net), "optimizer": api.get_optimizer_state_dict(net, optimizer)}


def loaded(net: Net, optimizer: Any, path: Path, group: Any = None) -> None:
    found = state_of(net, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of single processes
        dcp.load(found, checkpoint_id=path, process_group=group)
    api.set_model_state_dict(net, found["model"])
    api.set_optimizer_state_dict(net, optimizer, found["optimizer"])


def saved_and_resumed(rank: int, ranks: int, folder: Path, kind: str) -> dict[str, Any]:
    """Saves after a step, goes on, and goes on from what was saved: on all ranks, and (of four) on two of them."""
    from torch.distributed.device_mesh import init_device_mesh

    path = folder / f"{kind} of {ranks}"
    net = model(ranks, "layers")
    optimizer = made(net, kind)
    trained(net, optimizer, range(1), rank, ranks)
    dcp.save(state_of(net, optimizer), checkpoint_id=path)
    trained(net, optimizer, range(1, 3), rank, ranks)
    other = model(ranks, "layers")
    resumed = made(other, kind)
    loaded(other, resumed, path)
    trained(other, resumed, range(1, 3), rank, ranks)
    result = {"values": values(net), "resumed": values(other)}
    if ranks == 4:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("halves", "ranks"))["ranks"]
        fewer = Net()
        fully_sharded(fewer, 2, mesh=mesh, layers=True)
        again = made(fewer, kind)
        loaded(fewer, again, path, mesh.get_group())
        trained(fewer, again, range(1, 3), rank % 2, 2)
        result["on two"] = values(fewer)
    dist.barrier()
    return result


def alone(folder: Path, kind: str, ranks: int) -> dict[str, Any]:
    """Goes on in one process from what several have saved."""
    net = Net()
    optimizer = made(net, kind)
    loaded(net, optimizer, folder / f"{kind} of {ranks}")
    trained(net, optimizer, range(1, 3), 0, 1)
    return values(net)
