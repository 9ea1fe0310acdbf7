"""What two processes of one gloo group do through Lightning, Fabric, Accelerate and the Trainer, and on their own.

Each job returns what it came to, for the tests of test_two_ranks.py to compare with one process on joint batches.
"""

from __future__ import annotations

import os
import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from mt2o_ext import WeightedBackward
from support.clients.loops import BATCH, LOOPS, Net, everything, loader, losses

Found = dict[str, Any]

GROUPED = ["weighted", "heads", "weighting of losses", "weighted, closure", "mt2o", "mt2o, weighting", "mt2o, closure",
           "weighted backward", "one task"]  # fmt: skip


def options(name: str) -> dict[str, Any]:
    return {} if name == "weighted backward" else {"process_group": True}


def make(name: str, net: Any = None) -> Any:
    loop: Any = LOOPS[name](Net() if net is None else net, **options(name))
    if name == "weighted backward":
        loop.weigh = WeightedBackward(loop.model.parameters(), num_tasks=2, weighting="upgrad", process_group=True)
    return loop


def as_launched(rank: int, ranks: int) -> None:
    """What torchrun tells the processes that it starts."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks),
        MASTER_ADDR="127.0.0.1", MASTER_PORT="29511", TORCHELASTIC_RUN_ID="tests", ACCELERATE_USE_CPU="true",
    )  # fmt: skip


def own_part(rank: int) -> list[Any]:
    """Every second sample, as samplers deal them out."""
    return [(x[rank::2], y[rank::2]) for x, y in loader(2 * BATCH)]


def plain(name: str, rank: int, ranks: int) -> Found:
    loop = make(name)
    for x, y in own_part(rank):
        loop.step(loop.optimizer, lambda x=x, y=y: losses(loop.model, x, y))
    return everything(loop)


def in_lightning(name: str, rank: int, ranks: int) -> Found:
    from support.clients.lightning import Module, trainer

    as_launched(rank, ranks)
    module = Module(name)
    module.make = lambda: make(name, module.net)
    part = TensorDataset(*(torch.cat(column) for column in zip(*own_part(rank), strict=True)))
    with tempfile.TemporaryDirectory() as folder:
        fitted = trainer(Path(folder), strategy="ddp", devices=ranks, use_distributed_sampler=False)
        fitted.fit(module, DataLoader(part, batch_size=BATCH))
    return everything(module.loop)


def in_fabric(name: str, rank: int, ranks: int) -> Found:
    import lightning

    as_launched(rank, ranks)
    fabric = lightning.Fabric(accelerator="cpu", devices=ranks, strategy="ddp")
    fabric.launch()
    loop = make(name)
    net, optimizer = fabric.setup(loop.model, loop.optimizer)
    for x, y in fabric.setup_dataloaders(loader()):
        with fabric.no_backward_sync(net):  # the optimizer averages
            loop.step(optimizer, lambda x=x, y=y: losses(net, x, y))
    return everything(loop)


def in_accelerate(name: str, rank: int, ranks: int) -> Found:
    import accelerate

    as_launched(rank, ranks)
    accelerator = accelerate.Accelerator(cpu=True)
    assert accelerator.num_processes == ranks
    loop = make(name)
    net, optimizer = accelerator.prepare(loop.model, loop.optimizer)
    mine = optimizer if "closure" in name else optimizer.optimizer
    for x, y in own_part(rank):
        with accelerator.no_sync(net):
            loop.step(mine, lambda x=x, y=y: losses(net, x, y))
    return everything(loop)


def in_trainer(name: str, rank: int, ranks: int) -> Found:
    from support.clients.bert import loop_of, model
    from support.clients.trainer import Trainer

    as_launched(rank, ranks)
    loop = loop_of(name, model(), **options(name))

    class OfRanks(Trainer):
        def training_step(self, net: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
            with self.accelerator.no_sync(net):
                return super().training_step(net, inputs)

    with tempfile.TemporaryDirectory() as folder:
        OfRanks(loop, Path(folder), per_device_train_batch_size=2, max_grad_norm=0.0, ddp_backend="gloo").train()
    return everything(loop)


def in_wrapper(name: str, rank: int, ranks: int) -> Found:
    """DistributedDataParallel averages; the optimizer is told that it is taken care of."""
    loop = LOOPS[name](Net(), **({} if name == "weighted backward" else {"process_group": False}))
    net = DistributedDataParallel(loop.model)
    for x, y in own_part(rank):
        loop.step(loop.optimizer, lambda x=x, y=y: losses(net, x, y))
    return everything(loop)


def without_a_group(name: str, rank: int, ranks: int) -> Found:
    """No word about ranks: a warning has to come."""
    loop = LOOPS[name](Net())
    for x, y in own_part(rank):
        loop.step(loop.optimizer, lambda x=x, y=y: losses(loop.model, x, y))
    return everything(loop)


def sharded(name: str, rank: int, ranks: int) -> Found:
    """A model that FSDP2 has sharded."""
    from torch.distributed.fsdp import fully_shard

    net = Net()
    fully_shard(net)
    loop = LOOPS[name](net)
    start = [p.detach().clone() for p in net.parameters()]
    for x, y in own_part(rank):
        loop.step(loop.optimizer, lambda x=x, y=y: losses(net, x, y))
    pairs = zip(net.parameters(), start, strict=True)
    return {"moved": any(not torch.equal(p.to_local(), q.to_local()) for p, q in pairs)}


WAYS: dict[str, tuple[Any, list[str]]] = {
    "plain": (plain, GROUPED),
    "lightning": (in_lightning, GROUPED),
    "fabric": (in_fabric, GROUPED),
    "accelerate": (in_accelerate, GROUPED),
    "trainer": (in_trainer, ["weighted", "mt2o"]),
    "wrapper": (in_wrapper, ["mt2o", "one task", "one subproblem"]),
    "wrapper in vain": (in_wrapper, ["weighted", "mt2o, weighting"]),
    "priority": (plain, ["connection strength"]),
    "no group": (without_a_group, ["weighted", "mt2o", "weighted backward"]),
    "sharded": (sharded, ["weighted", "mt2o", "weighted backward"]),
}
NEEDS = {"lightning": "lightning", "fabric": "lightning", "accelerate": "accelerate", "trainer": "transformers"}
JOBS = {
    f"{way}: {name}": partial(job, name)
    for way, (job, names) in WAYS.items()
    for name in names
    if way not in NEEDS or find_spec(NEEDS[way])
}
