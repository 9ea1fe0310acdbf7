"""Runs of `WeightedBackward` on sharded models, and the same in one process on the joined batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mt2o_ext import WeightedBackward
from mt2o_ext.weighting import DWA, IMTLG, MGDA, CAGrad, PCGrad, UncertaintyWeighting, UPGrad, Weighting
from support.worlds import Check

STEPS = 3
WEIGHTINGS: dict[str, Callable[[], Weighting]] = {
    "upgrad": UPGrad,
    "cagrad": CAGrad,
    "mgda": MGDA,
    "imtl-g": IMTLG,
    "random order": PCGrad,
    "learned, of losses": UncertaintyWeighting,
    "epochs": DWA,
}


class Net(nn.Module):
    """Layers of 10 rows (or another number), 7 and 3: with two and four ranks shards are uneven, and some are empty."""

    def __init__(self, width: int = 10) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 7), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(7, 3) for _ in range(3))
        self.double()

    def forward(self, x: Tensor) -> list[Tensor]:
        return [head(self.trunk(x)) for head in self.heads]


def losses_of(net: nn.Module, batch: Tensor) -> list[Tensor]:
    outputs = net(batch)
    targets = (batch[:, :3], -batch[:, :3], batch[:, 3:] * 2)
    return [(output - target).square().mean() for output, target in zip(outputs, targets, strict=True)]


def batch_of(step: int, rank: int, ranks: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(16, 6, dtype=torch.float64, generator=generator).chunk(ranks)[rank]


def fully_sharded(net: Net, ranks: int, *, mesh: Any = None, layers: bool = False) -> None:
    from torch.distributed.fsdp import fully_shard

    options = {} if mesh is None else {"mesh": mesh}
    if layers:
        for layer in [*net.trunk, *net.heads]:
            if isinstance(layer, nn.Linear):
                fully_shard(layer, **options)
    fully_shard(net, **options)


def layers_sharded(net: Net, ranks: int) -> None:
    fully_sharded(net, ranks, layers=True)


def replicated_and_sharded(net: Net, ranks: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (2, ranks // 2), mesh_dim_names=("replicate", "shard"))
    fully_sharded(net, ranks, mesh=mesh)


def tensor_parallel(net: Net, ranks: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (ranks,))
    parallelize_module(net.trunk, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


SHARDINGS: dict[str, Callable[[Net, int], None]] = {
    "root": fully_sharded,
    "layers": layers_sharded,
    "replicated": replicated_and_sharded,
    "tensor parallel": tensor_parallel,
}


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def run(rank: int, ranks: int, sharding: str, weighting: str) -> dict[str, Any]:
    parallel = sharding == "tensor parallel"  # all ranks have the same data, and shards of one size
    net = Net(8 if parallel else 10)
    if ranks > 1:
        SHARDINGS[sharding](net, ranks)
    groups = [{"params": net.trunk.parameters()}]
    groups += [{"params": head.parameters(), "task": task} for task, head in enumerate(net.heads)]
    generator = torch.Generator().manual_seed(5 + rank)
    backward = WeightedBackward(groups, num_tasks=3, weighting=WEIGHTINGS[weighting](), generator=generator)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, foreach=not parallel)  # sharded tensors beside others
    weights = []
    for step in range(STEPS):
        batch = batch_of(step, 0, 1) if parallel else batch_of(step, rank, ranks)
        optimizer.zero_grad()
        weights.append(backward(losses_of(net, batch)))
        if step == 1:  # gradients add up
            backward(losses_of(net, batch))
        if not parallel:
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        backward.epoch_end()
    held = sum((p.to_local() if hasattr(p, "to_local") else p).numel() for p in net.parameters())
    return {
        "weights": torch.stack(weights),
        "values": {name: whole(p.detach()).clone() for name, p in net.named_parameters()},
        "held": held,
    }


def bad_options(rank: int, ranks: int, **options: Any) -> None:
    net = Net()
    fully_sharded(net, ranks)
    WeightedBackward(net.parameters(), num_tasks=3, weighting="upgrad", **options)


RUNS: dict[str, Check] = {
    f"{sharding}: {name}": partial(run, sharding=sharding, weighting=name)
    for sharding in SHARDINGS
    for name in (WEIGHTINGS if sharding == "layers" else ["upgrad"])
}
REFUSED: dict[str, Check] = {
    "batched": partial(bad_options, collect="batched"),
    "not stored": partial(bad_options, store=False),
}


def checks_of(ranks: int) -> dict[str, Check]:
    """All checks for two ranks; for more one weighting of each sharding is enough."""
    return {name: check for name, check in {**RUNS, **REFUSED}.items() if ranks == 2 or name.endswith("upgrad")}
