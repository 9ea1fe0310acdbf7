"""A model that FSDP2 has sharded: task gradients, moments and the fused step stay where the shards lie.

torchrun --nproc-per-node 2 examples/fsdp.py
"""

from __future__ import annotations

import torch
from problem import DEVICE, Model, accuracies, pairs, task_losses
from torch import distributed
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler

from mt2o_ext import WeightedFused


def main(epochs: int = 10) -> list[float]:
    distributed.init_process_group("nccl" if DEVICE.type == "cuda" else "gloo")
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    if DEVICE.type == "cuda":
        torch.cuda.set_device(rank % torch.cuda.device_count())  # DEVICE is that one from here on
    train, test = pairs()
    sampler = DistributedSampler(train, drop_last=True)
    batches = DataLoader(train, batch_size=64 // ranks, sampler=sampler, drop_last=True)
    torch.manual_seed(0)  # the shards of one model
    model = Model().to(DEVICE)
    fully_shard(model)
    optimizer = WeightedFused(model.parameters(), num_tasks=2, weighting="upgrad", lr=3e-3, max_norm=1.0)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for x, y in batches:
            optimizer.backward(task_losses(model, x, y))
            optimizer.step()
    found = accuracies(model, test)  # on every rank, since a forward pass gathers the layers
    if rank == 0:
        print(f"{ranks} ranks: accuracies {found[0]:.2f} and {found[1]:.2f}")
    distributed.destroy_process_group()
    return found


if __name__ == "__main__":
    main()
